"""What a machine can serve is not skipped there, nor passed over in silence."""

import pathlib
import re
import subprocess
import sys

import pytest

from tests import needs

TESTS = pathlib.Path(__file__).parent


def test_only_what_a_machine_can_serve_is_needed_there(monkeypatch):
    monkeypatch.setenv(needs.VARIABLE, "data root")
    assert needs.is_needed("data: it is not there")
    assert needs.is_needed("root: nobody is")
    assert not needs.is_needed("browser: none")
    assert not needs.is_needed("data of another kind")
    monkeypatch.delenv(needs.VARIABLE)
    assert not needs.is_needed("data: it is not there")


@pytest.mark.parametrize(("needed", "code"), [("", 0), ("root data", 1)])
def test_skips_are_counted_and_fail_where_they_are_needed(tmp_path, needed, code):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.skipif(True, reason='data: none')\n"
        "def test_one(): pass\n"
        "def test_two(): pytest.skip('data: none')\n"
        "def test_three(): pytest.skip('browser: none')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={"PATH": "", needs.VARIABLE: needed},
    )
    assert done.returncode == code, done.stdout
    assert "    1 browser: none" in done.stdout
    assert ("    2 data: none" in done.stdout) == (code == 0)
    assert done.stdout.count("Skipped where it must run: data: none") == 2 * code


def test_every_skip_says_what_it_wants():
    asked = re.compile(r"pytest\.skip\(\s*f?\"(.*?)[\":]|skipif\(", re.DOTALL)
    kinds = {"{BROWSER}", "root of a user namespace that knows of nobody else"}
    for path in TESTS.glob("*.py"):
        if path.name not in ("needs.py", pathlib.Path(__file__).name):
            found = {match[1] for match in asked.finditer(path.read_text())}
            assert found <= kinds, path
