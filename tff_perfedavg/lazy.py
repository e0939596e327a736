"""TensorFlow, and names of packages, loaded when they are first used.

For what commands and users import before anything of it is needed.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any


class _Lazy(types.ModuleType):
    """Stands for a module until an attribute of it is asked for."""

    def __getattr__(self, name: str):
        return getattr(importlib.import_module(self.__name__), name)


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a package's `__getattr__`: names are there once they are asked for.

    Args:
      package: the package's name.
      homes: from a name to the module, below the package, that has it.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return load


if TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = _Lazy("tensorflow")
