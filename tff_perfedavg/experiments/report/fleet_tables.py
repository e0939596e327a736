"""Tables of protocols compared, and of a protocol by hour of the day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.fleet.availability import HOUR
from tff_perfedavg.fleet.fleet import Fleet
from tff_perfedavg.fleet.schedule import TAKEN, ServerStep, Summary


def protocols_table(
    found: Mapping[str, Summary], shares: Mapping[str, float]
) -> pd.DataFrame:
    """Returns a comparison of protocols, one row each.

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


def hours_table(
    hours: Sequence[Sequence[ServerStep]], fleet: Fleet, needs: Sequence[str]
) -> pd.DataFrame:
    """Returns availability, rounds and traffic by hour of the day, one row each.

    Args:
      hours: steps of `protocols.simulate_hours`.
      fleet: the devices.
      needs: conditions under which they may work.

    Returns:
      Numbers under readable names: the share of users that are on and their number,
      rounds taken an hour, reports to aggregate a second (those taken), bits a second
      out of the server and into it, and the mean number of devices at work.
    """
    middles = [(hour + 0.5) * HOUR for hour in range(len(hours))]
    rows = {}
    for hour, (steps, share) in enumerate(
        zip(hours, fleet.share_on(needs, middles), strict=True)
    ):
        first, last = steps[0], steps[-1]
        seconds = last.end_s - (first.begin_s - first.waited_s)
        tasks = np.concatenate([step.tasks for step in steps])
        rows[hour] = {
            "on %": 100 * share,
            "million on": share * len(fleet.records) / 1e6,
            "rounds an hour": sum(s.is_taken for s in steps) * HOUR / seconds,
            "updates/s": np.count_nonzero(tasks["outcome"] == TAKEN) / seconds,
            "Gbit/s out": 8e-9 * tasks["bytes_down"].sum() / seconds,
            "Gbit/s in": 8e-9 * tasks["bytes_up"].sum() / seconds,
            "at work": (tasks["end_s"] - tasks["begin_s"]).sum() / seconds,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "hour, UTC"
    return table
