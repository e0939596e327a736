"""The house stands: floors import downwards, and only the upper ones know TFF."""

import ast
import pathlib
import re

import tff_perfedavg

PACKAGE = pathlib.Path(tff_perfedavg.__file__).parent
# What each floor may import, beside itself and the ground all stand on.
BELOW = {
    "errors": set(),
    "files": set(),
    "progress": set(),
    "quiet": set(),
    "data": set(),
    "models": set(),
    "lazy": set(),
    "optimization": {"models"},
    "algorithms": {"optimization", "models"},
    "fleet": set(),
    "runtime": {"data"},
    "federated": {"algorithms", "optimization", "models", "data"},
    "ondevice": {"algorithms", "optimization", "models"},
    "experiments": {
        "federated",
        "runtime",
        "fleet",
        "ondevice",
        "algorithms",
        "optimization",
        "models",
        "data",
    },
}
GROUND = {"errors", "files", "lazy", "progress", "quiet", "__version__"}
# The wings of the top floor: each may import those before it.
WINGS = (
    "settings",
    "assemble",
    "files",
    "evaluation",
    "training",
    "deploy",
    "report",
    "study",
)
KNOWS_TFF = {"federated", "runtime", "experiments"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def test_imports_point_downwards():
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        floor = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if floor == "__init__":
            continue
        seen.add(floor)
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "tff_perfedavg":
                allowed = BELOW[floor] | GROUND | {floor}
                assert parts[1] in allowed, f"{path} imports {name}"
            if parts[0] == "tensorflow_federated":
                assert floor in KNOWS_TFF, f"{path} imports TFF"
    assert seen == set(BELOW)


def test_wings_import_one_way():
    top = PACKAGE / "experiments"
    assert {p.name for p in top.iterdir() if p.is_dir()} - {"__pycache__"} == {*WINGS}
    for path in top.rglob("*/*.py"):
        wing = WINGS.index(path.relative_to(top).parts[0])
        for name in imports_of(path):
            if name.startswith("tff_perfedavg.experiments."):
                imported = name.split(".")[2]
                assert imported in WINGS[: wing + 1], f"{path} imports {name}"


def test_every_public_name_is_there(tff):
    for name in tff_perfedavg.__all__:
        assert getattr(tff_perfedavg, name) is not None


def test_build_lists_every_test_once():
    root = PACKAGE.parent
    listed = re.findall(r'^    "(test_\w+)",$', (root / "BUILD").read_text(), re.M)
    assert sorted(listed) == sorted(p.stem for p in root.glob("tests/test_*.py"))


def test_every_name_that_the_docs_tell_is_public():
    root = PACKAGE.parent
    told = {
        (path.name, name)
        for path in [root / "README.md", *root.glob("docs/**/*.md")]
        for name in re.findall(r"\bpfa\.(\w+)", path.read_text())
    }
    assert len(told) > 20
    unknown = {(page, name) for page, name in told if name not in public_names()}
    assert not unknown


def public_names():
    return {*tff_perfedavg.__all__}
