"""Weights in PyTorch's first format, read without PyTorch.

The files are written here as PyTorch's `torch/serialization.py` of version 1.4 does.
"""

import collections
import io
import os
import pickle
import sys
import types

import numpy as np
import pytest

from tff_perfedavg import errors
from tff_perfedavg.models import torch_file

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"f2": "Half", "f4": "Float", "f8": "Double", "i4": "Int", "i8": "Long"}


class Tensor:
    """Stands for a tensor: a view of a storage's numbers."""

    def __init__(self, storage, offset, shape, strides):
        self.arguments = (storage, offset, shape, strides, False, {})


class Storage:
    """Stands for a storage, which a pickle names and does not hold."""

    def __init__(self, numbers, key, size=None, kind="storage"):
        self.numbers, self.key, self.kind = numbers, key, kind
        self.size = len(numbers) if size is None else size


@pytest.fixture
def torch(monkeypatch):
    """The names that a pickle of PyTorch's has."""
    module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        kind = type(f"{name}Storage", (), {"__module__": "torch"})
        setattr(module, kind.__name__, kind)

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("this reads without PyTorch")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return module


def written(torch, weights, magic=MAGIC):
    """The content of a file of weights, `Tensor`s and what else is given, by name."""
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            storages[value.key] = value
            kind = getattr(torch, f"{STORAGES[value.numbers.dtype.str[1:]]}Storage")
            return (value.kind, kind, value.key, "cpu", value.size, None)

        def reducer_override(self, value):
            if isinstance(value, Tensor):
                return torch_utils._rebuild_tensor_v2, value.arguments
            return NotImplemented

    torch_utils = sys.modules["torch._utils"]
    file = io.BytesIO()
    for part in (magic, PROTOCOL, {"little_endian": True}):
        pickle.dump(part, file, protocol=2)
    Pickler(file, protocol=2).dump(collections.OrderedDict(weights))
    pickle.dump(sorted(storages), file, protocol=2)
    for _, storage in sorted(storages.items()):
        file.write(len(storage.numbers).to_bytes(8, "little"))
        file.write(storage.numbers.tobytes())
    return file.getvalue()


def whole(key, array):
    strides = [step // array.itemsize for step in array.strides]
    storage = Storage(array.reshape(-1), key)
    return Tensor(storage, 0, tuple(array.shape), tuple(strides))


@pytest.mark.parametrize("dtype", STORAGES)
def test_arrays_of_every_type_are_read(tmp_path, torch, dtype):
    arrays = {
        "kernel": np.arange(24).reshape(2, 3, 4).astype(dtype),
        "scalar": np.array(7).astype(dtype),
        "empty": np.zeros([0, 3], dtype),
    }
    path = tmp_path / "weights.pth"
    weights = {name: whole(name, array) for name, array in arrays.items()}
    path.write_bytes(written(torch, weights))
    found = torch_file.read(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_views_of_one_storage_are_read(tmp_path, torch):
    numbers = np.arange(12, dtype="f4")
    storage = Storage(numbers, "0")
    path = tmp_path / "weights.pth"
    weights = {
        "turned": Tensor(storage, 0, (4, 3), (1, 4)),
        "behind": Tensor(storage, 8, (2, 2), (2, 1)),
    }
    path.write_bytes(written(torch, weights))
    found = torch_file.read(path)
    np.testing.assert_array_equal(found["turned"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(found["behind"], numbers[8:].reshape(2, 2))
    # Each has its numbers to itself.
    found["turned"][:] = 0
    assert found["behind"][0, 0] == 8


class Command:
    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, torch):
    command = Command()
    command.place = tmp_path / "it ran".replace(" ", "_")
    path = tmp_path / "weights.pth"
    path.write_bytes(written(torch, {"kernel": command}))
    with pytest.raises(errors.ModelError, match=r"pth holds no weights.*system"):
        torch_file.read(path)
    assert not command.place.exists()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda s: Tensor(s, 0, (5,), (1,)), "kernel reaches beyond its storage"),
        (lambda s: Tensor(s, 2, (2, 2), (2, 1)), "kernel reaches beyond its storage"),
        (lambda s: Tensor(s, 3, (2,), (-1,)), "kernel reaches beyond its storage"),
        (lambda s: Tensor(s, -1, (2,), (1,)), "kernel reaches beyond its storage"),
    ],
)
def test_views_of_what_is_not_there_are_refused(tmp_path, torch, tensor, message):
    path = tmp_path / "weights.pth"
    storage = Storage(np.arange(4, dtype="f4"), "0")
    path.write_bytes(written(torch, {"kernel": tensor(storage)}))
    with pytest.raises(errors.ModelError, match=message):
        torch_file.read(path)


def test_storages_that_are_not_as_they_are_said_to_be_are_refused(tmp_path, torch):
    path = tmp_path / "weights.pth"
    numbers = np.arange(4, dtype="f4")
    for storage, message in (
        (Storage(numbers, "0", size=5), "storage 0 has 4 numbers, not as it says"),
        (Storage(numbers, "0", kind="module"), "keeps a 'module'"),
    ):
        path.write_bytes(written(torch, {"kernel": Tensor(storage, 0, (4,), (1,))}))
        with pytest.raises(errors.ModelError, match=message):
            torch_file.read(path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path, torch):
    content = written(torch, {"kernel": whole("0", np.arange(4, dtype="f4"))})
    path = tmp_path / "weights.pth"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(errors.ModelError, match=r"weights\.pth holds no weights"):
            torch_file.read(path)


def test_other_files_are_refused(tmp_path, torch):
    path = tmp_path / "weights.pth"
    with pytest.raises(errors.ModelError, match=r"No weights can be read at .*\(No"):
        torch_file.read(path)
    weights = {"kernel": whole("0", np.arange(4, dtype="f4"))}
    other = written(torch, weights, magic=1)
    for content in (other, b"PK\x03\x04", b"", b"\x80\x02N."):
        path.write_bytes(content)
        with pytest.raises(errors.ModelError, match="PyTorch's first format"):
            torch_file.read(path)
