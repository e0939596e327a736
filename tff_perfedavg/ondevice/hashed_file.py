"""Small files with a trailing SHA-256 checksum."""

from __future__ import annotations

import hashlib
import pathlib

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write

_DIGEST_BYTES = 32


def sealed(body: bytes) -> bytes:
    """Returns content with its SHA-256 checksum appended."""
    return body + hashlib.sha256(body).digest()


def write(
    path: pathlib.Path, body: bytes, what: str, *, is_secret: bool = False
) -> None:
    """Writes content and its checksum, whole or not at all.

    Args:
      path: the file.
      body: the content.
      what: the content's name, for messages.
      is_secret: whether its owner alone may read it.

    Raises:
      CheckpointError: if the file cannot be written.
    """
    try:
        with atomic_write(path, is_secret=is_secret) as file:
            file.write(sealed(body))
    except OSError as e:
        raise errors.CheckpointError(
            f"{what.capitalize()} cannot be written to {path} ({e}); what was there "
            "before is as it was."
        ) from e


def read(path: pathlib.Path, what: str) -> tuple[bytes, bool]:
    """Returns a file's content, and whether its checksum is right.

    Args:
      path: the file.
      what: the content's name, for messages.

    Raises:
      CheckpointError: if the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise errors.CheckpointError(f"No {what} can be read at {path} ({e}).") from e
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return body, hashlib.sha256(body).digest() == digest
