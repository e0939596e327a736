"""Results of a sweep by the number of classes that users hold."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.data.heterogeneity import label_histograms
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.baseline_names import has_classes
from tff_perfedavg.experiments.evaluation.classes_held import COLUMN, with_ranges
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
    frames = [test.assign(baseline=_NO_BASELINE)]
    if results.baselines is not None:
        frames += [
            rows.assign(baseline=name)
            for name, _, rows in baseline_rows(results, seed=seed)
        ]
    rows = pd.concat(frames, ignore_index=True).merge(held, on=["run", "user"])
    if rows[COLUMN].nunique() < 2:
        return None
    by = ["users", "baseline", *results.reported, COLUMN]
    groups = with_ranges(rows).groupby(by, dropna=False, sort=False)
    return groups.apply(mean_with_intervals, include_groups=False)


def _held(root: pathlib.Path, runs: Sequence[Run]) -> pd.DataFrame | None:
    """Returns how many classes each user of each run holds."""
    counts: dict[pathlib.Path, np.ndarray] = {}
    frames = []
    for run in runs:
        store = build_population(run.experiment, root)
        if not has_classes(store):
            return None
        if store.path not in counts:
            histograms = label_histograms(store, evaluation=False)
            counts[store.path] = np.count_nonzero(histograms, axis=1)
        held = counts[store.path]
        columns = {"run": run.name, "user": np.arange(len(held)), COLUMN: held}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
