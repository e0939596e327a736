"""Results of a sweep by the number of classes that users hold."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.experiments.assemble.population import (
    build_population,
    population_path,
)
from tff_perfedavg.experiments.evaluation.classes_held import (
    COLUMN,
    with_classes_held,
    with_ranges,
)
from tff_perfedavg.experiments.evaluation.metrics import mean_with_intervals
from tff_perfedavg.experiments.study.study import Run
from tff_perfedavg.experiments.study.sweep import Results, baseline_rows

_NO_BASELINE = "-"


def classes_table(
    root: pathlib.Path,
    runs: Sequence[Run],
    results: Results,
    test: pd.DataFrame,
    *,
    seed: int = 0,
) -> pd.DataFrame | None:
    """Returns accuracies of test users by the number of classes they hold.

    Args:
      root: directory of the sweep.
      runs: those that report.
      results: what they gave.
      test: the test users' rows, of `sweep.choose`.
      seed: of `sweep.choose`.

    Returns:
      One row per group of users, baseline (`-` for a method), columns reported and
      `num_classes_held` (of a user's adaptation rows; ranges where there are many),
      with the columns of `mean_with_intervals`. None if all users hold equally many
      classes, or labels are no classes.
    """
    held = _held(root, runs)
    if held is None or test.empty:
        return None
    rows = test.assign(baseline=_NO_BASELINE).merge(held, on=["run", "user"])
    # Baselines are of the same users.
    if rows[COLUMN].nunique() < 2:
        return None
    if results.baselines is not None:
        frames = [
            frame.assign(baseline=name)
            for name, _, frame in baseline_rows(results, seed=seed)
        ]
        baselines = pd.concat(frames).merge(held, on=["run", "user"])
        rows = pd.concat([rows, baselines], ignore_index=True)
    by = ["users", "baseline", *results.reported, COLUMN]
    groups = with_ranges(rows).groupby(by, dropna=False, sort=False)
    return groups.apply(mean_with_intervals, include_groups=False)


def _held(root: pathlib.Path, runs: Sequence[Run]) -> pd.DataFrame | None:
    """Returns how many classes each user of each run holds; None without classes."""
    of_store: dict[pathlib.Path, pd.DataFrame] = {}
    for run in runs:
        path = population_path(run.experiment, root)
        if path not in of_store:
            store = build_population(run.experiment, root)
            users = pd.DataFrame({"user": np.arange(store.num_users)})
            of_store[path] = with_classes_held(users, store)
            if COLUMN not in of_store[path]:
                return None
    frames = [
        of_store[population_path(run.experiment, root)].assign(run=run.name)
        for run in runs
    ]
    return pd.concat(frames, ignore_index=True)
