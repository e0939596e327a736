"""Atomic writes of files and directories, file locks and hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

_UNFINISHED = ".unfinished"
# Where the system does not tell what new files are allowed.
_MOST_PRIVATE = 0o077
_BLOCK_BYTES = 1 << 20
# Characters of a name that its hidden file keeps: names have 255 bytes at most.
_MOST_NAMED = 50
# Directories in which this process looked for what killed writers left. Once each:
# one with a file for every user may have a million entries.
_cleaned: set[pathlib.Path] = set()


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, *, is_secret: bool = False) -> Iterator[IO[bytes]]:
    """Writes a file atomically: it appears at `path`, whole, when the block ends well.

    A block that fails, or a process killed inside it, leaves what was at `path`
    before. Missing directories are made. What killed writers left beside it is removed
    (see `remove_unfinished`), by a process's first write into a directory.

    Args:
      path: where the file will be; a file that is there is replaced.
      is_secret: whether it is readable by its owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.absolute() not in _cleaned:
        _cleaned.add(path.parent.absolute())
        remove_unfinished(path.parent)
    temporary, descriptor = _claim(
        lambda: pathlib.Path(_make_file(path)), os.O_RDWR | os.O_CLOEXEC
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes files private; results are as public as any other file.
            if not is_secret:
                os.chmod(temporary, 0o666 & ~_umask())
            # Before the lock ends with the file, or another might remove it.
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Writes a directory atomically: it appears at `path` when the block ends well.

    The block must sync the files it writes. A block that fails leaves nothing; a
    process killed inside it leaves a hidden directory beside `path`, which the next
    `atomic_directory` there removes.

    Raises:
      FileExistsError: if something is at `path` already, or was put there meanwhile.
      NotADirectoryError: if a file is where a directory above it is needed.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:
        raise NotADirectoryError(
            errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)
        ) from e
    remove_unfinished(path.parent)
    temporary, descriptor = _claim(
        lambda: pathlib.Path(
            tempfile.mkdtemp(_UNFINISHED, f".{path.name[:_MOST_NAMED]}.", path.parent)
        ),
        os.O_RDONLY | os.O_CLOEXEC,
    )
    try:
        yield temporary
        sync_directory(temporary)
        os.chmod(temporary, 0o777 & ~_umask())
        try:
            os.rename(temporary, path)
        except OSError as e:
            # What the kernel says of a directory with something in it, and of a file.
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(path)
                ) from e
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


def remove_unfinished(directory: pathlib.Path) -> None:
    """Removes stale temporaries, which writers killed in an atomic write left.

    A writer holds a lock on its hidden file or directory, which the kernel releases
    when the writer ends, so that those of writers at work stay. They stay, too, where
    the file system has no locks.
    """
    for path in directory.glob(f".*{_UNFINISHED}"):
        # Gone meanwhile, or another user's.
        with contextlib.suppress(OSError):
            is_directory = path.is_dir() and not path.is_symlink()
            access = os.O_RDONLY | os.O_DIRECTORY if is_directory else os.O_RDWR
            descriptor = os.open(
                path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between opening and locking its writer may have finished.
                if _is_at(descriptor, path):
                    if is_directory:
                        shutil.rmtree(path)
                    else:
                        path.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive file lock (flock) for the block, without waiting for it.

    The kernel releases it if the process dies.

    Raises:
      BlockingIOError: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def in_turn(path: pathlib.Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Waits for a file lock (flock), holds it for the block, and removes its file.

    Does nothing where the file system has no locks.

    Args:
      path: of the lock file; missing directories are made.
      on_wait: called once if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _lock(descriptor, wait=False):
                on_wait()
                on_wait = _nothing
                _lock(descriptor, wait=True)
            # The one before us removes it at its end; then it is nobody's lock.
            if not _is_at(descriptor, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def sync_directory(path: pathlib.Path) -> None:
    """Syncs a directory (fsync): makes the names in it durable."""
    sync_file(path)


def sync_file(path: pathlib.Path) -> None:
    """Syncs a file (fsync): makes its content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _claim(make: Callable[[], pathlib.Path], access: int) -> tuple[pathlib.Path, int]:
    """Makes a hidden file or directory and locks it before anyone removes it.

    Returns:
      Its path, and the descriptor that holds the lock.
    """
    while True:
        path = make()
        # Until it is locked it looks like that of a killed writer.
        try:
            descriptor = os.open(path, access)
        except FileNotFoundError:
            continue
        _lock(descriptor, wait=True)
        if _is_at(descriptor, path):
            return path, descriptor
        os.close(descriptor)


def _make_file(path: pathlib.Path) -> str:
    descriptor, temporary = tempfile.mkstemp(
        _UNFINISHED, f".{path.name[:_MOST_NAMED]}.", path.parent
    )
    os.close(descriptor)
    return temporary


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Returns False if another process holds the lock and we do not wait."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as e:
        # File systems without locks; over a network also those of directories.
        if e.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
            raise
    return True


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _nothing() -> None:
    pass


def _umask() -> int:
    # Asking the system call sets it, for a moment, for all threads of the process.
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return _MOST_PRIVATE
