"""The API pages: every public name is on one, and their examples run."""

import doctest
import inspect
import pathlib
import re

import pytest

import tff_perfedavg
from tff_perfedavg.runtime import local_runtime

PAGES = pathlib.Path(__file__).parent.parent / "docs/api"
GROUPS = ("algorithms", "data", "federated", "models", "ondevice", "optimization")
# Other names of one function.
SAME = {"build_per_fed_avg", "build_fed_avg"}


def told_on(page):
    """The names that a page documents."""
    text = (PAGES / f"{page}.md").read_text()
    return {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)$", text, re.M)}


@pytest.mark.parametrize("group", GROUPS)
def test_every_name_of_a_group_is_on_its_page(group):
    names = {*getattr(tff_perfedavg, group).__all__} - SAME
    assert told_on(group) == names


def test_every_name_at_the_top_is_in_the_table_and_documented_once():
    text = (PAGES / "index.md").read_text()
    names = {*tff_perfedavg.__all__} - {*GROUPS}
    assert all(f"`{name}`" in text for name in names)
    pages = [told_on(page) for page in ("index", *GROUPS)]
    assert names - SAME <= set().union(*pages)


def test_the_table_of_names_at_the_top_says_what_their_docstrings_do(tff):
    text = (PAGES / "index.md").read_text()
    told = dict(re.findall(r"^\| \[`(\w+)`\].* \| (.*) \|$", text, re.M))
    assert {*told} == {*tff_perfedavg.__all__} - {*GROUPS} - SAME
    for name, sentence in told.items():
        first = inspect.getdoc(getattr(tff_perfedavg, name)).partition("\n\n")[0]
        assert sentence == " ".join(first.split()), name


def test_paths_lead_to_what_they_name(tff):
    for page in ("index", *GROUPS):
        for path in re.findall(
            r"^::: (\S+)$", (PAGES / f"{page}.md").read_text(), re.M
        ):
            module, _, name = path.rpartition(".")
            assert getattr(__import__(module, fromlist=[name]), name) is not None


@pytest.mark.parametrize("page", ["index", *GROUPS])
def test_examples_run_and_give_what_they_show(runtime, monkeypatch, page):
    monkeypatch.setattr(local_runtime, "LocalRuntime", lambda: runtime)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(
        str(PAGES / f"{page}.md"), module_relative=False, optionflags=flags
    )
    assert found.attempted > 5
    assert found.failed == 0
