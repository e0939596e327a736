"""Text and CSV tables of per-user results."""

from __future__ import annotations

import decimal
import pathlib
from collections.abc import Collection

import numpy as np
import pandas as pd

from tff_perfedavg.experiments.evaluation.classes_held import COLUMN, by_classes_held
from tff_perfedavg.experiments.evaluation.metrics import (
    BASELINE,
    FEWEST_RESAMPLED,
    FEWEST_USERS,
    summarize,
)
from tff_perfedavg.experiments.evaluation.significance import MOST_EXACT
from tff_perfedavg.experiments.report import figures
from tff_perfedavg.files import atomic_write

_USERS = "users (number)"
# Larger numbers have no places that nine more could round.
_MOST_EXACT = 1e15


def percent_table(summary: pd.DataFrame, steps: Collection[int]) -> pd.DataFrame:
    """Returns the chosen steps of a summary with readable columns, in percent.

    Baselines that take no steps are there whatever was chosen.

    Args:
      summary: of `metrics.summarize`.
      steps: of the adaptation.
    """
    chosen = _chosen(summary, steps)
    table = pd.DataFrame(
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
    if (chosen.groupby(level="users")["num_users"].nunique() > 1).any():
        table[_USERS] = chosen["num_users"]
    return _with_steps(table, summary)


def fixed(value: float, places: int = 1) -> str:
    """Formats a number with fixed decimals, halves rounded away from zero.

    Sums in another order differ in their last bits, and must not in what is shown.

    Args:
      value: the number.
      places: decimals.
    """
    if not abs(value) < _MOST_EXACT:
        return f"{value:.{places}f}"
    unit = decimal.Decimal(1).scaleb(-places)
    number = decimal.Decimal(f"{value:.9f}").quantize(unit, decimal.ROUND_HALF_UP)
    # No minus before a zero.
    return str(number if number else abs(number))


def fixed_loss(value: float) -> str:
    """Formats a loss with three decimals."""
    return fixed(value, 3)


def signed(value: float) -> str:
    """Formats a number as `fixed` does, with its sign."""
    text = fixed(value)
    return text if text.startswith("-") else f"+{text}"


def _takes_no_steps(table: pd.DataFrame) -> np.ndarray:
    """Returns which rows are of baselines that take no steps."""
    if "kind" not in table.index.names:
        return np.zeros(len(table), bool)
    rows = table.index.to_frame(index=False)
    most = rows.groupby("algorithm")["step"].transform("max")
    return ((rows["kind"] == BASELINE) & (most == 0)).to_numpy()


def _chosen(table: pd.DataFrame, steps: Collection[int]) -> pd.DataFrame:
    """Returns the rows of the steps chosen, and of baselines that take none."""
    of_steps = table.index.get_level_values("step").isin(steps)
    return table.loc[of_steps | _takes_no_steps(table)]


def _with_steps(table: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Names the index for readers; a baseline that takes no steps has a dash."""
    without = {*summary.index[_takes_no_steps(summary)]}
    if without:
        is_without = table.index.isin(without)
        index = table.index.to_frame(index=False)
        index["step"] = index["step"].astype(object).mask(is_without, "-")
        table.index = pd.MultiIndex.from_frame(index)
    return table.rename_axis(index={"step": "steps"})


def format_table(summary: pd.DataFrame, steps: Collection[int]) -> str:
    """Formats the chosen steps of a summary for a terminal, in percent.

    Args:
      summary: of `metrics.summarize`.
      steps: of the adaptation.
    """
    percent = percent_table(summary, steps)
    parts = []
    for group in percent.index.unique("users"):
        table = percent.xs(group, level="users")
        if _USERS in table and table[_USERS].nunique() == 1:
            table = table.drop(columns=_USERS)
        text = table.to_string(
            formatters={"loss": fixed_loss}, float_format=fixed, na_rep="-"
        )
        num_users = summary.xs(group, level="users")["num_users"].max()
        parts.append(f"{figures.GROUP_TITLES[group]} ({num_users}):\n{text}")
    return "\n\n".join(parts)


# What `classes_table` shows.
CLASSES_HELD = "mean accuracy % by the number of classes in a user's adaptation rows"


def classes_table(
    per_user: pd.DataFrame, steps: Collection[int]
) -> pd.DataFrame | None:
    """Returns accuracies by the number of classes held, a column each, as texts.

    Args:
      per_user: as for `by_classes_held`.
      steps: the adaptation steps shown.

    Returns:
      In percent, behind a line with the number of users for each group; None if all
      users hold equally many.
    """
    found = by_classes_held(per_user, in_ranges=True)
    if found is None:
        return None
    # Ranges in the order of their first numbers.
    columns = sorted(found.index.unique(COLUMN), key=lambda c: int(c.split("-")[0]))
    order = found.index.droplevel(COLUMN).unique()
    wide = found["accuracy"].unstack(COLUMN).loc[order, columns]
    chosen = _chosen(wide, steps)
    texts = _with_steps(chosen.map(lambda share: fixed(100 * share)), wide)
    sizes = found.groupby(level=["users", COLUMN])["num_users"].max()
    sizes = sizes.unstack(COLUMN)[columns].fillna(0).astype(int).astype(str)
    sizes.index = pd.MultiIndex.from_tuples(
        [(group, "", _USERS, "") for group in sizes.index], names=texts.index.names
    )
    parts = [
        frame.loc[[group]]
        for group in texts.index.unique("users")
        for frame in (sizes, texts)
    ]
    table = pd.concat(parts).replace("nan", "-").rename_axis(columns="classes held")
    has_baselines = BASELINE in found.index.unique("kind")
    return table if has_baselines else table.droplevel("kind")


def format_classes_table(table: pd.DataFrame) -> str:
    """Formats `classes_table` for a terminal."""
    parts = []
    for group in table.index.unique("users"):
        text = table.xs(group, level="users").to_string()
        parts.append(f"{figures.GROUP_TITLES[group]}:\n{text}")
    return "\n\n".join(parts)


def comparison_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Returns paired comparisons with readable columns, in percentage points."""
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
# What stands behind a comparison of a table of several.
P_VALUES = (
    f"p: permutation test over users, exact up to {MOST_EXACT} that differ, corrected "
    "by Holm for all rows"
)
# What the two figures after a mean are.
HALF_WIDTHS = (
    "± half the width of Student's 95 % interval over seeds (from two on) and over "
    f"users (from {FEWEST_USERS} on)"
)


def format_comparison(comparison: pd.DataFrame, column: str = "accuracy") -> str:
    """Formats paired comparisons for a terminal, accuracies in percentage points.

    Args:
      comparison: of `compare_paired`, with `p_holm` or without.
      column: what was compared, `accuracy` or `loss`.
    """
    table = comparison_table(comparison)
    if "p_holm" in comparison:
        table["p"] = [f"{p:.2g}" for p in comparison["p_holm"]]
    if column == "accuracy":
        return table.to_string(float_format=signed, na_rep="-")
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
      baselines: rows of `baseline_names.combine`.

    Returns:
      The files written: `table.csv`, `adaptation_curve.png` and, if users differ in
      that, `classes_held.csv`, their names behind the prefix.
    """
    table, curve, by_classes = (
        directory / f"{prefix}{name}"
        for name in ("table.csv", "adaptation_curve.png", "classes_held.csv")
    )
    everything = pd.concat([baselines, per_user])
    with atomic_write(table) as file:
        summarize(everything).to_csv(file)
    figures.save(figures.adaptation_curves(per_user, baselines), curve)
    held = by_classes_held(everything)
    if held is None:
        return [table, curve]
    with atomic_write(by_classes) as file:
        held.to_csv(file)
    return [table, curve, by_classes]


def write_comparison(
    compared: pd.DataFrame, directory: pathlib.Path, prefix: str = ""
) -> pathlib.Path:
    """Writes paired comparisons as CSV and returns the path.

    Args:
      compared: of `compare_paired`.
      directory: where `comparison.csv` is written.
      prefix: of its name.
    """
    path = directory / f"{prefix}comparison.csv"
    with atomic_write(path) as file:
        compared.to_csv(file)
    return path
