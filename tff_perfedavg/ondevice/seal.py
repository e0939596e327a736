"""A checksum at the start of a `.tflite` file. Needs the standard library alone.

    bytes 0 to 3     where the flatbuffer's root is
    bytes 4 to 7     TFL3
    bytes 8 to 23    `MARKER`
    bytes 24 to 55   the SHA-256 of the file with these 32 bytes 0

The place is fixed, so that a file is checked before anything reads the flatbuffer, and
at the start, so that a file that was cut short says so. Positions in a flatbuffer are
relative but for the root's: other readers do not notice. A checksum finds damage; it
is no signature, which an attacker could not write anew.
"""

from __future__ import annotations

import hashlib
import pathlib
import struct

from tff_perfedavg import errors

MARKER = b"tff_perfedavg256"
_START = 8
_DIGEST = _START + len(MARKER)
_END = _DIGEST + hashlib.sha256().digest_size
_ROOT = struct.Struct("<I")


def sealed(content: bytes) -> bytes:
    """Returns the content of a `.tflite` file with the checksum in it.

    Args:
      content: the file without it.
    """
    added = _END - _START
    (root,) = _ROOT.unpack_from(content)
    start = _ROOT.pack(root + added) + content[_ROOT.size : _START] + MARKER
    rest = content[_START:]
    blank = start + bytes(_END - _DIGEST) + rest
    return start + hashlib.sha256(blank).digest() + rest


def check(content: bytes, path: pathlib.Path | str) -> bool:
    """Returns whether a file has a checksum; those of version 0.1.0 have none.

    Args:
      content: the file.
      path: where it is, for the message.

    Raises:
      ModelError: naming the file, if its content is not what was written.
    """
    found = content[_START:_DIGEST]
    # Half of the marker, so that a damaged one is not taken for none.
    if 2 * sum(a == b for a, b in zip(found, MARKER, strict=False)) < len(MARKER):
        return False
    blank = content[:_DIGEST] + bytes(_END - _DIGEST) + content[_END:]
    if hashlib.sha256(blank).digest() != content[_DIGEST:_END]:
        raise errors.ModelError(
            f"{path} is damaged or was cut short: its checksum is not that of its "
            "content. Copy or export it again."
        )
    return True
