"""Choices of a sweep at an edge of what it tried, beyond which may be better."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from tff_perfedavg.experiments.study.sweep import RATE, STEP, Results, rows_of


def at_edges(test: pd.DataFrame, results: Results) -> list[str]:
    """Tells of each number chosen that is the lowest or the highest of several tried.

    Steps are no such choice: no step is the lowest there is, and the most is asked for.
    Where no step is taken, any rate is as good.

    Args:
      test: of `sweep.choose`.
      results: of the grid.
    """
    test = test[test[STEP] > 0]
    reported = [name for name in results.reported if name in results.axes]
    told: dict[str, list[str]] = {}
    for name in (*results.chosen, RATE):
        for key, rows in test.groupby([*reported, "users"], dropna=False, sort=False):
            *values, users = key
            tried = results.axes.get(name)
            if tried is None:
                of_values = rows_of(results.per_user, reported, values)
                tried = of_values[name].dropna().unique()
            for edge, value in _edges(rows[name], tried):
                words = [*map(_word, values), f"{name}={value:g}, the {edge} tried"]
                where = _where(users, rows[rows[name] == value][STEP])
                told.setdefault(" ".join(words), []).append(where)
    return [f"{line} ({'; '.join(where)})" for line, where in told.items()]


def _edges(chosen: pd.Series, tried: Sequence[Any]) -> Iterator[tuple[str, float]]:
    """Yields the edges that were chosen, and their values."""
    if len(tried) < 2 or not all(map(_is_number, tried)):
        return
    for edge, value in (("lowest", min(tried)), ("highest", max(tried))):
        if (chosen == value).any():
            yield edge, value


def _word(value: object) -> str:
    # Where some methods have no value, whole numbers became others.
    return f"{value:g}" if _is_number(value) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _where(users: str, steps: pd.Series) -> str:
    taken = sorted(steps.unique())
    plural = "" if taken == [1] else "s"
    return f"{users}, {', '.join(map(str, taken))} step{plural}"
