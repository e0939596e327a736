"""Tables of a fleet's schedule: tasks, rounds, and protocols side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.fleet.schedule import (
    CAUSES,
    OUTCOMES,
    ServerStep,
    Summary,
    summarize,
)

_ESTIMATES = ("low", "mid", "high")


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
    for place, name in enumerate(_ESTIMATES):
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
                    for name, joules in zip(_ESTIMATES, found.joules, strict=True)
                },
                "wasted_compute": found.wasted[0],
            }
        )
    return pd.DataFrame(rows)


def protocols_table(
    found: Mapping[str, Summary], shares: Mapping[str, float]
) -> pd.DataFrame:
    """Returns protocols side by side, one row each.

    Args:
      found: what each protocol's steps amount to, by what it is called.
      shares: of each device class in the fleet, by its name, in the spec's order.

    Returns:
      Numbers under readable names: hours of the whole, the median seconds of a round,
      rounds abandoned, gigabytes, joules of a round taken, low to high, the share
      of training that was wasted, and each class's share of the reports over its share
      of the fleet.
    """
    rows = {}
    for label, summary in found.items():
        rounds = max(summary.rounds, 1)
        low, mid, high = summary.joules / rounds
        rows[label] = {
            "hours": summary.hours,
            "s a round": summary.round_s,
            "abandoned": summary.abandoned,
            "GB down": summary.bytes_down / 1e9,
            "GB up": summary.bytes_up / 1e9,
            "J a round": f"{mid:.3g} ({low:.3g} to {high:.3g})",
            "wasted %": 100 * summary.wasted[0],
            "dropped %": 100 * summary.tasks[2] / max(summary.tasks.sum(), 1),
            **{
                f"{name} / share": part / share
                for (name, share), part in zip(
                    shares.items(), summary.share_by_class, strict=True
                )
            },
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "protocol"
    return table
