"""TensorFlow, loaded when something of it is first used.

For modules whose settings commands read before they load any framework.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING


class _Lazy(types.ModuleType):
    """Stands for a module until an attribute of it is asked for."""

    def __getattr__(self, name: str):
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = _Lazy("tensorflow")
