"""Input validation of the on-device runtime."""

from __future__ import annotations

import numpy as np

from tff_perfedavg import errors


def numbers(name: str, value) -> np.ndarray:
    """Returns a value as an array of numbers.

    Args:
      name: what the value is called in the message.
      value: an array, or what NumPy makes one of.

    Raises:
      DataError: if its dtype is none of bool, integer and float, or rows are not
        equally long.
    """
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "biuf":
            raise TypeError(f"dtype {found.dtype}")
    except (TypeError, ValueError) as e:
        raise errors.DataError(
            f"{name} is no array of numbers with equally long rows ({e})."
        ) from e
    return found


def padded(rows: np.ndarray, count: int, value) -> np.ndarray:
    """Pads rows to a fixed number.

    Args:
      rows: `[rows, ...]`, at most `count`.
      count: rows of the result.
      value: what the rows added are filled with.

    Returns:
      `[count, ...]` in the dtype of `rows`, the rows added behind the others.
    """
    padding = np.full([count - len(rows), *rows.shape[1:]], value, rows.dtype)
    return np.concatenate([rows, padding])


def check_steps(value, most: int) -> None:
    """Raises `ConfigError` unless a number of steps is whole and from 1 to `most`.

    Args:
      value: the number of steps that was given.
      most: the largest that is allowed.
    """
    try:
        is_whole = bool(1 <= value <= most and value % 1 == 0)
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise errors.ConfigError(
            f"num_steps is {value!r}; it must be a whole number from 1 to {most}."
        )


def check_lengths(x: np.ndarray, y: np.ndarray) -> None:
    """Raises `DataError` unless there is a label for each row.

    Args:
      x: `[rows, ...]` features.
      y: `[rows, ...]` labels.
    """
    if len(x) != len(y):
        raise errors.DataError(f"x has {len(x)} rows and y has {len(y)}.")


def check_rate(name: str, value: float) -> None:
    """Raises `ConfigError` unless a rate is finite and above 0 in float32.

    Args:
      name: what the rate is called in the message.
      value: the rate that was given.
    """
    try:
        with np.errstate(over="ignore"):
            rounded = np.float32(value)
        is_rate = bool(np.isfinite(rounded) and rounded > 0)
    except (TypeError, ValueError):
        is_rate = False
    if not is_rate:
        raise errors.ConfigError(
            f"{name} is {value!r}; it must be a finite number above 0 in float32, for "
            "example 0.01."
        )
