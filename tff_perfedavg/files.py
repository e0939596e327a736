"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

_UNFINISHED = ".unfinished"
_BLOCK_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file that appears at `path`, whole, when the block ends well.

    A block that fails, or a process killed inside it, leaves what was at `path`
    before. Missing directories are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are as public as any other file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a directory to fill that appears at `path` when the block ends well.

    The block must sync the files it writes. A block that fails leaves nothing; a
    process killed inside it leaves a hidden directory beside `path`.

    Raises:
      FileExistsError: if something is at `path` already.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        sync_directory(temporary)
        os.chmod(temporary, 0o777 & ~_umask())
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def remove_unfinished(directory: pathlib.Path) -> None:
    """Removes what writers leave in a directory that were killed in `atomic_write`.

    No writer of files in it may be at work.
    """
    for path in directory.glob(f".*{_UNFINISHED}"):
        path.unlink()


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock file for the block; the kernel lets go of it if the process dies.

    Raises:
      BlockingIOError: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def sync_directory(path: pathlib.Path) -> None:
    """Makes the names in a directory durable."""
    sync_file(path)


def sync_file(path: pathlib.Path) -> None:
    """Makes a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
