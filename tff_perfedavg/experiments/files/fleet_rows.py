"""Tables of a fleet's tasks and rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.fleet.schedule import (
    CAUSES,
    OUTCOMES,
    TAKEN,
    TASK,
    ServerStep,
)

ESTIMATES = ("low", "mid", "high")

Columns = dict[str, list]


def tasks_columns(steps: Sequence[ServerStep], classes: Sequence[str]) -> Columns:
    """Returns the tasks table's columns: round, user, device, times, outcome, cost.

    One row per task.

    Args:
      steps: of a schedule.
      classes: names of the fleet's device classes.
    """
    tasks = np.concatenate([step.tasks for step in steps])
    # The columns before those that are words.
    found = {name: tasks[name] for name in ("step", "attempt", "user")}
    found["device"] = np.array(classes)[tasks["device"]]
    for name in ("begin_s", "down_s", "compute_s", "up_s", "end_s"):
        found[name] = tasks[name]
    found["outcome"] = np.array(OUTCOMES)[tasks["outcome"]]
    found["cause"] = np.array(CAUSES)[tasks["cause"]]
    for name in ("lag", "draw", "steps", "bytes_down", "bytes_up"):
        found[name] = tasks[name]
    for place, name in enumerate(ESTIMATES):
        found[f"joules_{name}"] = tasks["joules"][:, place]
    return {name: values.tolist() for name, values in found.items()}


def rounds_columns(steps: Sequence[ServerStep]) -> Columns:
    """Returns the rounds table's columns: times, outcomes, bytes and joules.

    One row per server step.

    Args:
      steps: of a schedule.
    """
    tasks = np.concatenate([step.tasks for step in steps])
    # No step is without tasks.
    starts = np.cumsum([0, *(len(step.tasks) for step in steps[:-1])])

    def total(values):
        return np.add.reduceat(values, starts)

    found: Columns = {
        "step": [step.number for step in steps],
        "attempt": [step.attempt for step in steps],
        "waited_s": [step.waited_s for step in steps],
        "begin_s": [step.begin_s for step in steps],
        "end_s": [step.end_s for step in steps],
        "is_taken": [step.is_taken for step in steps],
    }
    for place, name in enumerate(OUTCOMES):
        found[name] = total((tasks["outcome"] == place).astype(int)).tolist()
    for name in ("bytes_down", "bytes_up"):
        found[name] = total(tasks[name]).tolist()
    for place, name in enumerate(ESTIMATES):
        found[f"joules_{name}"] = total(tasks["joules"][:, place]).tolist()
    training = total(tasks["compute_s"])
    lost = total(np.where(tasks["outcome"] == TAKEN, 0, tasks["compute_s"]))
    found["wasted_compute"] = (lost / np.where(training > 0, training, 1)).tolist()
    return found


def tasks_table(steps: Sequence[ServerStep], classes: Sequence[str]) -> pd.DataFrame:
    """Returns the tasks table, one row per task.

    Args:
      steps: of a schedule.
      classes: names of the fleet's device classes.

    Returns:
      The columns of `tasks_columns`.
    """
    return pd.DataFrame(tasks_columns(steps, classes))


def rounds_table(steps: Sequence[ServerStep]) -> pd.DataFrame:
    """Returns the rounds table, one row per server step, by `rounds_columns`."""
    return pd.DataFrame(rounds_columns(steps))


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
