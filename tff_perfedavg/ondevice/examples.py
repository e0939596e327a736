"""Ring buffer of a user's examples, balanced by class, some held back for validation.

NumPy alone.
"""

from __future__ import annotations

import io
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.ondevice import hashed_file

# One example of a class in so many is held back, beginning with the second.
_HELD_BACK = 3
_MAGIC = b"PFEX0001"


class Labelled(NamedTuple):
    """Labelled examples of one user.

    Attributes:
      x: `[rows, ...]` features.
      y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor.
    """

    x: np.ndarray
    y: np.ndarray


def held_back(y: np.ndarray) -> np.ndarray:
    """Returns a validation mask by class: the second row of each, the fifth and so on.

    Args:
      y: `[rows]` class numbers; a regressor's numbers count as one class.

    Returns:
      Bool `[rows]`. A class of one row has none.
    """
    chosen = np.zeros(len(y), bool)
    for rows in _by_class(y):
        chosen[rows[1::_HELD_BACK]] = True
    return chosen


def in_turns(y: np.ndarray) -> np.ndarray:
    """Returns the order of rows in round-robin over the classes, int `[rows]`.

    One row of each class, then a second of each, and so on.

    Args:
      y: as `held_back`.
    """
    turns = np.zeros(len(y), int)
    for rows in _by_class(y):
        turns[rows] = np.arange(len(rows))
    return np.argsort(turns, kind="stable")


def _by_class(y: np.ndarray) -> list[np.ndarray]:
    """The numbers of each class's rows, in order."""
    if not _are_classes(y):
        return [np.arange(len(y))]
    return [np.flatnonzero(y == label) for label in np.unique(y)]


def _are_classes(y: np.ndarray) -> bool:
    return y.ndim == 1 and y.dtype.kind in "iu"


class Examples:
    """A ring buffer of a user's newest examples, balanced by class, some held back.

    When it is full, the oldest row of the class that has most goes. Whether a
    row is held back is settled when it comes, and stays: what a model was checked on it
    has not learned.
    """

    def __init__(self, capacity: int, x: np.ndarray, y: np.ndarray):
        """Makes an empty buffer.

        Args:
          capacity: the most rows.
          x: `[0, ...]` of the shape and dtype of features.
          y: `[0, ...]` of labels.

        Raises:
          ConfigError: if there is no room for a row of each of two sides.
        """
        if not capacity >= 2:
            raise errors.ConfigError(
                f"capacity is {capacity!r}; it must be at least 2, a row to learn from "
                "and one to check on."
            )
        self.capacity = int(capacity)
        self._x, self._y = x, y
        self._is_check = np.zeros(0, bool)
        # How many rows of a class ever came, by the class's label.
        self._seen: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._y)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds rows one by one; when full, drops the oldest of the largest class.

        Args:
          x: `[rows, ...]` features.
          y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor.

        Raises:
          ValueError: if there is not a label for each row.
        """
        for row, label in zip(x, y, strict=True):
            key = self._key(label)
            number = self._seen.get(key, 0)
            self._seen[key] = number + 1
            self._x = np.concatenate([self._x, row[np.newaxis]])
            self._y = np.concatenate([self._y, np.asarray(label)[np.newaxis]])
            is_check = number % _HELD_BACK == 1
            self._is_check = np.append(self._is_check, is_check)
            if len(self) > self.capacity:
                self._drop()

    def clear(self) -> None:
        """Removes all rows."""
        self._x, self._y = self._x[:0], self._y[:0]
        self._is_check, self._seen = self._is_check[:0], {}

    def _drop(self) -> None:
        """Removes the oldest row of the class, and of its side, that has most."""
        most = max(_by_class(self._y), key=len)
        sides = [most[self._is_check[most] == side] for side in (False, True)]
        # Of three rows two are to learn from: the side that has more than its share.
        is_many = len(sides[1]) * (_HELD_BACK - 1) > len(sides[0])
        oldest = (sides[1] if is_many else sides[0])[0]
        kept = np.arange(len(self)) != oldest
        self._x, self._y = self._x[kept], self._y[kept]
        self._is_check = self._is_check[kept]

    def to_learn(self) -> Labelled:
        """Returns the rows that are not held back, in the order of `in_turns`."""
        return self._rows(~self._is_check)

    def to_check(self) -> Labelled:
        """Returns the rows held back, in the order of `in_turns`."""
        return self._rows(self._is_check)

    def _rows(self, chosen: np.ndarray) -> Labelled:
        x, y = self._x[chosen], self._y[chosen]
        order = in_turns(y)
        return Labelled(x[order], y[order])

    def _key(self, label) -> int:
        return int(label) if _are_classes(self._y) else 0

    def save(self, path: pathlib.Path) -> None:
        """Writes the examples to a file, whole or not at all, for its owner alone.

        Raises:
          CheckpointError: if the file cannot be written; what was there is as it was.
        """
        buffer = io.BytesIO()
        seen = np.array(sorted(self._seen.items()), np.int64).reshape(-1, 2)
        np.savez(buffer, x=self._x, y=self._y, is_check=self._is_check, seen=seen)
        body = _MAGIC + buffer.getvalue()
        hashed_file.write(path, body, "examples", is_secret=True)

    def load(self, path: pathlib.Path) -> None:
        """Takes the examples of a file that `save` wrote, as many as there is room for.

        Raises:
          CheckpointError: naming the file, if it is missing, damaged, or has examples
            of another shape.
        """
        body, is_whole = hashed_file.read(path, "examples")
        if not is_whole or not body.startswith(_MAGIC):
            raise errors.CheckpointError(
                f"{path} has no examples, is damaged or was cut short; remove it to "
                "begin anew."
            )
        try:
            with np.load(io.BytesIO(body[len(_MAGIC) :]), allow_pickle=False) as found:
                x, y, is_check, seen = (
                    found[name] for name in ("x", "y", "is_check", "seen")
                )
        except (ValueError, LookupError, zipfile.BadZipFile) as e:
            raise errors.CheckpointError(f"{path} has no examples ({e}).") from e
        own = (self._x.shape[1:], self._y.shape[1:], self._x.dtype, self._y.dtype)
        if (x.shape[1:], y.shape[1:], x.dtype, y.dtype) != own:
            raise errors.CheckpointError(
                f"{path} has examples of shape {list(x.shape[1:])}; the model takes "
                f"{list(self._x.shape[1:])}."
            )
        self._x, self._y, self._is_check = x, y, is_check
        self._seen = {int(label): int(count) for label, count in seen}
        while len(self) > self.capacity:
            self._drop()
