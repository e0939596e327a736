"""Lazy imports: TensorFlow, and names of packages, loaded on first use.

For what commands and users import before anything of it is needed.
"""

from __future__ import annotations

import ast
import importlib
import pathlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

# Says to type checkers that `tf` is for others.
__all__ = ["names_of", "tf"]


class _Lazy(types.ModuleType):
    """Lazy module: loaded when an attribute of it is first asked for."""

    def __getattr__(self, name: str):
        return getattr(importlib.import_module(self.__name__), name)


def names_of(
    package: str, moved: Mapping[str, str] = types.MappingProxyType({})
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns a package's lazy `__getattr__`, `__dir__` and `__all__` (PEP 562).

    The names are those that the package's `__init__.pyi` imports, where editors and
    type checkers see them. They are loaded once they are asked for.

    Args:
      package: the package's name.
      moved: where names are that were here once, which still answer but are not told:
        from a name to a package below this one.

    Raises:
      AttributeError: of `__getattr__`, for a name that is not there.
    """
    homes = _imported(pathlib.Path(sys.modules[package].__file__ or ""))
    everything = sorted(homes)

    def load(name: str) -> Any:
        if homes.get(name) == package:
            found = importlib.import_module(f"{package}.{name}")
        elif name in homes:
            found = getattr(importlib.import_module(homes[name]), name)
        elif name in moved:
            found = getattr(importlib.import_module(f"{package}.{moved[name]}"), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, found)
        return found

    return load, lambda: everything, everything


def _imported(module: pathlib.Path) -> dict[str, str]:
    """Returns the names that a module's stub imports, and from where."""
    stub = ast.parse(module.with_suffix(".pyi").read_text())
    return {
        alias.name: node.module or ""
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


if TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = _Lazy("tensorflow")
