"""Counter-based (stateless) random numbers: a hash of (seed, role, keys), vectorized.

A draw depends on its key alone, so that it is the same whatever was drawn before it, in
whatever order and in whatever company. (The finalizer is that of SplitMix64: Steele,
Lea, Flood, 2014, "Fast splittable pseudorandom number generators".)
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

# Uses of one seed that must not share draws.
PACE, DOWN, UP, ZONE, DEVICE, TIES = range(1, 7)
PHASE, WINDOW, DROP_OUT, WALK = range(7, 11)

Key: TypeAlias = int | np.ndarray

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = 2**64 - 1
_UNIT = 2.0**-53
# An order of so many is sorted faster than walked.
_FEW = 1 << 12


def bits(seed: int, role: int, *keys: Key) -> np.ndarray:
    """Returns uint64 draws, `[n]`.

    Args:
      seed: the run's.
      role: what the draw is for, one of this module's.
      keys: integers, or integer arrays `[n]`.
    """
    # Python's integers do not overflow, and need no array each.
    start, hashed = _mixed_number(seed ^ role << 56), None
    for key in keys:
        if isinstance(key, int):
            number = _mixed_number(key)
            if hashed is None:
                start = _mixed_number(start ^ number)
            else:
                hashed = _mixed(hashed ^ np.uint64(number))
            continue
        # Negative numbers, too: windows before the start of the world.
        numbers = _mixed(np.asarray(key, np.int64).view(np.uint64))
        hashed = _mixed(numbers ^ (np.uint64(start) if hashed is None else hashed))
    return np.full([1], start, np.uint64) if hashed is None else hashed


def uniform(seed: int, role: int, *keys: Key) -> np.ndarray:
    """Returns float64 draws, uniform in the open interval from 0 to 1.

    Args:
      seed: the run's.
      role: what the draw is for, one of this module's.
      keys: integers, or integer arrays `[n]`.
    """
    return ((bits(seed, role, *keys) >> np.uint64(11)).astype(np.float64) + 0.5) * _UNIT


def normal(seed: int, role: int, *keys: Key) -> np.ndarray:
    """Returns standard normal float64 draws (Box and Muller, 1958).

    Args:
      seed: the run's.
      role: what the draw is for, one of this module's.
      keys: integers, or integer arrays `[n]`.
    """
    radius = np.sqrt(-2 * np.log(uniform(seed, role, *keys, 0)))
    return radius * np.cos(2 * np.pi * uniform(seed, role, *keys, 1))


def exponential(seed: int, role: int, *keys: Key) -> np.ndarray:
    """Returns exponential float64 draws of mean 1, by inverse transform sampling.

    Args:
      seed: the run's.
      role: what the draw is for, one of this module's.
      keys: integers, or integer arrays `[n]`.
    """
    return -np.log(uniform(seed, role, *keys))


def walk(seed: int, keys: tuple[int, ...], size: int, places: np.ndarray) -> np.ndarray:
    """Evaluates a pseudo-random permutation of 0 to size - 1 at given places.

    A Feistel network over the smallest power of four that holds `size`, with cycle
    walking while it leads outside: nothing of the length of `size` is made. Few are
    sorted by a draw each, which is faster.

    Args:
      seed: the run's.
      keys: of the order.
      size: how many are in order.
      places: int `[n]`, each from 0 to size - 1.
    """
    if size <= _FEW:
        return np.argsort(bits(seed, WALK, *keys, np.arange(size)))[places]
    half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    low = (np.uint64(1) << half) - np.uint64(1)
    found = places.astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & low
        for turn in range(6):
            hashed = bits(seed, WALK, *keys, turn, right.view(np.int64))
            left, right = right, left ^ (hashed & low)
        found[outside] = (left << half) | right
        outside = found >= size
    return found.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def _mixed_number(x: int) -> int:
    """As `_mixed`, of one number."""
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)
