"""What a fleet spent on a run, and which device classes it served."""

from __future__ import annotations

import pandas as pd

from tff_perfedavg.experiments.evaluation.metrics import quantity
from tff_perfedavg.fleet.schedule import OUTCOMES, gini

# Columns of the metrics over which learning is drawn, and what they are called.
SPENT = {
    "fleet_hours": "hours of the fleet",
    "fleet_bytes_up": "bytes sent by phones (number)",
    "fleet_joules_mid": "joules, middle estimate (J)",
}
_BUSIEST = 0.3


def finding(label: str, rounds: pd.DataFrame, tasks: pd.DataFrame) -> str:
    """Tells in a sentence what a run cost the world, and who did the work.

    Args:
      label: what the run is called.
      rounds: one row per round, with what was spent so far.
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


def classes_table(tasks: pd.DataFrame, per_user: pd.DataFrame) -> pd.DataFrame:
    """Returns device classes side by side: outcomes, cost, and what adapting gave.

    Args:
      tasks: one row per task.
      per_user: what users made of the model; those who had a task count.
    """
    column = quantity(per_user)
    last = per_user[per_user["step"] == per_user["step"].max()].set_index("user")
    rows = {}
    for name, mine in tasks.groupby("device"):
        users = mine["user"].unique()
        shares = mine["outcome"].value_counts(normalize=True)
        reached = last[column].reindex(users).dropna()
        scale = 100 if column == "accuracy" else 1
        worst = reached.quantile(0.1 if column == "accuracy" else 0.9)
        rows[name] = {
            "users with a task": len(users),
            "tasks": len(mine),
            **{f"{o} %": 100 * shares.get(o, 0.0) for o in OUTCOMES},
            "median s a task": (mine["end_s"] - mine["begin_s"]).median(),
            "J a task": mine["joules_mid"].mean(),
            f"{column} after adapting": scale * reached.mean(),
            "its worst decile": scale * worst,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "device class"
    return table
