"""Reader of PyTorch's legacy `state_dict` files, by a restricted unpickler.

PyTorch is not needed. Its files before 1.6 are five pickles (a magic number, the
protocol's version, what the machine was, the weights by name, the keys of their
storages) and then the storages, a count and the numbers each. A pickle can run anything
it names; these may name the few classes below, and nothing else.
"""

from __future__ import annotations

import collections
import os
import pathlib
import pickle
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tff_perfedavg import errors

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
}


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """The place behind its last number."""
        if 0 in self.shape:
            return self.offset
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + 1 + sum((size - 1) * step for size, step in steps)

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns its part of a storage, as an array of its own."""
        strides = [step * numbers.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, strides, writeable=False
        ).copy()


def _view(storage, offset, shape, strides, *_) -> _View:
    return _View(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if module == "torch" and name in _TYPES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array's")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, size = pid[:5]
        if kind != "storage":
            raise pickle.UnpicklingError(f"it keeps a {kind!r}, which is no array's")
        return _Storage(storage, key, size)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a `state_dict` as arrays by name, in the file's order.

    Args:
      path: a file that `torch.save` of PyTorch before 1.6, or of later ones with
        `_use_new_zipfile_serialization=False`, wrote of a `state_dict`.

    Raises:
      ModelError: naming the file, if it cannot be read, is none of these, is cut short
        or names anything but arrays.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as e:
        raise errors.ModelError(
            f"No weights can be read at {path} ({e.strerror or e})."
        ) from e
    except Exception as e:
        # What a damaged pickle holds fails in any way.
        raise errors.ModelError(
            f"{path} holds no weights of PyTorch's first format ({e})."
        ) from e


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    def load() -> Any:
        return _Unpickler(file).load()

    if load() != _MAGIC or load() != _PROTOCOL or not load()["little_endian"]:
        raise ValueError("it begins otherwise")
    views, keys = load(), load()
    kinds = {view.storage.key: view.storage for view in views.values()}
    storages = {key: _numbers(file, kinds[key]) for key in keys}
    found = {}
    for name, view in views.items():
        numbers = storages[view.storage.key]
        lowest = min((view.offset, *view.shape, *view.strides))
        if lowest < 0 or view.end > len(numbers):
            raise ValueError(f"{name} reaches beyond its storage")
        found[name] = view.of(numbers)
    return found


def _numbers(file: BinaryIO, storage: _Storage) -> np.ndarray:
    (count,) = np.frombuffer(file.read(8), "<i8").tolist()
    if count != storage.size:
        raise ValueError(f"storage {storage.key} has {count} numbers, not as it says")
    dtype = np.dtype(_TYPES[storage.kind])
    content = file.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize:
        raise ValueError("it is cut short")
    return np.frombuffer(content, dtype)
