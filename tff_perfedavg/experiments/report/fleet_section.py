"""Tables and figures of what a run cost a fleet, by device class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import matplotlib.figure
import numpy as np
import pandas as pd

from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN, quantity
from tff_perfedavg.experiments.files.fleet_rows import last_step
from tff_perfedavg.experiments.report import fleet_figures
from tff_perfedavg.fleet.availability import DAY, HOUR
from tff_perfedavg.fleet.fleet import Fleet
from tff_perfedavg.fleet.schedule import OUTCOMES, gini

# Columns of the metrics over which learning is drawn, what they are called, and the
# unit that they are told in.
SPENT = {
    "fleet_hours": ("hours of the fleet", 1),
    "fleet_bytes_up": ("megabytes sent by phones", 1e6),
    "fleet_joules_mid": ("kilojoules, middle estimate", 1e3),
}
_SPENT_UNTIL = {
    "rounds": ("round_num", 1),
    "hours": ("fleet_hours", 1),
    "MB up": ("fleet_bytes_up", 1e6),
    "kJ": ("fleet_joules_mid", 1e3),
}
_BUSIEST = 0.3
# Targets, of the best that any of the runs reached.
_TARGETS = (0.9, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class FleetRecord:
    """The fleet of a run with its tables of tasks and rounds.

    Attributes:
      fleet: as it was drawn for the run's users.
      needs: conditions under which phones may work.
      tasks: one row per task.
      rounds: one row per round of the fleet, abandoned ones included.
    """

    fleet: Fleet
    needs: tuple[str, ...]
    tasks: pd.DataFrame
    rounds: pd.DataFrame

    def batteries(self) -> pd.DataFrame:
        """Returns the battery use of a day's tasks, as a share of a full one.

        Returns:
          One row per user and day with a task: `user`, `day`, `device`, `share` (of
          the middle estimates).
        """
        capacity = {d.name: 3600 * d.battery_wh.mid for d in self.fleet.spec.devices}
        days = self.tasks["begin_s"] // DAY
        keys = ["user", "day", "device"]
        spent = self.tasks.assign(day=days).groupby(keys)["joules_mid"].sum()
        table = spent.reset_index()
        table["share"] = table.pop("joules_mid") / table["device"].map(capacity)
        return table


def finding(label: str, rounds: pd.DataFrame, tasks: pd.DataFrame) -> str:
    """Summarizes in a sentence what a run cost, and who did the work.

    Args:
      label: what the run is called.
      rounds: one row per round of training, with what was spent so far.
      tasks: one row per task.
    """
    last = rounds.iloc[-1]
    low, mid, high = (last[f"fleet_joules_{n}"] / 1000 for n in ("low", "mid", "high"))
    taken = tasks["outcome"] == OUTCOMES[0]
    training = tasks["compute_s"]
    counts = tasks[taken].groupby("user").size().sort_values(ascending=False)
    busiest = counts.iloc[: max(1, round(_BUSIEST * len(counts)))].sum()
    wasted = 1 - training[taken].sum() / max(training.sum(), 1e-12)
    return (
        f"{label}: {len(rounds)} rounds took the fleet {last['fleet_hours']:.3g} "
        f"hours, {last['fleet_bytes_down'] / 1e6:.3g} MB down and "
        f"{last['fleet_bytes_up'] / 1e6:.3g} MB up, and {mid:.3g} kJ ({low:.3g} to "
        f"{high:.3g}). Of {len(tasks)} tasks {taken.sum()} were taken; "
        f"{100 * wasted:.0f} % of the training was wasted. Of those who were ever "
        f"taken, the busiest 30 % did "
        f"{100 * busiest / max(counts.sum(), 1):.0f} % (Gini {gini(counts):.2f})."
    )


def classes_table(record: FleetRecord, per_user: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of device classes: outcomes, cost, and results after adapting.

    `reports / share` is a class's share of the reports taken over its share of the
    training users that were measured; a class of users without a task is there, too.

    Args:
      record: the run's fleet.
      per_user: per-user results; of a class those who had a task count.
    """
    tasks, batteries = record.tasks, record.batteries()
    column = quantity(per_user)
    last = per_user[per_user["step"] == per_user["step"].max()].set_index("user")
    rows = {}
    taken = tasks[tasks["outcome"] == OUTCOMES[0]]
    training = last.index[last["users"] == SEEN].unique()
    devices = record.fleet.records["device"][training]
    for number, name in enumerate(record.fleet.spec.classes):
        mine = tasks[tasks["device"] == name]
        share = (devices == number).mean()
        if mine.empty and not share:
            continue
        users = mine["user"].unique()
        shares = mine["outcome"].value_counts(normalize=True)
        of_taken = (taken["device"] == name).mean()
        nothing = np.nan if mine.empty else 0.0
        reached = last[column].reindex(users).dropna()
        scale = 100 if column == "accuracy" else 1
        worst = reached.quantile(0.1 if column == "accuracy" else 0.9)
        rows[name] = {
            "users with a task": len(users),
            "tasks": len(mine),
            "reports / share": of_taken / share if share else np.nan,
            **{f"{o} %": 100 * shares.get(o, nothing) for o in OUTCOMES},
            "median s a task": (mine["end_s"] - mine["begin_s"]).median(),
            "J a task": mine["joules_mid"].mean(),
            **_battery(batteries[batteries["device"] == name]["share"]),
            f"{column} after adapting": scale * reached.mean(),
            "its worst decile": scale * worst,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "device class"
    return table


def causes_table(tasks: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of tasks not taken: number and cost by cause.

    Args:
      tasks: one row per task.
    """
    lost = tasks[tasks["outcome"] != OUTCOMES[0]]
    by_cause = lost.groupby(
        ["outcome", lost["cause"].fillna("").replace("", "round abandoned")]
    )
    return pd.DataFrame(
        {
            "tasks": by_cause.size(),
            "hours of training": by_cause["compute_s"].sum() / HOUR,
            "kJ": by_cause["joules_mid"].sum() / 1000,
            "MB up": by_cause["bytes_up"].sum() / 1e6,
        }
    )


def targets_table(curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Returns a table of the cost at which runs first reached a target.

    Targets are shares of the best accuracy after adapting that any of the runs ever
    reached, of new users where there are some (of a loss, the best over the share).

    Args:
      curves: by run, the rows of its `evaluation.metrics.csv`.

    Returns:
      A row per target and run, nan where it was never reached; None where the runs
      have no evaluations in common to compare.
    """
    everything = pd.concat(curves.values(), keys=curves.keys(), names=["run"])
    column = quantity(everything)
    groups = everything["users"].unique()
    group = NEW if NEW in groups else groups[0]
    of_group = everything[everything["users"] == group]
    last = of_group.groupby("run")["step"].max()
    if last.nunique() != 1:
        return None
    reached = of_group[of_group["step"] == last.iloc[0]]
    rows = {}
    for target in default_targets(reached[column], column):
        value = f"{100 * target:.1f} %" if column == "accuracy" else f"{target:.3g}"
        for label in curves:
            key = f"{value} of {group} users' {column}", label
            rows[key] = spent_until(reached.loc[[label]], column, target)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["target", "run"])
    return table


def default_targets(values: pd.Series, column: str) -> list[float]:
    """Returns targets: shares of the best accuracy, or the best loss over the shares.

    Args:
      values: of all evaluations of all runs.
      column: what they are, `accuracy` (from 0 to 1) or `loss`.
    """
    if column == "accuracy":
        return [values.max() * part for part in _TARGETS]
    return [values.min() / part for part in _TARGETS]


def spent_until(curve: pd.DataFrame, column: str, target: float) -> dict[str, float]:
    """Returns a run's cost until it first met a target; NaN if it never did.

    Args:
      curve: a run's evaluations, one row each.
      column: an accuracy, that is to reach the target, or a loss, to fall to it.
      target: the target.
    """
    values = curve[column]
    is_met = values >= target if column == "accuracy" else values <= target
    met = curve[is_met].sort_values("round_num")
    first = met.iloc[0] if len(met) else pd.Series(dtype=float)
    return {
        name: first.get(spent, np.nan) / unit
        for name, (spent, unit) in _SPENT_UNTIL.items()
    }


def figures(record: FleetRecord) -> dict[str, tuple[str, matplotlib.figure.Figure]]:
    """Returns a run's figures with their captions, by name."""
    middles = (np.arange(24) + 0.5) * HOUR
    tasks = record.tasks
    last = last_step(tasks, record.rounds, record.fleet.spec.classes)
    return {
        "fleet_day": (
            "how many users' phones may work over the day, and when tasks began.",
            fleet_figures.day(
                record.fleet.share_on(record.needs, middles.tolist()),
                tasks["begin_s"].to_numpy(),
                (tasks["outcome"] == OUTCOMES[0]).to_numpy(),
            ),
        ),
        "fleet_batteries": (
            "what a user's tasks of a day took of a full battery, of users and days "
            "with a task; middle estimates.",
            fleet_figures.batteries(record.batteries(), record.fleet.spec.classes),
        ),
        "fleet_timeline": (
            f"timeline of the last round, {last.number}.",
            fleet_figures.timeline(last, record.fleet.spec.classes),
        ),
    }


def told(value: float) -> str:
    """Formats a number for the fleet's tables: three digits, or whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _battery(shares: pd.Series) -> dict[str, float]:
    return {
        "battery a user-day %": 100 * shares.median(),
        "its largest": 100 * shares.max(),
    }
