"""Hyper-parameter sweep: a grid of runs, selected and reported on different users."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tff_perfedavg.experiments.evaluation.metrics import (
    SEEN,
    compare_paired,
    mean_with_intervals,
    quantity,
)
from tff_perfedavg.experiments.evaluation.selection import TEST, VALIDATION, select
from tff_perfedavg.experiments.evaluation.significance import holm
from tff_perfedavg.experiments.settings.experiment import (
    FOLD,
    REPEATED,
    SEED,
    Experiment,
)
from tff_perfedavg.experiments.settings.sweep_request import OwnSettings
from tff_perfedavg.experiments.study.study import (
    Run,
    diverged,
    grid,
    option_defaults,
    read_study,
    uses,
)
from tff_perfedavg.experiments.study.study_baselines import read_baselines
from tff_perfedavg.files import atomic_write

HALVES = (VALIDATION, TEST)
# The training of FedAvg, for one, does not use it.
_INNER_RATE = "inner_learning_rate"
# What the adaptation's own settings are called in results.
RATE, _ROWS, STEP = "adaptation_learning_rate", "num_rows", "step"
# An axis of a grid, and what stands for its value where there is none.
_METHOD, _NO_METHOD = "method", "-"


class Adapting(NamedTuple):
    """How the users of a grid's runs adapt.

    Attributes:
      rates: of the adaptation; none for each run's inner learning rate, or all of the
        grid's where training uses none.
      steps: m, the most steps.
      rows: the most rows a user adapts on, each reported; 0 for all.
      changes: other fields of `AdaptationConfig` in the place of those that each run
        was trained for.
    """

    rates: Sequence[float]
    steps: int
    rows: Sequence[int] = (0,)
    changes: Mapping[str, Any] = types.MappingProxyType({})


def sweep_runs(
    base: Experiment,
    axes: Mapping[str, Sequence[Any]],
    adapting: Adapting,
    of_methods: Sequence[OwnSettings] = (),
) -> list[Run]:
    """Returns the runs of a grid, one for all values of an axis that a method ignores.

    Args:
      base: settings of all runs.
      axes: of `study.grid`.
      adapting: how users adapt.
      of_methods: of `study.grid`.
    """
    runs: list[Run] = []
    as_in_base = {**option_defaults(), **base.flat()}
    for settings, experiment in grid(base, axes, of_methods):
        own = dataclasses.replace(experiment.local.adaptation, **adapting.changes)
        adapted = adapting.rates or [own.inner_learning_rate]
        idle = [name for name in axes if not uses(experiment, name)]
        if idle:
            # A method that has settings of its own there has a run for each value.
            told = {name for own in of_methods if own.hold(settings) for name in own.at}
            settings = {k: v for k, v in settings.items() if k not in idle or k in told}
            # A run has a name even if nothing else sets it apart.
            settings = settings or {_METHOD: experiment.local.method}
            experiment = experiment.replace(**{name: as_in_base[name] for name in idle})
        if _INNER_RATE in idle:
            adapted = adapting.rates or axes[_INNER_RATE]
        adaptations = [
            dataclasses.replace(
                own,
                inner_learning_rate=rate,
                num_steps=adapting.steps,
                num_rows=rows or None,
            )
            for rate in adapted
            for rows in adapting.rows
        ]
        run = Run(settings, experiment, adaptations)
        if not (idle and run in runs):
            runs.append(run)
    return runs


def of_seeds(runs: Sequence[Run], seeds: Sequence[int]) -> list[Run]:
    """Returns the runs of some seeds.

    Args:
      runs: of `sweep_runs`.
      seeds: of the runs returned.
    """
    return [run for run in runs if run.experiment.base_random_seed in seeds]


def of_choices(runs: Sequence[Run], choices: pd.DataFrame) -> list[Run]:
    """Returns the runs with selected hyper-parameters, of whatever seed.

    Args:
      runs: of `sweep_runs`.
      choices: of `choices_of`.
    """
    found = []
    for run in runs:
        names = [name for name in run.settings if name in choices]
        values = pd.Series({name: run.settings[name] for name in names}, dtype=object)
        if (choices[names] == values).all(axis=1).any():
            found.append(run)
    return found


class Results(NamedTuple):
    """The results of a grid of runs.

    Attributes:
      axes: of the grid.
      chosen: the axes whose values validation users choose.
      per_user: the rows of `read_study`.
      outcomes: a row per run and number of adaptation rows, with the run's settings,
        `seed`, `num_rows` and whether it `diverged`.
      baselines: the rows of `read_baselines`; None if there are none.
      choices: what is chosen already, of `choices_of`; None to choose.
      steps: numbers of adaptation steps that are reported each; none to choose one.
      cross_fit: whether each half of the users chooses for the other.
    """

    axes: Mapping[str, Sequence[Any]]
    chosen: Sequence[str]
    per_user: pd.DataFrame
    outcomes: pd.DataFrame
    baselines: pd.DataFrame | None = None
    choices: pd.DataFrame | None = None
    steps: Sequence[int] = ()
    cross_fit: bool = False

    @property
    def reported(self) -> list[str]:
        """The columns reported: each combination of values has a line of its own."""
        names = [name for name in self.axes if name not in (*REPEATED, *self.chosen)]
        return [*names, _ROWS, *([STEP] if self.steps else [])]

    @property
    def of_adaptation(self) -> list[str]:
        """The columns of the adaptation that are chosen."""
        return [RATE, *([] if self.steps else [STEP])]

    @property
    def combinations(self) -> list[tuple]:
        """Every combination of values of the columns reported."""
        axes = [name for name in self.reported if name not in (_ROWS, STEP)]
        values = [self.axes[name] for name in axes]
        values.append(self.outcomes[_ROWS].unique())
        return [*itertools.product(*values, *([self.steps] if self.steps else []))]

    def outcomes_of(self, key: tuple) -> pd.DataFrame:
        """Returns the outcomes of one of `combinations`, whatever its step."""
        names = [name for name in self.reported if name != STEP]
        return rows_of(self.outcomes, names, key[: len(names)])


def read_results(
    root: pathlib.Path,
    runs: Sequence[Run],
    axes: Mapping[str, Sequence[Any]],
    chosen: Sequence[str],
    rates: Sequence[float],
) -> Results:
    """Reads the results of a grid of runs.

    Args:
      root: directory of the study.
      runs: of `sweep_runs`.
      axes: as of `sweep_runs`.
      chosen: names of axes whose values validation users choose.
      rates: as of `sweep_runs`.

    Returns:
      The results. Where values of an axis are reported each, rows of a method that does
      not use it are there for each; of inner learning rates, as of FedAvg's, those
      adapted at that rate, or, where rates of the adaptation are chosen, all. Where
      they are chosen, such a method's is NaN.
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
    frames = [read_study(root, runs), outcomes, read_baselines(root, runs)]
    for axis, values in axes.items():
        reported = [] if axis in chosen or axis in REPEATED else values
        frames = [
            None if frame is None else _at_each(frame, axis, reported, rates)
            for frame in frames
        ]
    per_user, outcomes, baselines = frames
    return Results(axes, chosen, per_user, outcomes, baselines)


def _at_each(frame, axis, values, rates):
    """Rows without a value of an axis, at each of its values."""
    if axis not in frame:
        frame = frame.assign(**{axis: np.nan})
    without = frame[frame[axis].isna()]
    if not values or without.empty:
        return frame
    copies = [without.assign(**{axis: value}) for value in values]
    if axis == _INNER_RATE and not rates and RATE in frame:
        copies = [rows[rows[RATE] == rows[_INNER_RATE]] for rows in copies]
    return pd.concat([frame.dropna(subset=[axis]), *copies], ignore_index=True)


def choose(
    results: Results, *, seed: int = 0, divided: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Returns the test users' rows at the hyper-parameters of the validation users.

    A combination of settings of which a seed diverged is no choice, unless all are
    such; then those are choices of which the fewest seeds did. Of results with choices,
    these stand, and the rate and the steps of the adaptation alone are chosen.

    Args:
      results: of the grid.
      seed: of the division into validation and test users.
      divided: as for `select`.
    """
    reported, chosen = results.reported, results.chosen
    by = [*reported, *chosen]
    if results.choices is not None:
        rows = results.per_user.merge(results.choices, on=["users", *by])
        if not results.cross_fit:
            return _select(rows, results, seed, divided)
        # What a half chose is for the other alone.
        directions = [
            _select(rows[rows["chosen_by"] == half], results, seed, divided, [half])
            for half in HALVES
        ]
        return pd.concat(directions, ignore_index=True)
    reported = [name for name in reported if name != STEP]
    by = [*reported, *chosen]
    grouped = results.outcomes.groupby(by, dropna=False, sort=False)["diverged"]
    counts = grouped.sum().rename("num_diverged").reset_index()
    fewest = counts.groupby(reported, dropna=False)["num_diverged"].transform("min")
    stable = counts[counts["num_diverged"] == fewest][by]
    rows = results.per_user.merge(stable, on=by) if chosen else results.per_user
    return _select(rows, results, seed, divided)


def _select(rows, results, seed, divided, directions=None) -> pd.DataFrame:
    if results.steps:
        rows = rows[rows[STEP].isin(results.steps)]
    if rows.empty:
        return rows
    return select(
        rows,
        results.reported,
        [*results.chosen, *results.of_adaptation],
        seed=seed,
        divided=divided,
        directions=directions or (HALVES if results.cross_fit else HALVES[:1]),
    )


def choices_of(test: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Returns the selected values of a grid's axes, by group and what is reported.

    Args:
      test: of `choose`, on runs of some seeds.
      results: those of these runs.
    """
    names = ["users", *results.reported, *results.chosen]
    if results.cross_fit:
        names.append("chosen_by")
    return test.reindex(columns=names).drop_duplicates(ignore_index=True)


def tell_tried(results: Results, seeds: Sequence[int]) -> str:
    """Returns a sentence on the runs that were selected from, and how many diverged.

    Args:
      results: of the runs that were selected from.
      seeds: of these runs.
    """
    names = [name for name in results.reported if name not in (_ROWS, STEP)]
    repeats = ["seed", *_folds(results)]
    runs = results.outcomes.drop_duplicates([*names, *results.chosen, *repeats])
    counts = [("", runs)]
    if names:
        groups = runs.groupby(names, dropna=False, sort=False)
        counts = [(" ".join(map(str, key)) + " ", rows) for key, rows in groups]
    told = [f"{key}{rows['diverged'].sum()} of {len(rows)}" for key, rows in counts]
    return (
        f"Chosen by runs of seed {', '.join(map(str, seeds))}, of which diverged: "
        f"{', '.join(told)}."
    )


def summarize(test: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Returns one row per combination of the axes reported and group of users.

    Its columns are what was chosen, `mean_with_intervals` of the accuracy (of the
    loss where labels are no classes), and how many of the combination's runs there
    are and diverged: `num_runs`, `num_diverged`. Where all did, the rest is NaN.

    Args:
      test: of `choose`.
      results: of the grid.
    """
    column = quantity(test) if len(test) else "accuracy"
    groups = [*test["users"].unique()] or [SEEN]
    rows = {}
    for group, key in itertools.product(groups, results.combinations):
        of_key = rows_of(test[test["users"] == group], results.reported, key)
        row = pd.Series({"mean": np.nan})
        if len(of_key):
            choice = _choices(of_key[[*results.chosen, *results.of_adaptation]])
            row = pd.concat([choice, mean_with_intervals(of_key, column=column)])
        diverged = results.outcomes_of(key)["diverged"]
        row["num_runs"], row["num_diverged"] = len(diverged), diverged.sum()
        rows[(group, *key)] = row
    table = pd.DataFrame(rows).T.rename_axis(["users", *results.reported])
    return table.rename(columns={"mean": column}).infer_objects()


def _choices(rows: pd.DataFrame) -> pd.Series:
    """Returns what was chosen, or, where halves of the users differ, both values."""
    found = {}
    for name in rows:
        values = rows[name].drop_duplicates()
        found[name] = values.iloc[0]
        if len(values) > 1:
            texts = [v if isinstance(v, str) else f"{v:g}" for v in values]
            found[name] = ", ".join(sorted(texts))
    return pd.Series(found, dtype=object)


def with_baselines(
    table: pd.DataFrame, results: Results, *, seed: int = 0
) -> pd.DataFrame:
    """Adds baselines to a summary of methods, on the same test users.

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
    parts = {}
    for name, of_one, test in baseline_rows(results, seed=seed):
        part = summarize(test, of_one)
        if not results.steps and not of_one.per_user[STEP].any():
            part[STEP] = np.nan
        parts[name] = part
    parts[_NO_METHOD] = table
    found = pd.concat(parts, names=["baseline"]).swaplevel("baseline", "users")
    # Group by group, the baselines first.
    return pd.concat([found.loc[[group]] for group in table.index.unique("users")])


def baseline_rows(
    results: Results, *, seed: int = 0
) -> Iterator[tuple[str, Results, pd.DataFrame]]:
    """Yields each baseline's name, its results, and its test users' rows.

    Args:
      results: of the grid, with baselines; of these, users count who are measured.
      seed: as for `with_baselines`.
    """
    assert results.baselines is not None
    who = ["users", "user", "seed", *_folds(results)]
    measured = results.per_user[who].drop_duplicates()
    rows = results.baselines.merge(measured).assign(**{RATE: np.nan})
    axes, chosen = dict(results.axes), [*results.chosen]
    has_methods = _METHOD in axes
    if _METHOD in chosen:
        del axes[_METHOD]
        chosen.remove(_METHOD)
    elif has_methods:
        axes[_METHOD] = [_NO_METHOD]
    for name, of_name in rows.groupby("algorithm", sort=False):
        outcomes = results.outcomes
        if has_methods:
            # Of the one method whose runs have this baseline.
            outcomes = outcomes[outcomes[_METHOD].isin(of_name[_METHOD])]
        if _METHOD in axes:
            of_name, outcomes = (
                f.assign(method=_NO_METHOD) for f in (of_name, outcomes)
            )
        if results.steps and not of_name[STEP].any():
            # The same whatever the methods' steps.
            copies = [of_name.assign(**{STEP: step}) for step in results.steps]
            of_name = pd.concat(copies, ignore_index=True)
        of_one = results._replace(
            axes=axes,
            chosen=chosen,
            per_user=of_name,
            outcomes=outcomes,
            baselines=None,
            choices=None,
        )
        yield name, of_one, choose(of_one, seed=seed, divided=results.per_user)


def rows_of(
    frame: pd.DataFrame, names: Sequence[str], key: Sequence[Any]
) -> pd.DataFrame:
    """Returns the rows that have certain values.

    Args:
      frame: the rows.
      names: of columns; none for all rows.
      key: the columns' values.
    """
    for name, value in zip(names, key, strict=True):
        frame = frame[frame[name] == value]
    return frame


def compare_values(
    test: pd.DataFrame, results: Results, axis: str = _METHOD
) -> pd.DataFrame | None:
    """Compares methods, or values of an axis, in pairs on the same test users.

    A value of whose choice a seed diverged is not compared (`not_compared`): on the
    seeds that are left it would pass for one that never does.

    Args:
      test: of `choose`.
      results: of the grid.
      axis: whose values are compared; `method` for the methods.

    Returns:
      The rows of `compare_paired`, with `p_holm`, each `p_value` with the Holm
      correction for all comparisons of the table; None where the axis has a single
      value, and where users chose theirs.
    """
    if test.empty or not _has_values(results, axis):
        return None
    column = quantity(test)
    others = _others(results, axis)
    frames = {}
    for key, rows in test.groupby(others, dropna=False, sort=False):
        rows = rows[~rows[axis].isin(_lacking_seeds(rows, results, axis))]
        if axis != _METHOD:
            rows = rows.assign(algorithm=[f"{axis} {v}" for v in rows[axis]])
        if rows[axis].nunique() > 1:
            frames[key] = compare_paired(rows, None, column=column)
    if not frames:
        return None
    compared = pd.concat(frames, names=others)
    return compared.assign(p_holm=holm(compared["p_value"]))


def not_compared(
    test: pd.DataFrame, results: Results, axis: str = _METHOD
) -> list[str]:
    """Returns the values that some comparison is without, since seeds diverged.

    Args:
      test: as for `compare_values`.
      results: as for `compare_values`.
      axis: as for `compare_values`.
    """
    if not _has_values(results, axis):
        return []
    groups = test.groupby(_others(results, axis), dropna=False, sort=False)
    lacking = [_lacking_seeds(rows, results, axis) for _, rows in groups]
    nothing_left = {*results.axes[axis]} - {*test[axis]}
    return [str(value) for value in sorted(nothing_left.union(*lacking))]


def _has_values(results: Results, axis: str) -> bool:
    return len(results.axes.get(axis, ())) > 1 and axis not in results.chosen


def _others(results: Results, axis: str) -> list[str]:
    return [name for name in results.reported if name != axis]


def _lacking_seeds(rows: pd.DataFrame, results: Results, axis: str) -> list:
    if SEED in results.chosen:
        return []
    # Seen and new users may have chosen differently.
    counts = rows.groupby([axis, "users"])["seed"].nunique()
    num_seeds = counts.groupby(axis).min()
    lacking = {*num_seeds.index[num_seeds < results.outcomes["seed"].nunique()]}
    # A fold that diverged, and what one half of the users chose.
    runs = [axis, "users", "user", "seed", *_folds(results)]
    results_of = rows[runs].drop_duplicates()
    most = len(results_of.drop(columns=axis).drop_duplicates())
    sizes = results_of.groupby(axis).size()
    return [*lacking.union(sizes.index[sizes < most])]


def _folds(results: Results) -> list[str]:
    return [FOLD] if FOLD in results.axes else []


def format_table(table: pd.DataFrame) -> str:
    """Formats a summary for a terminal."""
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
    """Writes `sweep.table.csv` and, if there is one, `sweep.comparison.csv`.

    Args:
      table: of `summarize` or `with_baselines`.
      compared: of `compare_values`; None for none.
      root: where the files are written.

    Returns:
      The files written.
    """
    written = []
    for name, frame in (("table", table), ("comparison", compared)):
        if frame is not None:
            written.append(write_table(frame, name, root))
    return written


def write_table(table: pd.DataFrame, name: str, root: pathlib.Path) -> pathlib.Path:
    """Writes a table of a sweep, `sweep.NAME.csv`, and returns the path.

    Args:
      table: with its index.
      name: of the table.
      root: directory of the sweep.
    """
    path = root / f"sweep.{name}.csv"
    with atomic_write(path) as file:
        table.to_csv(file, float_format="%.6g")
    return path
