"""A grid of runs, and its table on users that had no part in any choice."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tff_perfedavg.files import atomic_write
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.programs.experiment import Experiment
from tff_perfedavg.programs.metrics import compare_paired, mean_with_intervals, quantity
from tff_perfedavg.programs.selection import select
from tff_perfedavg.programs.study import Run, grid

_SEED = "base_random_seed"
# What the adaptation's own settings are called in results.
_RATE, _ROWS = "adaptation_learning_rate", "num_rows"


def sweep_runs(
    base: Experiment,
    axes: Mapping[str, Sequence[Any]],
    rates: Sequence[float],
    adaptation_steps: int,
    adaptation_rows: Sequence[int],
) -> list[Run]:
    """Returns the runs of a grid.

    Args:
      base: settings of all runs.
      axes: of `study.grid`.
      rates: of the adaptation; none for each run's inner learning rate.
      adaptation_steps: m.
      adaptation_rows: the most rows a user adapts on; 0 for all.
    """
    return [
        Run(
            settings,
            experiment,
            [
                AdaptationConfig(rate, adaptation_steps, num_rows=rows or None)
                for rate in rates or [experiment.inner_learning_rate]
                for rows in adaptation_rows
            ],
        )
        for settings, experiment in grid(base, axes)
    ]


def choose(
    per_user: pd.DataFrame,
    axes: Mapping[str, Sequence[Any]],
    chosen: Sequence[str],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the test users' rows, with what the validation users chose."""
    return select(
        per_user, _reported(axes, chosen), [*chosen, _RATE, "step"], seed=seed
    )


def summarize(
    test: pd.DataFrame, axes: Mapping[str, Sequence[Any]], chosen: Sequence[str]
) -> pd.DataFrame:
    """Returns one row per combination of the axes reported and group of users.

    Its columns are what was chosen, and `mean_with_intervals` of the accuracy (of the
    loss where labels are no classes).
    """
    column = quantity(test)
    by = ["users", *_reported(axes, chosen)]
    rows = {}
    for key, group in test.groupby(by, dropna=False, sort=False):
        choice = group.iloc[0][[*chosen, _RATE, "step"]]
        rows[key] = pd.concat([choice, mean_with_intervals(group, column=column)])
    table = pd.DataFrame(rows).T.rename_axis(by)
    return table.rename(columns={"mean": column}).infer_objects()


def compare_methods(
    test: pd.DataFrame, axes: Mapping[str, Sequence[Any]], chosen: Sequence[str]
) -> pd.DataFrame | None:
    """Compares every two methods on the same test users.

    None for a single method, and where users chose theirs.
    """
    if len(axes.get("method", ())) < 2 or "method" in chosen:
        return None
    column = quantity(test)
    others = [name for name in _reported(axes, chosen) if name != "method"]
    frames = {
        key: compare_paired(rows, None, column=column)
        for key, rows in test.groupby(others, dropna=False, sort=False)
    }
    return pd.concat(frames, names=others)


def format_table(table: pd.DataFrame) -> str:
    """Lays a summary out for a terminal."""
    # A single seed has no interval.
    shown = table.drop(columns=["num_seeds"]).dropna(axis="columns", how="all")
    percent = [c for c in ("accuracy", "over_seeds", "over_users") if c in shown]
    if "accuracy" in shown:
        shown = shown.assign(**{c: 100 * shown[c].astype(float) for c in percent})
    shown = shown.rename(columns={"step": "steps"})
    formats = {c: "{:.1f}".format for c in percent if "accuracy" in shown}
    return shown.to_string(formatters=formats, float_format="{:.4g}".format)


def write(
    table: pd.DataFrame, compared: pd.DataFrame | None, root: pathlib.Path
) -> list[pathlib.Path]:
    """Writes `sweep.table.csv` and, if there is one, `sweep.comparison.csv`."""
    written = []
    for name, frame in (("table", table), ("comparison", compared)):
        if frame is not None:
            path = root / f"sweep.{name}.csv"
            with atomic_write(path) as file:
                frame.to_csv(file, float_format="%.6g")
            written.append(path)
    return written


def _reported(axes: Mapping[str, Sequence[Any]], chosen: Sequence[str]) -> list[str]:
    """Columns of which each combination has a line of its own."""
    names = [name for name in axes if name not in (_SEED, *chosen)]
    return [*names, _ROWS]
