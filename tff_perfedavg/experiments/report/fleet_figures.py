"""Figures of a fleet's schedule: the timeline of a round."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.patches import Patch

from tff_perfedavg.experiments.report.figures import SETTINGS
from tff_perfedavg.fleet.schedule import OUTCOMES, ServerStep

# After Okabe and Ito, on a light and on a dark page.
_PHASES = (
    ("down_s", "download", "#56B4E9"),
    ("compute_s", "training", "#E69F00"),
    ("up_s", "upload", "#009E73"),
)
_MARKS = {"taken": "|", "late": "x", "dropped": "v", "abandoned": "o"}
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
        figure = matplotlib.figure.Figure(figsize=(8, 1.2 + 0.09 * len(tasks)))
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
