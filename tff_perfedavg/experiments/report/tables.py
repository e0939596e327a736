"""Per-user results summed up: a table, its files, and the adaptation curves."""

from __future__ import annotations

import pathlib
from collections.abc import Collection

import pandas as pd

from tff_perfedavg.experiments.evaluation.metrics import (
    FEWEST_RESAMPLED,
    FEWEST_USERS,
    summarize,
)
from tff_perfedavg.experiments.report import figures
from tff_perfedavg.files import atomic_write


def percent_table(summary: pd.DataFrame, steps: Collection[int]) -> pd.DataFrame:
    """Returns the chosen steps of a summary under readable names, in percent."""
    chosen = summary.loc[summary.index.get_level_values("step").isin(steps)]
    return pd.DataFrame(
        {
            "accuracy %": 100 * chosen["accuracy"],
            "sd over users": 100 * chosen["accuracy_sd"],
            "median": 100 * chosen["accuracy_p50"],
            "worst decile": 100 * chosen["worst_decile"],
            "best decile": 100 * chosen["best_decile"],
            "made worse %": 100 * chosen["made_worse"],
            "loss": chosen["loss"],
        }
    ).dropna(axis="columns", how="all")


def format_table(summary: pd.DataFrame, steps: Collection[int]) -> str:
    """Lays the chosen steps of a summary out for a terminal, in percent."""
    percent = percent_table(summary, steps)
    parts = []
    for group in percent.index.unique("users"):
        table = percent.xs(group, level="users")
        table.index.names = ["algorithm", "steps"]
        text = table.to_string(
            formatters={"loss": "{:.3f}".format}, float_format="{:.1f}".format
        )
        num_users = summary.xs(group, level="users")["num_users"].max()
        parts.append(f"{figures.GROUP_TITLES[group]} ({num_users}):\n{text}")
    return "\n\n".join(parts)


def comparison_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Returns paired comparisons under readable names, in percentage points."""
    return pd.DataFrame(
        {
            "gain": 100 * comparison["difference"],
            "from": 100 * comparison["low"],
            "to": 100 * comparison["high"],
            "users better": comparison["num_better"],
            "worse": comparison["num_worse"],
            "equal": comparison["num_equal"],
        }
    )


# What the intervals of a comparison are.
INTERVALS = (
    f"95 % interval over users (bootstrap; Student's below {FEWEST_RESAMPLED} users, "
    f"none below {FEWEST_USERS})"
)
# What a comparison of a quantity shows.
COMPARED = {
    "accuracy": "the second against the first on the same users: mean gain in "
    f"accuracy, percentage points, {INTERVALS}",
    "loss": "the second against the first on the same users: mean difference of the "
    f"loss, {INTERVALS}",
}
# What the two figures after a mean are.
HALF_WIDTHS = (
    "± half the width of Student's 95 % interval over seeds (from two on) and over "
    f"users (from {FEWEST_USERS} on)"
)


def format_comparison(comparison: pd.DataFrame, column: str = "accuracy") -> str:
    """Lays paired comparisons out for a terminal, accuracies in percentage points."""
    table = comparison_table(comparison)
    if column == "accuracy":
        return table.to_string(float_format="{:+.1f}".format, na_rep="-")
    table = table.rename(columns={"gain": "difference"})
    # A loss is no share of a hundred.
    table[["difference", "from", "to"]] /= 100
    return table.to_string(float_format="{:+.3g}".format, na_rep="-")


def write_report(
    per_user: pd.DataFrame,
    directory: pathlib.Path,
    prefix: str = "",
    baselines: pd.DataFrame | None = None,
) -> list[pathlib.Path]:
    """Writes the summary as CSV and draws the adaptation curves.

    Args:
      per_user: as for `metrics.summarize`.
      directory: where the files are written.
      prefix: of their names.
      baselines: rows of `evaluate_baselines`, which have no curve.

    Returns:
      The files written: `table.csv` and `adaptation_curve.png`, their names behind the
      prefix.
    """
    table, curve = (
        directory / f"{prefix}{name}" for name in ("table.csv", "adaptation_curve.png")
    )
    with atomic_write(table) as file:
        summarize(pd.concat([baselines, per_user])).to_csv(file)
    figures.save(figures.adaptation_curves(per_user), curve)
    return [table, curve]
