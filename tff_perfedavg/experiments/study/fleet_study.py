"""Tables of what the runs of a study cost a fleet, by target and device class."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.experiments.assemble.fleet import build_fleet_of_run
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN, quantity
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.report import fleet_section
from tff_perfedavg.experiments.settings.experiment import REPEATED
from tff_perfedavg.experiments.study.study import Run, diverged
from tff_perfedavg.fleet.schedule import OUTCOMES


def targets_table(
    root: pathlib.Path, runs: Sequence[Run], targets: Sequence[float] = ()
) -> pd.DataFrame | None:
    """Returns a table of the cost at which runs first met a target in an evaluation.

    Args:
      root: directory of the study.
      runs: on fleets; those that diverged met none.
      targets: accuracies (losses, where labels are no classes) of new users, or of
        training users where there are none, after the most steps of the
        evaluations; by default 90, 95 and 99 % of the best that any run ever reached.

    Returns:
      A row per target and combination of settings but for the seed: over the seeds that
      met it medians of rounds, hours, megabytes sent by phones and kilojoules (middle
      estimate), least and most hours, how many met it, and how many there are. None if
      the runs were not evaluated while they trained.
    """
    curves = {run.name: _curve(root, run) for run in runs}
    found = [curve for curve in curves.values() if curve is not None and len(curve)]
    if not found:
        return None
    everything = pd.concat(found)
    column = quantity(everything)
    targets = targets or fleet_section.default_targets(everything[column], column)
    rows = {}
    for target, (key, mine) in itertools.product(targets, _combinations(runs).items()):
        met = pd.DataFrame(
            [
                fleet_section.spent_until(curve, column, target)
                for run in mine
                if (curve := curves[run.name]) is not None
            ]
        ).dropna(how="all")
        rows[(target, *key)] = {
            **met.median(),
            "least hours": met["hours"].min() if len(met) else np.nan,
            "most hours": met["hours"].max() if len(met) else np.nan,
            "seeds that met it": len(met),
            "seeds": len(mine),
        }
    return _table(rows, [f"target {column}", *_axes(runs)])


def classes_table(
    root: pathlib.Path, runs: Sequence[Run], per_user: pd.DataFrame, step: int
) -> pd.DataFrame:
    """Returns participation, cost and results by device class, over all seeds.

    Args:
      root: directory of the study.
      runs: on fleets; those that diverged are left out.
      per_user: the rows of `read_study`.
      step: of the adaptation.

    Returns:
      A row per combination of settings but for the seed and device class: each class's
      share of the reports taken over its share of the users, the share of its tasks
      that were not taken, joules of a report taken (all of the class's tasks, middle
      estimate), and what training users, with a task or not, reach: the mean
      over users and seeds, and the worst decile of users' means.
    """
    column = quantity(per_user)
    is_share = column == "accuracy"
    rows = {}
    for key, mine in _combinations(runs).items():
        frames = [_of_run(root, run) for run in mine if not diverged(run, root)]
        if not frames:
            continue
        tasks = pd.concat([tasks for tasks, _ in frames])
        names = [run.name for run in mine]
        reached = per_user[
            per_user["run"].isin(names)
            & (per_user["step"] == step)
            & (per_user["users"] == SEEN)
        ].merge(pd.concat([users for _, users in frames]), on=["run", "user"])
        shares = reached["device"].value_counts(normalize=True)
        taken = tasks[tasks["outcome"] == OUTCOMES[0]]
        parts = taken["device"].value_counts(normalize=True)
        for name, of_class in reached.groupby("device"):
            own = tasks[tasks["device"] == name]
            num_taken = (own["outcome"] == OUTCOMES[0]).sum()
            by_user = of_class.groupby(["run", "user"])[column].mean()
            rows[(*key, name)] = {
                "reports / share": parts.get(name, 0.0) / shares[name],
                "not taken %": 100 * (1 - num_taken / max(len(own), 1)),
                "J a report": own["joules_mid"].sum() / max(num_taken, 1),
                f"{column} after {step} steps": by_user.mean(),
                "its worst decile": by_user.quantile(0.1 if is_share else 0.9),
            }
    return _table(rows, [*_axes(runs), "device class"])


def _axes(runs: Sequence[Run]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if name not in REPEATED]


def _combinations(runs: Sequence[Run]) -> dict[tuple, list[Run]]:
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        key = tuple(run.settings.get(name, "-") for name in _axes(runs))
        found.setdefault(key, []).append(run)
    return found


def _curve(root: pathlib.Path, run: Run) -> pd.DataFrame | None:
    """A run's evaluations after the most steps, of new users if there are some."""
    path = RunPaths(root, run.name).evaluations
    if diverged(run, root) or not path.is_file() or not path.stat().st_size:
        return None
    rows = pd.read_csv(path)
    group = NEW if NEW in rows["users"].unique() else SEEN
    rows = rows[(rows["users"] == group) & (rows["step"] == rows["step"].max())]
    return rows


def _of_run(root: pathlib.Path, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A run's tasks, and the device class of each of its users."""
    paths, experiment = RunPaths(root, run.name), run.experiment
    fleet = build_fleet_of_run(experiment, build_population(experiment, root))
    devices = np.array(fleet.spec.classes)[fleet.records["device"]]
    users = pd.DataFrame({"device": devices})
    users = users.rename_axis("user").reset_index().assign(run=run.name)
    return pd.read_csv(paths.fleet_tasks), users


def _table(rows: Mapping[tuple, Mapping], names: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame.from_dict([*rows.values()])
    table.index = pd.MultiIndex.from_tuples([*rows], names=names)
    return table
