"""Checksummed directories: a header has size and SHA-256 of every other file."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_directory, sha256


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Writes a directory atomically: it appears at `path` when the block ends well.

    Raises:
      DataError: if something is at the path, a file is where a directory is needed, or
        the disk does not take it.
    """
    try:
        with atomic_directory(path) as directory:
            yield directory
    except FileExistsError as e:
        raise errors.DataError(
            f"{path} exists already; remove it or choose another place."
        ) from e
    except NotADirectoryError as e:
        raise errors.DataError(
            f"{path} could not be written: a file is where a directory is needed; "
            "choose another place."
        ) from e
    except OSError as e:
        raise errors.DataError(
            f"{path} could not be written ({e.strerror or e}); nothing of it was "
            "kept. Free some space or choose another disk."
        ) from e


def read_header(
    path: pathlib.Path,
    name: str,
    version: int,
    *,
    missing: errors.DataError,
    again: str,
) -> dict[str, Any]:
    """Reads a directory's header and checks the size of every file.

    Args:
      path: the directory.
      name: of the header, a JSON file with `format_version` and, under `files`, `bytes`
        and `sha256` of each by name.
      version: the format version that is read.
      missing: raised where there is no header.
      again: what to do about damage, for example `prepare the data again`.

    Raises:
      DataError: naming the file, if it is missing, of another size than it was written
        with, unreadable or of another format version; or if `files` says not of each
        what its size and hash are.
    """
    try:
        header = json.loads((path / name).read_text())
        found = header["format_version"]
        files = header["files"] if found == version else {}
    except FileNotFoundError as e:
        raise missing from e
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise errors.DataError(f"{path / name} is unreadable: {e}.") from e
    if found != version:
        raise errors.DataError(
            f"{path} has format version {found}; this version of the library reads "
            f"{version}. {again.capitalize()}."
        )
    if not isinstance(files, dict):
        raise errors.DataError(f"{path / name}: 'files' is {files!r}; {again}.")
    for file_name, facts in files.items():
        if not _are_facts(facts):
            raise errors.DataError(
                f"{path / name}: {file_name} is {facts!r}, without its bytes or "
                f"sha256; {again}."
            )
        file = path / file_name
        if not file.is_file():
            raise errors.DataError(f"{file} is missing; {again}.")
        size = file.stat().st_size
        if size != facts["bytes"]:
            raise errors.DataError(
                f"{file} has {size} bytes where {facts['bytes']} were written; {again}."
            )
    return header


def verify(path: pathlib.Path, header: dict[str, Any], *, again: str) -> None:
    """Verifies the SHA-256 of every file in a directory.

    Args:
      path: the directory.
      header: from `read_header`.
      again: what to do about damage, for example `prepare the data again`.

    Raises:
      DataError: naming the first file whose content has changed.
    """
    for name, facts in header["files"].items():
        if sha256(path / name) != facts["sha256"]:
            raise errors.DataError(
                f"{path / name} is not what was written (its SHA-256 differs); {again}."
            )


def _are_facts(facts: Any) -> bool:
    """Whether a header's entry of a file has what was written of it."""
    return (
        isinstance(facts, dict)
        and isinstance(facts.get("bytes"), int)
        and isinstance(facts.get("sha256"), str)
    )
