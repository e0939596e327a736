"""Protocols side by side, as a table."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from tff_perfedavg.fleet.schedule import Summary


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
