"""A fleet's tasks and rounds as rows of files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.fleet.schedule import CAUSES, OUTCOMES, ServerStep, summarize

ESTIMATES = ("low", "mid", "high")


def tasks_table(steps: Sequence[ServerStep], classes: Sequence[str]) -> pd.DataFrame:
    """Returns one row per task: where, who, when, what became of it, and its cost.

    Args:
      steps: of a schedule.
      classes: names of the fleet's device classes.
    """
    tasks = np.concatenate([step.tasks for step in steps])
    # The columns before those that are words.
    table = pd.DataFrame({name: tasks[name] for name in ("step", "attempt", "user")})
    table["device"] = np.array(classes)[tasks["device"]]
    for name in ("begin_s", "down_s", "compute_s", "up_s", "end_s"):
        table[name] = tasks[name]
    table["outcome"] = np.array(OUTCOMES)[tasks["outcome"]]
    table["cause"] = np.array(CAUSES)[tasks["cause"]]
    for name in ("lag", "draw", "steps", "bytes_down", "bytes_up"):
        table[name] = tasks[name]
    for place, name in enumerate(ESTIMATES):
        table[f"joules_{name}"] = tasks["joules"][:, place]
    return table


def rounds_table(steps: Sequence[ServerStep], classes: Sequence[str]) -> pd.DataFrame:
    """Returns one row per server step: its times, outcomes, bytes and joules."""
    rows = []
    for step in steps:
        found = summarize([step], len(classes))
        rows.append(
            {
                "step": step.number,
                "attempt": step.attempt,
                "waited_s": step.waited_s,
                "begin_s": step.begin_s,
                "end_s": step.end_s,
                "is_taken": step.is_taken,
                **dict(zip(OUTCOMES, found.tasks.tolist(), strict=True)),
                "bytes_down": found.bytes_down,
                "bytes_up": found.bytes_up,
                **{
                    f"joules_{name}": joules
                    for name, joules in zip(ESTIMATES, found.joules, strict=True)
                },
                "wasted_compute": found.wasted[0],
            }
        )
    return pd.DataFrame(rows)
