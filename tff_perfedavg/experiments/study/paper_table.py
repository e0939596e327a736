"""Reproduction of arXiv 2002.07948, section 5 (table 1): its runs and its table."""

from __future__ import annotations

import collections
import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tff_perfedavg.algorithms import registry
from tff_perfedavg.data.config import PAPER, PAPER_DIFF_HETERO
from tff_perfedavg.experiments.evaluation.metrics import SEEN, mean_with_intervals
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.study.study import Run, uses
from tff_perfedavg.files import atomic_write
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.hessian import OWN_BATCH

PARTITIONS = (PAPER, PAPER_DIFF_HETERO)
NUM_LOCAL_STEPS = (10, 4)
INNER_LEARNING_RATES = (0.01, 0.001)
# The paper's other distribution comes with the longer of its two rounds.
_DIFF_HETERO_STEPS = 10

# Sets baselines apart from methods, wherever the table goes.
_BASELINE_PREFIX = "baseline: "
_RATE = "adaptation_learning_rate"
_ROW = ["dataset", "partition", "num_local_steps", _RATE]


class Part(NamedTuple):
    """A part of the comparison's runs.

    Attributes:
      datasets: names of data sets that take the paper's partition.
      partitions: of `PARTITIONS`.
      num_local_steps: values of tau.
      inner_learning_rates: values of alpha.
      methods: of `registry.paper_methods()`.
      seeds: one run each.
    """

    datasets: Sequence[str]
    partitions: Sequence[str] = PARTITIONS
    num_local_steps: Sequence[int] = NUM_LOCAL_STEPS
    inner_learning_rates: Sequence[float] = INNER_LEARNING_RATES
    methods: Sequence[str] = tuple(registry.paper_methods())
    seeds: Sequence[int] = (0, 1, 2)


def paper_runs(part: Part, base: Experiment, adaptation_steps: int) -> list[Run]:
    """Returns the runs of a part, all of a seed's before the next seed's.

    FedAvg does not know alpha in training: one run of it is adapted with every alpha.
    Hessian-vector products take a batch of their own, as the paper's do.

    Args:
      part: which runs.
      base: what all share: rounds, cohort, batch, outer rate, model.
      adaptation_steps: m; every user adapts on all of its adaptation rows.
    """
    runs = []
    for seed, dataset, partition, tau, method in itertools.product(
        part.seeds, part.datasets, part.partitions, part.num_local_steps, part.methods
    ):
        if partition == PAPER_DIFF_HETERO and tau != _DIFF_HETERO_STEPS:
            continue
        settings = {
            "dataset": dataset,
            "partition": partition,
            "num_local_steps": tau,
            "method": method,
        }
        shared = base.replace(
            dataset=dataset,
            partition=partition,
            num_local_steps=tau,
            base_random_seed=seed,
            hessian_batch=OWN_BATCH,
            **registry.paper_methods()[method],
        )
        rates = part.inner_learning_rates
        if not uses(shared, "inner_learning_rate"):
            groups: list[tuple] = [({}, base.local.inner_learning_rate, rates)]
        else:
            groups = [({"inner_learning_rate": r}, r, [r]) for r in rates]
        for of_rate, trained, adapted in groups:
            experiment = shared.replace(inner_learning_rate=trained)
            adaptations = [AdaptationConfig(r, adaptation_steps) for r in adapted]
            name = {**settings, **of_rate, "seed": seed}
            runs.append(Run(name, experiment, adaptations))
    return runs


def baseline_rows(
    baselines: pd.DataFrame, runs: Sequence[Run], steps: Sequence[int]
) -> pd.DataFrame:
    """Returns baselines as rows of the table, each as an algorithm.

    Args:
      baselines: of `read_baselines`.
      runs: the table's runs. What has no rate of its own is there for each rate that
        its run is adapted with.
      steps: the table's steps. What takes no steps is there for each.
    """
    takes_steps = baselines.groupby("algorithm")["step"].transform("max") > 0
    without = baselines[~takes_steps].drop(columns="step")
    without = without.merge(pd.DataFrame({"step": list(steps)}), how="cross")
    rows = pd.concat([baselines[takes_steps], without], ignore_index=True)
    rates = pd.DataFrame(
        [
            {"run": run.name, _RATE: adaptation.inner_learning_rate}
            for run in runs
            for adaptation in run.adaptations
        ]
    )
    rows["algorithm"] = _BASELINE_PREFIX + rows["algorithm"]
    return rows.merge(rates, on="run")


def summarize_paper(
    per_user: pd.DataFrame, steps: Sequence[int], diverged: Sequence[Experiment] = ()
) -> pd.DataFrame:
    """Returns means with confidence intervals by setting, group, algorithm and step.

    Args:
      per_user: from `study.read_study`, and of `baseline_rows`.
      steps: which adaptation steps.
      diverged: the runs that diverged.

    Returns:
      `mean_with_intervals` of the runs that did not diverge, NaN where all did, and
      `num_diverged`.
    """
    chosen = per_user[per_user["step"].isin(steps)]
    by = [*_ROW, "users", "algorithm", "step"]
    groups = {key: mean_with_intervals(rows) for key, rows in chosen.groupby(by)}
    users = [*chosen["users"].unique()] or [SEEN]
    rates = {*chosen[_RATE]} | {
        e.local.inner_learning_rate for e in diverged if uses(e, "inner_learning_rate")
    }
    counts: collections.Counter = collections.Counter()
    for experiment in diverged:
        e, own = experiment, {experiment.local.inner_learning_rate}
        for rate, group, step in itertools.product(
            own if uses(e, "inner_learning_rate") else (rates or own), users, steps
        ):
            setting = (e.data.dataset, e.data.partition, e.local.num_local_steps, rate)
            counts[(*setting, group, e.label, step)] += 1
    nothing = pd.Series({"mean": np.nan, "num_seeds": 0, "num_users": 0})
    rows = {
        key: pd.concat(
            [groups.get(key, nothing), pd.Series({"num_diverged": counts[key]})]
        )
        for key in sorted({*groups, *counts})
    }
    table = pd.DataFrame(rows).T.rename_axis(by)
    return table.astype({"num_seeds": int, "num_users": int, "num_diverged": int})


def lay_out(summary: pd.DataFrame, step: int) -> pd.DataFrame:
    """Formats one step as in the paper: a row per setting, a column per algorithm.

    Args:
      summary: from `summarize_paper`.
      step: which adaptation step.

    Returns:
      Texts `mean ± over seeds (± over users)` in percent, of the runs that did not
      diverge, and how many did.
    """
    found = summary.index.unique("algorithm")
    baselines = [label for label in found if label.startswith(_BASELINE_PREFIX)]
    order = [*baselines, *(label for label in _labels() if label in found)]
    rows = summary.xs(step, level="step")
    texts = rows.apply(_text, axis=1)
    return texts.unstack("algorithm")[order].fillna("")


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits a layout's columns into methods and baselines."""
    is_baseline = table.columns.str.startswith(_BASELINE_PREFIX)
    names = table.columns[is_baseline]
    baselines = table[names].rename(columns=lambda c: c.removeprefix(_BASELINE_PREFIX))
    return table.loc[:, ~is_baseline], baselines


def write_table(
    summary: pd.DataFrame, step: int, directory: pathlib.Path
) -> list[pathlib.Path]:
    """Writes `paper_table.csv`, all numbers, and `paper_table.tex`, the layout.

    Args:
      summary: from `summarize_paper`.
      step: which adaptation step is laid out.
      directory: where the files are written.

    Returns:
      The two files.
    """
    csv, tex = (directory / f"paper_table.{ending}" for ending in ("csv", "tex"))
    with atomic_write(csv) as file:
        summary.to_csv(file, float_format="%.6f")
    latex = lay_out(summary, step).reset_index()
    latex = latex.rename(columns={_RATE: "alpha", "num_local_steps": "tau"})
    latex = latex.replace({" ± ": r" $\\pm$ ", r"\(± ": r"($\\pm$ "}, regex=True)
    latex.columns = [str(name).replace("_", " ") for name in latex.columns]
    latex = latex.replace({"_": " "}, regex=True)
    text = latex.style.hide(axis="index").format(precision=3).to_latex(hrules=True)
    with atomic_write(tex) as file:
        file.write(text.encode())
    return [csv, tex]


def _labels() -> list[str]:
    return [Experiment(**fields).label for fields in registry.paper_methods().values()]


def _text(row: pd.Series) -> str:
    if not row["num_seeds"]:
        return f"{row['num_diverged']:.0f} of {row['num_diverged']:.0f} diverged"
    parts = [f"{100 * row['mean']:.1f}"]
    if row["num_seeds"] > 1:
        parts.append(f"± {100 * row['over_seeds']:.1f}")
    if np.isfinite(row["over_users"]):
        parts.append(f"(± {100 * row['over_users']:.1f})")
    if row["num_diverged"]:
        num_runs = row["num_seeds"] + row["num_diverged"]
        parts.append(f"{row['num_diverged']:.0f} of {num_runs:.0f} diverged")
    return " ".join(parts)
