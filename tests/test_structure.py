"""The house stands: floors import downwards, and only the upper ones know TFF."""

import ast
import functools
import pathlib
import re
import sys
import types

import pytest

import tff_perfedavg
from tff_perfedavg.algorithms import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = pathlib.Path(tff_perfedavg.__file__).parent
# What each floor may import, beside itself and the ground all stand on.
BELOW = {
    "errors": set(),
    "files": set(),
    "progress": set(),
    "quiet": set(),
    "settings": set(),
    "data": set(),
    "models": set(),
    "lazy": set(),
    "optimization": {"models"},
    "algorithms": {"optimization", "models"},
    "fleet": set(),
    "runtime": {"data"},
    "federated": {"algorithms", "optimization", "models", "data"},
    "ondevice": {"algorithms", "optimization", "models"},
    "commands": {
        "ondevice",
        "models",
        "experiments",
        "runtime",
        "fleet",
        "algorithms",
        "optimization",
        "data",
    },
    "__main__": {"commands"},
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
GROUND = {"errors", "files", "lazy", "progress", "quiet", "settings", "__version__"}
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
KNOWS_TFF = {"federated", "runtime", "experiments", "commands"}
# What takes its time to load; commands check their flags before.
HEAVY = {
    "dp_accounting",
    "matplotlib",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "tensorflow",
    "tensorflow_federated",
}
MOST_LINES, MOST_PARAMETERS = 60, 6
# Functions beyond one of the two, and why.
LONG = {
    # The settings of TFF's own builders, by the same names.
    "federated/builders.py:build_process",
    # What TFF's client data leave to say: their split, names and number.
    "federated/tff_datasets.py:users_from_client_data",
}
# What names a command or a flag below the top floor, and why.
NAMES_COMMANDS = {
    # Flags of TFF's worker.
    "runtime/worker_process.py:--port=",
    "runtime/worker_process.py:--max_concurrent_computation_calls=",
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        yield from imports_of_statement(node)


def imports_of_statement(node):
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


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


def functions_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_parameters(function):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    rest = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return sum(a.arg not in ("self", "cls") for a in [*named, *rest])


def test_functions_fit_a_screen_and_take_few_arguments():
    long = {
        f"{path.relative_to(PACKAGE)}:{function.name}"
        for path in PACKAGE.rglob("*.py")
        for function in functions_of(path)
        if function.end_lineno - function.lineno >= MOST_LINES
        or num_parameters(function) > MOST_PARAMETERS
    }
    # One that is mended leaves the list.
    assert long == LONG


def public_functions(tree):
    """Functions of a module and methods of its classes, but for what is private."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_public_functions_tell_of_each_argument():
    """Of two and more; one that overrides another's has no text of its own."""
    lacking = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for function in public_functions(ast.parse(path.read_text())):
            told = ast.get_docstring(function)
            if told is None or num_parameters(function) < 2:
                continue
            _, _, arguments = told.partition("Args:")
            named = [*function.args.args, *function.args.kwonlyargs]
            lacking += [
                f"{path.relative_to(PACKAGE)}:{function.name}: {argument.arg}"
                for argument in named
                if argument.arg not in ("self", "cls")
                and not re.search(rf"\b{argument.arg}\b.*:", arguments)
            ]
    assert not lacking


def test_lower_floors_name_no_command_and_no_flag():
    found = {
        f"{path.relative_to(PACKAGE)}:{name}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("experiments", "commands")
        for name in re.findall(r"--[a-z]\w*=?|scripts/\w+", path.read_text())
    }
    assert found == NAMES_COMMANDS


@functools.cache
def imported_at_once(path):
    """What a file imports outside functions, by name."""
    statements = ast.parse(path.read_text()).body
    return frozenset().union(*map(imports_of_statement, statements))


@functools.cache
def files_of_module(name):
    # Of `from a.b import c`: c may be a module, or stand in one.
    places = [PACKAGE.parent.joinpath(*name.split("."))]
    places.append(places[0].parent)
    files = [f for p in places for f in (p.with_suffix(".py"), p / "__init__.py")]
    return [f for f in files if f.is_file() and f.is_relative_to(PACKAGE)]


def loaded_at_once(path):
    """What loading a file imports, all the way, and which file does."""
    found, seen, left = {}, set(), [path]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            for name in imported_at_once(file):
                found.setdefault(name, file)
                left += files_of_module(name)
    return found


def test_commands_load_nothing_heavy_before_their_flags_are_checked():
    commands = {*(PACKAGE.parent / "scripts").glob("*.py")}
    # Nobody waits for a benchmark's flags.
    commands -= {*(PACKAGE.parent / "scripts").glob("benchmark_*.py")}
    commands |= {*(PACKAGE / "commands").glob("*.py"), PACKAGE / "__main__.py"}
    assert len(commands) > 10
    for command in commands:
        loaded = loaded_at_once(command)
        heavy = {name: by for name, by in loaded.items() if name.split(".")[0] in HEAVY}
        assert not heavy, f"{command.name} imports at once, by these files: {heavy}"


def test_every_public_name_is_there(tff):
    groups = 0
    for name in tff_perfedavg.__all__:
        found = getattr(tff_perfedavg, name)
        assert found is not None
        if isinstance(found, types.ModuleType):
            groups += 1
            for deeper in found.__all__:
                assert getattr(found, deeper) is not None
    # A dozen names, and where the others are.
    assert len(tff_perfedavg.__all__) - groups <= 15
    with pytest.raises(AttributeError, match="'tff_perfedavg' has no attribute 'no'"):
        tff_perfedavg.no  # noqa: B018


def test_every_algorithm_is_a_public_name():
    configs = {config.__name__ for config in registry.ALGORITHMS.values()}
    assert configs == {*tff_perfedavg.algorithms.__all__}


def test_modules_of_public_names_are_checked_strictly():
    stubs = [path.read_text() for path in PACKAGE.rglob("__init__.pyi")]
    found = re.findall(r"^from (tff_perfedavg\.\S+) import", "\n".join(stubs), re.M)
    packages = {"tff_perfedavg"}
    for path in PACKAGE.glob("*/__init__.pyi"):
        packages.add(f"tff_perfedavg.{path.parent.name}")
    settings = (PACKAGE.parent / "pyproject.toml").read_text()
    strict = settings.partition("[[tool.mypy.overrides]]")[2].partition("]\n")[0]
    assert {*re.findall(r'"(tff_perfedavg\.\S+)"', strict)} == {*found} - packages


def test_names_of_version_0_1_0_still_answer(tff):
    for name, group in tff_perfedavg._MOVED.items():
        assert name not in tff_perfedavg.__all__
        assert name in getattr(tff_perfedavg, group).__all__
        moved = getattr(getattr(tff_perfedavg, group), name)
        assert getattr(tff_perfedavg, name) is moved


def test_build_lists_every_test_once():
    root = PACKAGE.parent
    build = (root / "BUILD").read_text()
    listed = re.findall(r'^    "(test_\w+)",$', build, re.M)
    there = {path.stem for path in root.glob("tests/test_*.py")}
    missing = there - {*listed}
    assert not missing, f"Not in LIGHT_TESTS or HEAVY_TESTS of BUILD: {missing}"
    assert sorted(listed) == sorted(there)
    # What tests share; `run_pytest.py` is what Bazel starts.
    shared = re.findall(r'^        "tests/(\w+\.py)",$', build, re.M)
    others = {p.name for p in root.glob("tests/*.py")} - {f"{n}.py" for n in listed}
    assert sorted(shared) == sorted(others - {"run_pytest.py"})


def test_every_file_of_the_package_is_built_into_it():
    """That Bazel's library and the wheel have what is no Python module, too."""
    root = PACKAGE.parent
    others = [
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert len(others) > 5
    build = (root / "BUILD").read_text()
    of_bazel = re.findall(r'^        "tff_perfedavg/(.*)",$', build, re.M)
    project = tomllib.loads((root / "pyproject.toml").read_text())
    of_wheel = project["tool"]["setuptools"]["package-data"]["tff_perfedavg"]
    for patterns in (of_bazel, of_wheel):
        # `**/` stands for no directory, too.
        last = [pattern.removeprefix("**/") for pattern in patterns]
        left = [p for p in others if not any(p.match(pattern) for pattern in last)]
        assert not left


def test_every_name_that_the_docs_tell_is_public():
    root = PACKAGE.parent
    told = {
        (path.name, name)
        for path in [root / "README.md", *root.glob("docs/**/*.md")]
        for name in re.findall(r"\bpfa\.(\w+(?:\.\w+)?)", path.read_text())
    }
    assert len(told) > 20
    unknown = {(page, name) for page, name in told if not is_public(name)}
    assert not unknown


def test_links_and_images_of_the_readme_lead_to_files():
    root = PACKAGE.parent
    text = (root / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    images = re.findall(r'<img src="([^"]+)"', text)
    assert len(links) > 15
    assert images
    assert not [name for name in {*links, *images} if not (root / name).exists()]


def is_public(name):
    """Whether `pfa.NAME` is told: at the top, or in one of its groups."""
    first, _, second = name.partition(".")
    group = getattr(tff_perfedavg, first, None)
    if first not in tff_perfedavg.__all__:
        return False
    is_group = isinstance(group, types.ModuleType)
    return not is_group or not second or second in group.__all__


def test_every_test_that_the_docs_tell_is_there():
    root = PACKAGE.parent
    told = re.findall(r"`(test_\w+)`", (root / "docs/algorithms.md").read_text())
    tests = "".join(path.read_text() for path in root.glob("tests/test_*.py"))
    assert len(told) > 15
    assert not [name for name in told if f"def {name}(" not in tests]
