"""Per-user results summed up: a table, its files, and the adaptation curves."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Collection

import matplotlib.figure
import pandas as pd

from tff_perfedavg.files import atomic_write
from tff_perfedavg.programs.metrics import NEW, SEEN, summarize

_GROUPS = {SEEN: "users seen in training", NEW: "new users"}
# Told apart by more than colour, for curves that coincide.
_STYLES = ("o-", "s--", "^-", "D:")


def format_table(summary: pd.DataFrame, steps: Collection[int]) -> str:
    """Lays the chosen steps of a summary out for a terminal, in percent."""
    chosen = summary.loc[summary.index.get_level_values("step").isin(steps)]
    percent = pd.DataFrame(
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
    parts = []
    for group in percent.index.unique("users"):
        table = percent.xs(group, level="users")
        table.index.names = ["algorithm", "steps"]
        text = table.to_string(
            formatters={"loss": "{:.3f}".format}, float_format="{:.1f}".format
        )
        num_users = chosen.xs(group, level="users")["num_users"].max()
        parts.append(f"{_GROUPS[group].capitalize()} ({num_users}):\n{text}")
    return "\n\n".join(parts)


def format_comparison(comparison: pd.DataFrame) -> str:
    """Lays paired comparisons out for a terminal, in percentage points."""
    table = pd.DataFrame(
        {
            "gain": 100 * comparison["difference"],
            "from": 100 * comparison["low"],
            "to": 100 * comparison["high"],
            "users better": comparison["num_better"],
            "worse": comparison["num_worse"],
            "equal": comparison["num_equal"],
        }
    )
    return table.to_string(float_format="{:+.1f}".format)


def draw_adaptation_curves(per_user: pd.DataFrame, path: pathlib.Path) -> None:
    """Draws mean accuracy by adaptation step, one panel a group, as a PNG.

    Where labels are no classes, the mean loss is drawn.

    Args:
      per_user: as for `summarize`.
      path: the file to write.
    """
    groups = per_user["users"].unique()
    has_accuracy = per_user["accuracy"].notna().any()
    column, scale = ("accuracy", 100) if has_accuracy else ("loss", 1)
    quantity = "accuracy on held-out rows (%)" if has_accuracy else "loss"
    figure = matplotlib.figure.Figure(figsize=(4.8 * len(groups), 4.2))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=True):
        of_group = per_user[per_user["users"] == group]
        by_algorithm = of_group.groupby("algorithm", sort=False)
        for (algorithm, rows), style in zip(
            by_algorithm, itertools.cycle(_STYLES), strict=False
        ):
            by_step = rows.groupby("step")[column]
            mean, error = scale * by_step.mean(), scale * by_step.sem()
            (line,) = panel.plot(
                mean.index, mean, style, fillstyle="none", label=algorithm
            )
            panel.fill_between(
                mean.index,
                mean - error,
                mean + error,
                alpha=0.15,
                color=line.get_color(),
            )
        panel.set_title(_GROUPS[group].capitalize())
        panel.set_xlabel("adaptation steps (number)")
        panel.set_xticks(sorted(per_user["step"].unique()))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{quantity},\nmean ± standard error")
    panels[-1].legend()
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def write_report(
    per_user: pd.DataFrame, directory: pathlib.Path, prefix: str = ""
) -> list[pathlib.Path]:
    """Writes the summary and the per-user rows as CSV and draws the curves.

    Returns:
      The files written: `table.csv`, `per_user.csv`, `adaptation_curve.png`, their
      names behind the prefix.
    """
    table, rows, curve = (
        directory / f"{prefix}{name}"
        for name in ("table.csv", "per_user.csv", "adaptation_curve.png")
    )
    with atomic_write(table) as file:
        summarize(per_user).to_csv(file)
    with atomic_write(rows) as file:
        per_user.to_csv(file, index=False)
    draw_adaptation_curves(per_user, curve)
    return [table, rows, curve]
