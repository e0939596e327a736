"""Memory-mapped store of users' adapted weights."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.data.verified_directory import read_header, verify, written_whole
from tff_perfedavg.files import sha256, sync_file

_FORMAT_VERSION = 1
_AGAIN = "personalize again"
_JSON, _WEIGHTS, _USERS = "personalized.json", "weights.bin", "users.npy"


class PersonalizedStore:
    """Adapted weights of users, memory-mapped: one row of numbers each.

    A directory: `personalized.json` (format version, shapes, what they were adapted
    from and how, SHA-256 of the rest), `users.npy` (int64 `[users]`, ascending) and
    `weights.bin` (float32 `[users, weights]`).
    """

    def __init__(self, path: pathlib.Path, header: dict[str, Any]):
        """Use `PersonalizedStore.open` or `PersonalizedStore.write`."""
        self.path = path
        self._header = header
        self.users = np.load(path / _USERS)
        size = sum(int(np.prod(shape)) for shape in header["shapes"])
        self._rows = np.memmap(
            path / _WEIGHTS, np.float32, "r", shape=(len(self.users), size)
        )

    @classmethod
    def open(cls, path: str | os.PathLike) -> PersonalizedStore:
        """Opens a store.

        Raises:
          DataError: naming the file, if it is missing, altered in size, unreadable or
            of another format version.
        """
        path = pathlib.Path(path)
        missing = errors.DataError(
            f"No personalized weights at {path}; write them with "
            "scripts/personalize.py."
        )
        header = read_header(
            path, _JSON, _FORMAT_VERSION, missing=missing, again=_AGAIN
        )
        return cls(path, header)

    @classmethod
    def write(
        cls,
        path: str | os.PathLike,
        users: np.ndarray,
        adapted: Iterable[Sequence[np.ndarray]],
        provenance: Mapping[str, Any],
    ) -> PersonalizedStore:
        """Writes a store user by user, and opens it.

        The directory appears whole when the last user is written.

        Args:
          path: where the directory will be; nothing may be there.
          users: int64 `[users]`, numbers in ascending order, at least one.
          adapted: each user's weights, in this order.
          provenance: what they come from, as JSON takes it.

        Raises:
          DataError: if something is at the path, a file is where a directory is needed,
            or the disk does not take it.
        """
        path = pathlib.Path(path)
        with written_whole(path) as directory:
            _fill(directory, users, adapted, provenance)
        return cls.open(path)

    def verify(self) -> None:
        """Reads all files and checks their hashes.

        Raises:
          DataError: naming the first file whose content has changed.
        """
        verify(self.path, self._header, again=_AGAIN)

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance of the weights: the adaptation, and what the writer added."""
        return self._header["provenance"]

    def weights(self, user: int) -> list[np.ndarray]:
        """Returns a user's adapted weights, float32.

        Raises:
          DataError: if there are none of this user.
        """
        place = int(np.searchsorted(self.users, user))
        if place == len(self.users) or self.users[place] != user:
            raise errors.DataError(
                f"{self.path} has no weights of user {user}; it has "
                f"{len(self.users)} users, {self.users[0]} to {self.users[-1]}."
            )
        row, weights, offset = self._rows[place], [], 0
        for shape in self._header["shapes"]:
            size = int(np.prod(shape))
            weights.append(np.array(row[offset : offset + size]).reshape(shape))
            offset += size
        return weights


def _fill(
    directory: pathlib.Path,
    users: np.ndarray,
    adapted: Iterable[Sequence[np.ndarray]],
    provenance: Mapping[str, Any],
) -> None:
    np.save(directory / _USERS, users)
    shapes: list[list[int]] = []
    with open(directory / _WEIGHTS, "wb") as file:
        for weights in adapted:
            shapes = [list(np.shape(w)) for w in weights]
            for w in weights:
                file.write(np.asarray(w, np.float32).tobytes())
    header = {
        "format_version": _FORMAT_VERSION,
        "shapes": shapes,
        "provenance": dict(provenance),
        "files": {n: _facts(directory / n) for n in (_USERS, _WEIGHTS)},
    }
    (directory / _JSON).write_text(json.dumps(header, indent=1))
    for name in (_USERS, _WEIGHTS, _JSON):
        sync_file(directory / name)


def _facts(path: pathlib.Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
