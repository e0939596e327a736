"""Commands that the pages tell, and files of flags: their flags exist, values go."""

import pathlib
import re
import shlex

import pytest
from absl import flags

from tests.flag_files import FLAG_FILES, flags_of
from tff_perfedavg.commands import reproduce_paper, sweep, train
from tff_perfedavg.experiments.settings import command

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class CheckedError(Exception):
    """That all was checked that is before a framework is loaded."""


@pytest.fixture
def until_frameworks(monkeypatch):
    """Commands end where they would load TensorFlow."""

    def stop():
        raise CheckedError

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command, "load_frameworks", stop)


def commands_of(page):
    """A page's commands of scripts/, as words."""
    for _, block in re.findall(
        r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE
    ):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith(".venv/bin/python scripts/"):
                yield shlex.split(line, comments=True)[1:]


TOLD = [
    pytest.param(words, id=f"{page.stem}-{number}-{pathlib.Path(words[0]).stem}")
    for page in PAGES
    for number, words in enumerate(commands_of(page))
    if "..." not in words
]


def test_pages_tell_many_commands():
    assert len(TOLD) > 50


@pytest.mark.parametrize("words", TOLD)
def test_a_command_that_a_page_tells_has_these_flags(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    # The reader's own, which the tutorial's test writes.
    words = [word for word in words if not word.startswith("--flagfile=mine/")]
    module = __import__(f"scripts.{pathlib.Path(words[0]).stem}", fromlist=["define"])
    command._parse(words, module.define, flags.FlagValues())


@pytest.mark.parametrize("path", FLAG_FILES, ids=lambda path: path.stem)
def test_a_file_of_flags_is_one_that_its_command_takes(path, until_frameworks):
    module = sweep
    if path.stem.startswith("paper_"):
        module = reproduce_paper
    if "--experiment_name" in path.read_text():
        module = train
    argv = ["command", *flags_of(path)]
    if path.stem.startswith("fleet_"):
        argv.append("--fleet=ideal")
    with pytest.raises(CheckedError):
        command.execute(argv, module.main, module.define)
