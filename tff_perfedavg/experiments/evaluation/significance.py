"""Paired permutation tests over users, and the Holm correction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

# So many users' signs are all tried: half of them at a time, 2 ** 17 ways each.
MOST_EXACT = 34
# Of more users, sign patterns drawn, and how many at a time.
_DRAWN, _AT_ONCE = 100_000, 1000
# Sums that differ by less are equal: their terms were added in another order.
_CLOSE = 1e-9


def sign_flip_p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Returns the p-value of a paired permutation test by sign flips.

    How often chance would give a mean at least as far from 0. Fisher's randomization
    test (The Design of Experiments, 1935, sec. 21): if neither of two methods were
    better, the sign of each user's difference would be a toss-up. Exact up to
    `MOST_EXACT` users that differ; of more, by 100,000 patterns of signs that are
    drawn, the observed one counted with them.

    Args:
      differences: float `[users]`, one of each user.
      seed: of the patterns drawn.

    Returns:
      The two-sided p-value, NaN without users.
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        return float("nan")
    values = values[values != 0]
    tolerance = _CLOSE * np.abs(values).sum()
    least = abs(values.sum()) - tolerance
    if least <= 0:
        return 1.0
    if len(values) > MOST_EXACT:
        rng = np.random.default_rng(seed)
        beyond = sum(
            int((np.abs(_drawn_sums(values, rng)) >= least).sum())
            for _ in range(_DRAWN // _AT_ONCE)
        )
        return (beyond + 1) / (_DRAWN + 1)
    half = len(values) // 2
    first, second = _all_sums(values[:half]), np.sort(_all_sums(values[half:]))
    below = np.searchsorted(second, least - first)
    beyond = len(first) * len(second) - int(below.sum())
    # The other side has as many.
    return 2 * beyond / 2 ** len(values)


def _all_sums(values: np.ndarray) -> np.ndarray:
    """Returns the sums with all patterns of signs, `[2 ** values]`."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def _drawn_sums(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flipped = rng.integers(0, 2, [_AT_ONCE, len(values)], np.int8)
    return values.sum() - 2 * (flipped @ values)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Returns p-values with the Holm correction for multiple tests (Holm, 1979).

    Those below a level reject as many hypotheses as can be without the chance of a
    single false one rising above that level. NaN stays NaN and counts for nothing.

    Args:
      p_values: of all tests that are looked at together.
    """
    p = np.asarray(p_values, np.float64)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    steps = [(len(order) - rank) * p[i] for rank, i in enumerate(order)]
    corrected = np.full(len(p), np.nan)
    for i, value in zip(order, itertools.accumulate(steps, max), strict=True):
        corrected[i] = min(1.0, value)
    return corrected
