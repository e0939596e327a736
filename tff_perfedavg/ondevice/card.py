"""Reader of the model card in an exported file's flatbuffer metadata.

Needs the standard library alone. The card is an entry of `Model.metadata`, and reading
that one entry needs five fields of the schema, so that a command can look at a file
before it loads NumPy or a runtime; `flatbuffer.py` reads whole files.
"""

from __future__ import annotations

import json
import pathlib
import struct
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.ondevice import seal

# The name under which `flatbuffer.py` keeps it.
_NAME = b"TFF_PERFEDAVG_CARD"
_IDENTIFIER = b"TFL3"
# Fields of the schema's tables, by number.
_MODEL_BUFFERS, _MODEL_METADATA = 4, 6
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_BUFFER_DATA = 0


def read(path: pathlib.Path) -> tuple[bytes, dict[str, Any]]:
    """Returns an exported file's content and its model card.

    Args:
      path: the file.

    Raises:
      ModelError: naming the file, if it cannot be read, is damaged, or is no file that
        `export_tflite` wrote.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise errors.ModelError(f"No model can be read at {path} ({e}).") from e
    seal.check(content, path)
    if content[4:8] != _IDENTIFIER:
        raise errors.ModelError(
            f"{path} is no TensorFlow Lite file; write one with export_tflite."
        )
    try:
        card = json.loads(_card_text(content))
    except (struct.error, LookupError, ValueError) as e:
        raise errors.ModelError(
            f"{path} has no card, so it was not exported by tff_perfedavg; write one "
            "with export_tflite."
        ) from e
    return content, card


def _card_text(content: bytes) -> bytes:
    """Returns the card; raises `LookupError` where there is none."""
    model = _target(content, 0)
    buffers = _tables(content, model, _MODEL_BUFFERS)
    for entry in _tables(content, model, _MODEL_METADATA):
        if _bytes(content, entry, _METADATA_NAME) == _NAME:
            (number,) = struct.unpack_from(
                "<I", content, _field(content, entry, _METADATA_BUFFER)
            )
            return _bytes(content, buffers[number], _BUFFER_DATA)
    raise LookupError("there is no card")


def _target(content: bytes, place: int) -> int:
    """Returns where an offset leads."""
    return place + struct.unpack_from("<I", content, place)[0]


def _field(content: bytes, table: int, number: int) -> int:
    """Returns where a table's field is; raises `LookupError` where it has none."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    (size,) = struct.unpack_from("<H", content, vtable)
    place = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", content, vtable + place)
    if place >= size or offset == 0:
        raise LookupError(f"field {number} is missing")
    return table + offset


def _tables(content: bytes, table: int, number: int) -> list[int]:
    """Returns where the tables of a field are, a vector of offsets."""
    start = _target(content, _field(content, table, number))
    (count,) = struct.unpack_from("<I", content, start)
    if count > len(content) // 4:
        raise LookupError(f"{count} entries do not fit the file")
    return [_target(content, start + 4 + 4 * i) for i in range(count)]


def _bytes(content: bytes, table: int, number: int) -> bytes:
    start = _target(content, _field(content, table, number))
    (count,) = struct.unpack_from("<I", content, start)
    return content[start + 4 : start + 4 + count]
