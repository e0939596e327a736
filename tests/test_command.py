"""What commands have in common: their flags, and what they say of places and files."""

import contextlib
import os
import pathlib
import sys

import pytest
from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command, experiment_flags


@pytest.fixture
def ended(capsys):
    """How a command without flags of its own ended: its exit code and what it said."""

    def run(main, *arguments):
        code = command.execute(["command", *arguments], main, lambda flag_values: None)
        return code, capsys.readouterr()

    return run


def nothing(flag_values):
    raise AssertionError("it ran")


@pytest.mark.parametrize("flag", ["--help", "--helpshort", "-?", "--helpfull"])
def test_help_ends_well(ended, flag):
    code, said = ended(nothing, flag)
    assert code == 0
    assert said.out.startswith(__doc__)
    assert "--helpfull" in said.out


def test_help_tells_a_command_s_own_flags_and_helpfull_all_of_them(capsys):
    def define(flag_values):
        flags.DEFINE_integer("rounds", 3, "Of it.", 1, flag_values=flag_values)
        experiment_flags.define(flag_values)

    told = {}
    for flag in ("--help", "--helpfull", "--helpxml"):
        assert command.execute(["command", flag], nothing, define) == 0
        told[flag] = capsys.readouterr().out
    assert "--rounds: Of it.\n    (default: '3')" in told["--help"]
    assert "--batch_size" not in told["--help"]
    for name in ("--rounds", "--batch_size", "--flagfile", "--verbosity"):
        assert name in told["--helpfull"]
    assert "<name>rounds</name>" in told["--helpxml"]


def test_a_flag_that_is_not_there_ends_badly_and_in_a_sentence(ended):
    code, said = ended(nothing, "--colour=1")
    assert code == 1
    assert said.err.startswith("error: Unknown command line flag 'colour'")
    assert "--help" in said.err


def test_commands_run_one_after_another_each_with_flags_of_its_own(tmp_path):
    flagfile = tmp_path / "flags"
    flagfile.write_text("--rounds=7\n")
    found = []

    def define(flag_values, default):
        flags.DEFINE_integer("rounds", default, "Of it.", flag_values=flag_values)

    for default, *arguments in ((1,), (2, "--rounds=5"), (3, f"--flagfile={flagfile}")):
        code = command.execute(
            ["command", *arguments],
            lambda flag_values: found.append(flag_values.rounds),
            lambda flag_values, default=default: define(flag_values, default),
        )
        assert code == 0
    assert found == [1, 5, 7]
    assert "rounds" not in flags.FLAGS


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.Interrupted("Stopped; all is saved."), "Stopped; all is saved.\n"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_a_command_that_is_interrupted_ends_as_shells_tell_it(ended, error, said):
    def main(flag_values):
        raise error

    assert ended(main) == (130, ("", said))


@pytest.mark.parametrize(
    ("fail", "told"),
    [
        (
            lambda p: (p / "file" / "x").write_text(""),
            "file/x: Not a directory; a file",
        ),
        (lambda p: (p / "file").mkdir(), "file: File exists; a file is where a direct"),
        (
            lambda p: (p / ("n" * 256)).mkdir(),
            "nn: File name too long; a name may have",
        ),
        (lambda p: p.write_text(""), ": Is a directory; a directory is where"),
        (lambda p: os.listdir("/dev/full/x"), "/dev/full/x: Not a directory"),
    ],
)
def test_a_place_that_takes_no_files_is_told_in_a_sentence(ended, tmp_path, fail, told):
    (tmp_path / "file").write_text("")
    code, said = ended(lambda flag_values: fail(tmp_path))
    assert code == 1
    assert said.err.startswith("error: ")
    assert told in said.err


def test_a_defect_keeps_its_traceback(ended):
    def main(flag_values):
        raise OSError("defect")

    with pytest.raises(OSError, match="defect"):
        ended(main)


def test_a_command_s_process_ends_with_its_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "more"])
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    with pytest.raises(SystemExit) as e:
        command.run(nothing, lambda flag_values: None)
    assert e.value.code == 1


@contextlib.contextmanager
def as_nobody():
    """Without root's right to write everywhere."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("root of a user namespace that knows of nobody else")
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_root_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    # The directories above are pytest's own, for this user alone.
    with as_nobody(), pytest.raises(errors.ConfigError, match=r"another --root_output"):
        RunPaths(tmp_path / "runs", "a").check_writable()
    with (
        as_nobody(),
        pytest.raises(errors.ConfigError, match="/usr may not be written"),
    ):
        RunPaths(pathlib.Path("/usr/runs"), "a").check_writable()


def test_a_root_below_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for root in (file, file / "runs", file / "runs" / "deep"):
        with pytest.raises(errors.ConfigError, match=f"{file} is no directory. Choose"):
            RunPaths(root, "a").check_writable()


def test_a_root_that_is_to_be_made_is_no_fault_and_is_not_made(tmp_path):
    RunPaths(tmp_path, "a").check_writable()
    RunPaths(tmp_path / "new" / "runs", "a").check_writable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 256, "ü" * 128])
def test_a_name_that_no_directory_can_have_is_refused(tmp_path, name):
    with pytest.raises(
        errors.ConfigError, match=r"has 256 bytes.* at most 255; choose"
    ):
        RunPaths(tmp_path, name)
    paths = RunPaths(tmp_path, name[:-1])
    paths.results.mkdir(parents=True)
