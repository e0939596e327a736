"""File format of personal weights: model identity, float32 weights, checksum.

A file is a magic word, the model's identity, the number of weights as a little-endian
uint64, the weights as little-endian float32 in order, and the SHA-256 of all that.
"""

from __future__ import annotations

import math
import pathlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.ondevice import hashed_file

_MAGIC = b"PFAW0002"
# The same with the SHA-256 of the model file, which had no identity in version 0.1.0.
_MAGIC_OF_FILE = b"PFAW0001"
_HEADER = struct.Struct("<8s32sQ")
_WHAT = "personal weights"


class Owner(NamedTuple):
    """The model that personal weights belong to.

    Attributes:
      path: its file, for messages.
      model_id: its identity, in hexadecimal; None for a file of version 0.1.0.
      digest: the SHA-256 of its file.
    """

    path: pathlib.Path
    model_id: str | None
    digest: bytes


def packed(weights: Sequence[np.ndarray], owner: Owner) -> bytes:
    """Serializes weights to the content of a file, but for its checksum.

    Args:
      weights: arrays in the model's order, written as float32.
      owner: the model that they belong to.
    """
    flat = np.concatenate([w.ravel() for w in weights]).astype("<f4")
    if owner.model_id is None:
        header = _HEADER.pack(_MAGIC_OF_FILE, owner.digest, flat.size)
    else:
        header = _HEADER.pack(_MAGIC, bytes.fromhex(owner.model_id), flat.size)
    return header + flat.tobytes()


def write(path: pathlib.Path, body: bytes) -> None:
    """Writes what `packed` returned to a file, whole or not at all.

    Args:
      path: the file.
      body: what `packed` returned.

    Raises:
      CheckpointError: if the file cannot be written.
    """
    hashed_file.write(path, body, _WHAT)


def read(
    path: pathlib.Path, shapes: Sequence[tuple[int, ...]], owner: Owner
) -> list[np.ndarray]:
    """Returns the weights of a file.

    Args:
      path: the file.
      shapes: of the owner's weights.
      owner: whose they should be.

    Raises:
      CheckpointError: naming the file, if it is missing, damaged, or belongs to another
        model.
    """
    body = _body(path)
    magic, found, count = _HEADER.unpack_from(body)
    if magic == _MAGIC_OF_FILE and found != owner.digest:
        raise errors.CheckpointError(
            f"{path} has the weights of another model file than {owner.path}; load it "
            "with the very file it was saved with, or adapt this one anew."
        )
    if magic == _MAGIC and found.hex() != owner.model_id:
        raise errors.CheckpointError(
            f"{path} has the weights of another model than {owner.path}; adapt this "
            "one anew."
        )
    flat = np.frombuffer(body, "<f4", offset=_HEADER.size)
    sizes = [math.prod(shape) for shape in shapes]
    if not len(flat) == count == sum(sizes):
        raise errors.CheckpointError(
            f"{path} has {len(flat)} weights; {owner.path} has {sum(sizes)}."
        )
    parts = zip(np.split(flat, np.cumsum(sizes)[:-1]), shapes, strict=True)
    return [part.reshape(shape) for part, shape in parts]


def _body(path: pathlib.Path) -> bytes:
    """A file's content without its checksum, which is right."""
    body, is_whole = hashed_file.read(path, _WHAT)
    if len(body) < _HEADER.size or body[:8] not in (_MAGIC, _MAGIC_OF_FILE):
        raise errors.CheckpointError(
            f"{path} is no file of personal weights, or was cut short."
        )
    if not is_whole:
        raise errors.CheckpointError(
            f"{path} is damaged or was cut short; adapt the model anew."
        )
    return body
