"""A fleet's tasks and rounds as rows of files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.fleet.schedule import (
    CAUSES,
    OUTCOMES,
    TASK,
    ServerStep,
    summarize,
)

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


def last_step(
    tasks: pd.DataFrame, rounds: pd.DataFrame, classes: Sequence[str]
) -> ServerStep:
    """Returns the last server step of the two tables, as far as they tell it.

    Args:
      tasks: as of `tasks_table`.
      rounds: as of `rounds_table`.
      classes: names of the fleet's device classes.
    """
    last = rounds.iloc[-1]
    mine = tasks[
        (tasks["step"] == last["step"]) & (tasks["attempt"] == last["attempt"])
    ]
    found = np.zeros([len(mine)], TASK)
    words = {"device": classes, "outcome": OUTCOMES, "cause": CAUSES}
    for name in TASK.names or ():
        if name == "joules":
            found[name] = mine[[f"joules_{estimate}" for estimate in ESTIMATES]]
        elif name in words:
            values = mine[name].fillna("")
            found[name] = [words[name].index(value) for value in values]
        else:
            found[name] = mine[name]
    return ServerStep(
        int(last["step"]),
        int(last["attempt"]),
        float(last["waited_s"]),
        float(last["begin_s"]),
        float(last["end_s"]),
        bool(last["is_taken"]),
        found,
    )
