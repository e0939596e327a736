"""Figures of a fleet: a round, availability, battery use, the cost of targets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from tff_perfedavg.experiments.report.figures import SETTINGS
from tff_perfedavg.fleet.availability import DAY, HOUR
from tff_perfedavg.fleet.schedule import OUTCOMES, ServerStep

# After Okabe and Ito, on a light and on a dark page.
_PHASES = (
    ("down_s", "download", "#56B4E9"),
    ("compute_s", "training", "#E69F00"),
    ("up_s", "upload", "#009E73"),
)
_MARKS = {"taken": "|", "late": "x", "dropped": "v", "abandoned": "o"}
_CLASS_COLOURS = ("#D55E00", "#1A85C9", "#009E73", "#CC79A7", "#E69F00")
# What `targets` draws: a column of its table, its factor and words.
_COSTS = (
    ("hours", 3600, "seconds until the target was met"),
    ("MB up", 1, "sent by phones (MB)"),
    ("kJ", 1000, "energy of the phones (J)"),
)
_OF_GOALS = [*zip("os^Dv", _CLASS_COLOURS, strict=True)]
_TARGET = "target "
_OF_TARGETS = frozenset(
    ["rounds", "least hours", "most hours", "seeds that met it", "seeds"]
    + [name for name, _, _ in _COSTS]
)
# More bars would be lines.
_MOST_BARS = 60


def timeline(step: ServerStep, classes: Sequence[str]) -> matplotlib.figure.Figure:
    """Draws what each device of a round did, from its begin to the last end.

    Devices stand in the order of their ends; of more than sixty every so manieth.

    Args:
      step: a server step.
      classes: names of the device classes.
    """
    order = np.lexsort([step.tasks["end_s"], step.tasks["device"]])
    tasks = step.tasks[order]
    if len(tasks) > _MOST_BARS:
        chosen = np.linspace(0, len(tasks) - 1, _MOST_BARS).round().astype(int)
        tasks = tasks[chosen]
    rows = np.arange(len(tasks))
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(9.6, 1.2 + 0.09 * len(tasks)))
        panel = figure.subplots()
        left = np.zeros(len(tasks))
        for name, _, colour in _PHASES:
            panel.barh(rows, tasks[name], left=left, color=colour)
            left += tasks[name]
        for place, outcome in enumerate(OUTCOMES):
            mine = tasks["outcome"] == place
            if mine.any():
                panel.plot(
                    (tasks["end_s"] - tasks["begin_s"])[mine],
                    rows[mine],
                    _MARKS[outcome],
                    color="#D55E00" if place else "#101112",
                    markersize=4,
                    label=outcome,
                )
        panel.axvline(step.end_s - step.begin_s, color="#101112", linestyle="--")
        handles = [Patch(color=c, label=label) for _, label, c in _PHASES]
        marks, _ = panel.get_legend_handles_labels()
        panel.legend(
            handles=handles + marks, loc="center left", bbox_to_anchor=(1, 0.5)
        )
        _name_classes(panel, tasks["device"], classes)
        panel.set_xlabel(
            "seconds since the round began; dashed: the server stops waiting"
        )
        figure.tight_layout()
    return figure


def _name_classes(panel, devices: np.ndarray, classes: Sequence[str]) -> None:
    """Writes each class's name beside the middle of its bars."""
    places, names = [], []
    for number, name in enumerate(classes):
        mine = np.flatnonzero(devices == number)
        if len(mine):
            places.append(mine.mean())
            names.append(name)
            panel.axhline(mine[-1] + 0.5, color="#b0b1b2", linewidth=0.6)
    panel.set_yticks(places, names)


def day(
    share_on: np.ndarray, begins: np.ndarray, is_taken: np.ndarray
) -> matplotlib.figure.Figure:
    """Draws, over the hours of a day, who is on, and when tasks begin.

    Args:
      share_on: `[24]`, of the users, at the middle of each hour (UTC).
      begins: `[tasks]`, seconds since the start of the simulation.
      is_taken: bool `[tasks]`, whether each task's report was taken.
    """
    hours = np.arange(24)
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(9.6, 4.6))
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.bar(hours + 0.5, 100 * share_on, width=0.9, color="#56B4E9")
        upper.set_ylim(bottom=0)
        upper.set_ylabel("users that are on (%)")
        began = (begins % DAY // HOUR).astype(int)
        taken, other = (
            np.bincount(began[chosen], minlength=24) for chosen in (is_taken, ~is_taken)
        )
        lower.bar(hours + 0.5, taken, width=0.9, color="#009E73", label="taken")
        lower.bar(
            hours + 0.5, other, 0.9, bottom=taken, color="#D55E00", label="not taken"
        )
        lower.set_ylabel("tasks (number)")
        lower.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        lower.set_xticks(range(0, 25, 3))
        lower.set_xlabel("hour of the day, UTC")
        figure.tight_layout()
    return figure


def batteries(shares: pd.DataFrame, classes: Sequence[str]) -> matplotlib.figure.Figure:
    """Draws what a day's tasks take of a full battery, by device class.

    Args:
      shares: one row per user and day with a task: `device`, `share`.
      classes: names of the device classes.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(9.6, 3.6))
        panel = figure.subplots()
        values = 100 * np.maximum(shares["share"], 1e-9)
        edges = np.geomspace(values.min() * 0.99, values.max() * 1.01, 30)
        for name, colour in zip(classes, itertools.cycle(_CLASS_COLOURS)):
            panel.hist(
                100 * shares["share"][shares["device"] == name],
                edges.tolist(),
                histtype="step",
                linewidth=1.8,
                color=colour,
                label=name,
            )
        panel.set_xscale("log")
        panel.set_xlabel("of a full battery, what a user's tasks of a day took (%)")
        panel.set_ylabel("users and days (number)")
        panel.legend()
        figure.tight_layout()
    return figure


def targets(table: pd.DataFrame) -> matplotlib.figure.Figure:
    """Draws what it cost to meet targets: time, bytes and joules.

    A row for each combination of settings, a mark for each target that was met, hollow
    where less than half of the seeds met it; a line from the least to the most time.
    What was met before any training cost nothing and is not drawn.

    Args:
      table: of `fleet_study.targets_table`; its index may be columns.
    """
    table = table.reset_index() if table.index.names[0] else table
    settings = [name for name in table if name not in _OF_TARGETS]
    (target,) = (name for name in settings if name.startswith(_TARGET))
    settings.remove(target)
    words = table[settings].fillna("").astype(str)
    words = words.agg(lambda row: ", ".join(filter(None, row)), axis=1)
    named = [*dict.fromkeys(words)]
    groups = table.assign(place=words.map(named.index)).groupby(target)
    away = 0.2 * (np.arange(len(groups)) - (len(groups) - 1) / 2)
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(10.5, 1.5 + 0.3 * len(named)))
        panels = figure.subplots(1, len(_COSTS), sharey=True)
        for panel, cost in zip(panels, _COSTS, strict=True):
            for (goal, rows), up, looks in zip(
                groups, away, itertools.cycle(_OF_GOALS), strict=False
            ):
                _marks(panel, rows.dropna(subset=["hours"]), up, cost, looks, goal)
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel(cost[2])
            panel.grid(axis="x", alpha=0.4)
        panels[0].set_yticks(range(len(named)), named)
        panels[0].invert_yaxis()
        panels[-1].legend(
            title=target.removeprefix(_TARGET),
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
        figure.tight_layout()
    return figure


def _marks(panel, rows: pd.DataFrame, up: float, cost, looks, goal: float) -> None:
    """Draws what one target cost."""
    (name, factor, _), (mark, colour) = cost, looks
    height = rows["place"] + up
    if name == "hours":
        ends = factor * rows["least hours"], factor * rows["most hours"]
        panel.hlines(height, *ends, colour, linewidth=1)
    few = 2 * rows["seeds that met it"] < rows["seeds"]
    for chosen, face, label in ((~few, colour, f"{goal:g}"), (few, "none", None)):
        panel.plot(
            factor * rows[name][chosen],
            height[chosen],
            mark,
            color=colour,
            markerfacecolor=face,
            label=label,
        )
