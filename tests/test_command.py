"""What commands have in common: their flags, and what they say of places and files."""

import contextlib
import os
import pathlib
import sys

import pytest
from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command


def ended(monkeypatch, main, *arguments):
    """How a command ended: what `sys.exit` was given."""
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(command.app, "define_help_flags", define_help)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as e:
        command.run(main)
    return e.value.code


def define_help():
    # As absl's, which defines it once for a process.
    flags.DEFINE_flag(command.app.HelpFlag(), flag_values=flags.FLAGS)


def nothing():
    raise AssertionError("it ran")


def test_help_ends_well(monkeypatch, capsys):
    assert ended(monkeypatch, nothing, "--help") == 0
    assert "--helpfull" in capsys.readouterr().out


def test_a_flag_that_is_not_there_ends_badly_and_in_a_sentence(monkeypatch):
    told = ended(monkeypatch, nothing, "--colour=1")
    assert told.startswith("error: Unknown command line flag 'colour'")
    assert "--help" in told


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
def test_a_place_that_takes_no_files_is_told_in_a_sentence(
    monkeypatch, tmp_path, fail, told
):
    (tmp_path / "file").write_text("")
    said = ended(monkeypatch, lambda: fail(tmp_path))
    assert said.startswith("error: ")
    assert told in said


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(command.app, "define_help_flags", define_help)
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(OSError, match="defect"):
        command.run(lambda: (_ for _ in ()).throw(OSError("defect")).send(None))


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
