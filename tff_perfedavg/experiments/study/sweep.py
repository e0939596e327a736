"""A grid of runs, and its table on users that had no part in any choice."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tff_perfedavg.experiments.evaluation.metrics import (
    SEEN,
    compare_paired,
    mean_with_intervals,
    quantity,
)
from tff_perfedavg.experiments.evaluation.selection import select
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.study.study import (
    Run,
    diverged,
    grid,
    read_study,
    uses_inner_rate,
)
from tff_perfedavg.experiments.study.study_baselines import read_baselines
from tff_perfedavg.files import atomic_write

_SEED = "base_random_seed"
# The training of FedAvg, for one, does not use it.
_INNER_RATE = "inner_learning_rate"
# What the adaptation's own settings are called in results.
_RATE, _ROWS = "adaptation_learning_rate", "num_rows"
# An axis of a grid, and what stands for its value where there is none.
_METHOD, _NO_METHOD = "method", "-"


def sweep_runs(
    base: Experiment,
    axes: Mapping[str, Sequence[Any]],
    rates: Sequence[float],
    adaptation_steps: int,
    adaptation_rows: Sequence[int],
    changes: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Returns the runs of a grid; once for all inner rates where training uses none.

    Args:
      base: settings of all runs.
      axes: of `study.grid`.
      rates: of the adaptation; none for each run's inner learning rate, or all of the
        grid's where training uses none.
      adaptation_steps: m.
      adaptation_rows: the most rows a user adapts on; 0 for all.
      changes: other fields of `AdaptationConfig` in the place of those that each run
        was trained for.
    """
    runs: list[Run] = []
    for settings, experiment in grid(base, axes):
        own = dataclasses.replace(experiment.local.adaptation, **(changes or {}))
        adapted = rates or [own.inner_learning_rate]
        is_shared = _INNER_RATE in axes and not uses_inner_rate(experiment)
        if is_shared:
            settings = {k: v for k, v in settings.items() if k != _INNER_RATE}
            # A run has a name even if nothing else sets it apart.
            settings = settings or {"method": experiment.local.method}
            experiment = experiment.replace(
                inner_learning_rate=base.local.inner_learning_rate
            )
            adapted = rates or axes[_INNER_RATE]
        adaptations = [
            dataclasses.replace(
                own,
                inner_learning_rate=rate,
                num_steps=adaptation_steps,
                num_rows=rows or None,
            )
            for rate in adapted
            for rows in adaptation_rows
        ]
        run = Run(settings, experiment, adaptations)
        if not (is_shared and run in runs):
            runs.append(run)
    return runs


class Results(NamedTuple):
    """What a grid gave.

    Attributes:
      axes: of the grid.
      chosen: the axes whose values validation users choose.
      per_user: the rows of `read_study`.
      outcomes: a row per run and number of adaptation rows, with the run's settings,
        `seed`, `num_rows` and whether it `diverged`.
      baselines: the rows of `read_baselines`; None if there are none.
    """

    axes: Mapping[str, Sequence[Any]]
    chosen: Sequence[str]
    per_user: pd.DataFrame
    outcomes: pd.DataFrame
    baselines: pd.DataFrame | None = None

    @property
    def reported(self) -> list[str]:
        """Columns of which each combination has a line of its own."""
        names = [name for name in self.axes if name not in (_SEED, *self.chosen)]
        return [*names, _ROWS]

    @property
    def combinations(self) -> list[tuple]:
        """Every combination of values of the columns reported."""
        values = [self.axes[name] for name in self.reported[:-1]]
        return [*itertools.product(*values, self.outcomes[_ROWS].unique())]


def read_results(
    root: pathlib.Path,
    runs: Sequence[Run],
    axes: Mapping[str, Sequence[Any]],
    chosen: Sequence[str],
    rates: Sequence[float],
) -> Results:
    """Reads what a grid gave.

    Args:
      root: directory of the study.
      runs: of `sweep_runs`.
      axes: as of `sweep_runs`.
      chosen: names of axes whose values validation users choose.
      rates: as of `sweep_runs`.

    Returns:
      The results. Where inner learning rates are reported each, FedAvg's rows are there
      for each: those adapted at that rate, or, where rates of the adaptation are
      chosen, all. Where they are chosen, FedAvg's is NaN.
    """
    outcomes = pd.DataFrame(
        [
            {
                **run.settings,
                "seed": run.experiment.base_random_seed,
                _ROWS: rows,
                "diverged": diverged(run, root),
            }
            for run in runs
            for rows in dict.fromkeys(a.num_rows or 0 for a in run.adaptations)
        ]
    )
    per_user, baselines = read_study(root, runs), read_baselines(root, runs)
    if _INNER_RATE in axes:
        shared = [] if _INNER_RATE in chosen else axes[_INNER_RATE]
        per_user = _at_inner_rates(per_user, shared, rates)
        outcomes = _at_inner_rates(outcomes, shared, rates)
        if baselines is not None:
            baselines = _at_inner_rates(baselines, shared, rates)
    return Results(axes, chosen, per_user, outcomes, baselines)


def _at_inner_rates(frame, inner_rates, rates):
    if _INNER_RATE not in frame:
        frame = frame.assign(**{_INNER_RATE: np.nan})
    if not inner_rates:
        return frame
    without = frame[frame[_INNER_RATE].isna()]
    copies = [without.assign(**{_INNER_RATE: rate}) for rate in inner_rates]
    if not rates and _RATE in frame:
        copies = [rows[rows[_RATE] == rows[_INNER_RATE]] for rows in copies]
    return pd.concat([frame.dropna(subset=[_INNER_RATE]), *copies], ignore_index=True)


def choose(
    results: Results, *, seed: int = 0, divided: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Returns the test users' rows, with what the validation users chose.

    A combination of settings of which a seed diverged is no choice, unless all are
    such; then those are choices of which the fewest seeds did.

    Args:
      results: of the grid.
      seed: of the division into validation and test users.
      divided: as for `select`.
    """
    reported, chosen = results.reported, results.chosen
    by = [*reported, *chosen]
    grouped = results.outcomes.groupby(by, dropna=False, sort=False)["diverged"]
    counts = grouped.sum().rename("num_diverged").reset_index()
    fewest = counts.groupby(reported, dropna=False)["num_diverged"].transform("min")
    stable = counts[counts["num_diverged"] == fewest][by]
    rows = results.per_user.merge(stable, on=by) if chosen else results.per_user
    if rows.empty:
        return rows
    by = [*chosen, _RATE, "step"]
    return select(rows, reported, by, seed=seed, divided=divided)


def summarize(test: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Returns one row per combination of the axes reported and group of users.

    Its columns are what was chosen, `mean_with_intervals` of the accuracy (of the
    loss where labels are no classes), and how many of the combination's runs there
    are and diverged: `num_runs`, `num_diverged`. Where all did, the rest is NaN.
    """
    column = quantity(test) if len(test) else "accuracy"
    groups = [*test["users"].unique()] or [SEEN]
    rows = {}
    for group, key in itertools.product(groups, results.combinations):
        of_key = _of(test[test["users"] == group], results.reported, key)
        row = pd.Series({"mean": np.nan})
        if len(of_key):
            choice = of_key.iloc[0][[*results.chosen, _RATE, "step"]]
            row = pd.concat([choice, mean_with_intervals(of_key, column=column)])
        diverged = _of(results.outcomes, results.reported, key)["diverged"]
        row["num_runs"], row["num_diverged"] = len(diverged), diverged.sum()
        rows[(group, *key)] = row
    table = pd.DataFrame(rows).T.rename_axis(["users", *results.reported])
    return table.rename(columns={"mean": column}).infer_objects()


def with_baselines(
    table: pd.DataFrame, results: Results, *, seed: int = 0
) -> pd.DataFrame:
    """Puts baselines beside the methods of a summary, on the same test users.

    Args:
      table: of `summarize`.
      results: of the grid.
      seed: of `choose`. Validation users choose the steps of local training, and of the
        model that label shares correct what users choose of the methods.

    Returns:
      The table with a further index `baseline`: the name of one, or `-` for a method;
      the table itself if there are none.
    """
    if results.baselines is None or results.per_user.empty:
        return table
    rows = results.baselines.assign(**{_RATE: np.nan})
    outcomes, axes, chosen = results.outcomes, dict(results.axes), [*results.chosen]
    if _METHOD in axes:
        outcomes = outcomes[outcomes[_METHOD].isin(rows[_METHOD])]
        if _METHOD in chosen:
            del axes[_METHOD]
            chosen.remove(_METHOD)
        else:
            axes[_METHOD] = [_NO_METHOD]
            rows, outcomes = (f.assign(method=_NO_METHOD) for f in (rows, outcomes))
    parts = {}
    for name, of_name in rows.groupby("algorithm", sort=False):
        of_one = Results(axes, chosen, of_name, outcomes)
        test = choose(of_one, seed=seed, divided=results.per_user)
        part = summarize(test, of_one)
        if not of_name["step"].any():
            part["step"] = np.nan
        parts[name] = part
    parts[_NO_METHOD] = table
    found = pd.concat(parts, names=["baseline"]).swaplevel("baseline", "users")
    # Group by group, the baselines first.
    return pd.concat([found.loc[[group]] for group in table.index.unique("users")])


def _of(frame: pd.DataFrame, names: Sequence[str], key: Sequence[Any]) -> pd.DataFrame:
    is_of = [frame[name] == value for name, value in zip(names, key, strict=True)]
    return frame[np.logical_and.reduce(is_of)]


def compare_methods(test: pd.DataFrame, results: Results) -> pd.DataFrame | None:
    """Compares every two methods on the same test users.

    None for a single method, and where users chose theirs. A method of whose choice a
    seed diverged is not compared (`not_compared`): on the seeds that are left it would
    pass for one that never does.
    """
    if test.empty or not _has_methods(results):
        return None
    column = quantity(test)
    others = _others(results)
    frames = {}
    for key, rows in test.groupby(others, dropna=False, sort=False):
        lacking = _lacking_seeds(rows, results)
        rows = rows[~rows["method"].isin(lacking)]
        if rows["method"].nunique() > 1:
            frames[key] = compare_paired(rows, None, column=column)
    return pd.concat(frames, names=others) if frames else None


def not_compared(test: pd.DataFrame, results: Results) -> list[str]:
    """Returns the methods that some comparison is without, since seeds diverged."""
    if not _has_methods(results):
        return []
    groups = test.groupby(_others(results), dropna=False, sort=False)
    lacking = [_lacking_seeds(rows, results) for _, rows in groups]
    nothing_left = {*results.axes["method"]} - {*test["method"]}
    return sorted(nothing_left.union(*lacking))


def _has_methods(results: Results) -> bool:
    return len(results.axes.get("method", ())) > 1 and "method" not in results.chosen


def _others(results: Results) -> list[str]:
    return [name for name in results.reported if name != "method"]


def _lacking_seeds(rows: pd.DataFrame, results: Results) -> list[str]:
    if _SEED in results.chosen:
        return []
    num_seeds = rows.groupby("method")["seed"].nunique()
    return [*num_seeds.index[num_seeds < results.outcomes["seed"].nunique()]]


def format_table(table: pd.DataFrame) -> str:
    """Lays a summary out for a terminal."""
    if table["num_diverged"].any():
        counts = table[["num_diverged", "num_runs"]].to_numpy(int)
        told = [f"{diverged} of {runs}" for diverged, runs in counts]
        table = table.assign(diverged=told)
    else:
        table = table.drop(columns=["num_seeds"])
    shown = table.drop(columns=["num_diverged", "num_runs"])
    # A single seed has no interval, nor have few users.
    shown = shown.dropna(axis="columns", how="all")
    percent = [c for c in ("accuracy", "over_seeds", "over_users") if c in shown]
    if "accuracy" in shown:
        shown = shown.assign(**{c: 100 * shown[c].astype(float) for c in percent})
    shown = shown.rename(columns={"step": "steps"})
    formats = {c: "{:.1f}".format for c in percent if "accuracy" in shown}
    return shown.to_string(formatters=formats, float_format="{:.4g}".format, na_rep="-")


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
