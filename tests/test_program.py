"""The installed command `tff-perfedavg` and its sub-commands."""

import pathlib
import re
import subprocess
import sys

import pytest

import tff_perfedavg
from tff_perfedavg.commands import main
from tff_perfedavg.experiments.settings.remedies import SUB_COMMANDS, as_called

ROOT = pathlib.Path(__file__).parent.parent


def test_the_overview_tells_every_sub_command_in_a_line(capsys):
    assert main.execute(["--help"]) == 0
    said = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in said.splitlines() if line[:2] == "  "]
    assert [name for name, _ in lines] == [*SUB_COMMANDS]
    assert all(told.endswith(".") for _, told in lines)
    # Without a sub-command it is told, too, but nothing was done.
    assert main.execute([]) == 1
    assert capsys.readouterr().out == said


def test_each_sub_command_is_a_script_of_a_checkout_too():
    modules = {path.stem for path in (ROOT / "tff_perfedavg/commands").glob("*.py")}
    assert {*SUB_COMMANDS.values()} == modules - {"__init__", "main"}
    for name, module in SUB_COMMANDS.items():
        script = (ROOT / f"scripts/{module}.py").read_text()
        assert f"`{main.PROGRAM} {name}`" in script


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_help_of_a_sub_command_calls_others_as_they_are_installed(capsys, name):
    assert main.execute([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"tff_perfedavg.commands.{SUB_COMMANDS[name]}:" in said
    assert ".py --" not in said
    assert "scripts/" not in said


def test_an_unknown_sub_command_is_refused_with_those_there_are(capsys):
    assert main.execute(["trian"]) == 1
    said = capsys.readouterr().err
    assert "tff-perfedavg has no 'trian'; known: demo, prepare-data, train" in said


def test_an_error_tells_its_remedy_as_the_command_is_called(capsys, tmp_path):
    flags = ["--experiment_name=a", f"--store={tmp_path}"]
    assert main.execute(["train", *flags]) == 1
    said = capsys.readouterr().err
    assert "No user store at" in said
    assert "\nOn the command line: tff-perfedavg prepare-data.\n" in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("scripts/train.py", "tff-perfedavg train"),
        ("sweep.py --grid=a", "tff-perfedavg sweep --grid=a"),
        ("of scripts/export_tflite.py.", "of tff-perfedavg export."),
        ("my_train.py", "my_train.py"),
        ("no file /home/me/train.py", "no file /home/me/train.py"),
        ("model is 'train.py:build'", "model is 'train.py:build'"),
        ("scripts/build_web_app.py", "scripts/build_web_app.py"),
    ],
)
def test_scripts_are_told_as_sub_commands_where_these_are_called(text, told):
    assert as_called(text, "tff-perfedavg sweep") == told
    assert as_called(text, "/somewhere/sweep.py") == text


def test_the_package_is_the_command_and_answers_at_once():
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tff_perfedavg", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert answer.returncode == 0
    assert answer.stdout == f"tff-perfedavg {tff_perfedavg.__version__}\n"
    loaded = set(re.findall(r"\| +(\w+)$", answer.stderr, re.MULTILINE))
    assert "tff_perfedavg" in loaded
    assert not loaded & {"tensorflow", "tensorflow_federated", "pandas", "numpy"}


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("--help", f"{main._TITLE}\n"),
        (
            "train --help",
            "Meta-trains an initial model and writes it with its metrics.\n",
        ),
    ],
)
def test_a_reader_who_has_enough_ends_a_command_without_a_word(asked, first):
    done = subprocess.run(
        # Each line at once, so that some come when the reader is gone.
        f"{sys.executable} -u -m tff_perfedavg {asked} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == first
    assert done.stderr == ""
