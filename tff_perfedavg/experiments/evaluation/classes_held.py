"""Accuracy by the number of classes that users hold.

Whoever holds one class of ten is right by always answering it, and whoever holds all
gains nothing by knowing so: a mean over both hides what a method is good for.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tff_perfedavg.data.heterogeneity import label_histograms
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.evaluation.baseline_names import has_classes
from tff_perfedavg.experiments.evaluation.metrics import with_kind

COLUMN = "num_classes_held"
# The most columns of a table: more numbers of classes are put together.
_MOST_RANGES = 6


def with_classes_held(per_user: pd.DataFrame, population: UserStore) -> pd.DataFrame:
    """Adds a column with the number of classes of each user's adaptation rows.

    Args:
      per_user: rows with a column `user`.
      population: the users; unless labels are classes, nothing is added.

    Returns:
      The rows with a last column `num_classes_held`.
    """
    if not has_classes(population):
        return per_user
    held = np.count_nonzero(label_histograms(population, evaluation=False), axis=1)
    return per_user.assign(**{COLUMN: held[per_user["user"]]})


def by_classes_held(
    per_user: pd.DataFrame, *, in_ranges: bool = False
) -> pd.DataFrame | None:
    """Mean accuracy by the number of classes held.

    Args:
      per_user: as for `metrics.summarize`, behind `with_classes_held`.
      in_ranges: whether to put numbers together where there are many, for a table's
        columns: texts such as `1` and `2-4`, with about equally many users in each.

    Returns:
      One row per `users`, `kind`, `algorithm`, `step` and `num_classes_held`, with
      `accuracy` and `num_users`; None if all users hold equally many.
    """
    if COLUMN not in per_user:
        return None
    rows = per_user.dropna(subset=["accuracy", COLUMN]).astype({COLUMN: int})
    if rows[COLUMN].nunique() < 2:
        return None
    if in_ranges:
        rows = with_ranges(rows)
    by = ["users", "kind", "algorithm", "step", COLUMN]
    groups = with_kind(rows).groupby(by, sort=False)["accuracy"]
    return groups.agg(accuracy="mean", num_users="size")


def with_ranges(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns rows whose numbers of classes are ranges where there are many.

    Args:
      rows: with columns `users`, `user` and `num_classes_held`.
    """
    # Runs may have stores of their own, where a user's number is another user.
    held = rows.drop_duplicates(["users", "user", COLUMN])[COLUMN]
    return rows.assign(**{COLUMN: rows[COLUMN].map(_ranges(held))})


def _ranges(held: pd.Series) -> dict[int, str]:
    """Returns the name of each number's range, in ascending order."""
    values = np.unique(held)
    ends = values
    if len(values) > _MOST_RANGES:
        shares = np.arange(1, _MOST_RANGES + 1) / _MOST_RANGES
        ends = np.unique(np.quantile(held, shares, method="inverted_cdf"))
    places = np.searchsorted(ends, values)
    firsts = values[np.searchsorted(places, places)]
    return {
        value: str(first) if first == last else f"{first}-{last}"
        for value, first, last in zip(values, firsts, ends[places], strict=True)
    }
