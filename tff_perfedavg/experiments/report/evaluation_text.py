"""Text tables of an evaluation of runs, for a terminal."""

from __future__ import annotations

import pandas as pd

from tff_perfedavg.experiments.evaluation.measured_adaptation import (
    COLUMN,
    MeasuredAdaptation,
    sentences,
)
from tff_perfedavg.experiments.evaluation.metrics import quantity, summarize
from tff_perfedavg.experiments.report import figures, tables

# More runs than these are shown in short: their tables would be pages long.
_MOST_IN_FULL = 4


def format_evaluation(
    per_user: pd.DataFrame, baselines: pd.DataFrame | None, steps: int
) -> str:
    """Formats an evaluation of runs for a terminal: how users adapt, and tables.

    Args:
      per_user: rows of `evaluate_runs`.
      baselines: rows of `baseline_names.combine`; None for none.
      steps: the most steps that users take.
    """
    by_run = per_user.groupby("algorithm", sort=False)[COLUMN].first()
    told = sentences({run: MeasuredAdaptation.parse(t) for run, t in by_run.items()})
    shown = {0, 1, steps}
    if _is_short(per_user):
        shown = {steps}
        told.append(f"Shown after {steps} steps, with the best baseline of each kind.")
        if baselines is not None:
            baselines = figures.best_of_each(baselines, quantity(baselines))
    everything = pd.concat([baselines, per_user])
    parts = ["\n".join(told), tables.format_table(summarize(everything), shown)]
    by_classes = tables.classes_table(everything, shown)
    if by_classes is not None:
        title = tables.CLASSES_HELD.capitalize()
        parts.append(f"{title}\n{tables.format_classes_table(by_classes)}")
    return "\n\n".join(parts)


def format_compared(compared: pd.DataFrame, per_user: pd.DataFrame, steps: int) -> str:
    """Formats comparisons of runs: of many, those with the first.

    Args:
      compared: of `compare_paired`.
      per_user: what was compared.
      steps: after how many steps.
    """
    column = quantity(per_user)
    title = f"After {steps} steps, {tables.COMPARED[column]}"
    if _is_short(per_user):
        first = per_user["algorithm"].iloc[0]
        compared = compared[compared.index.get_level_values("first") == first]
        title += f". With {first} alone; the CSV has all"
    return f"{title}\n{tables.format_comparison(compared, column)}"


def _is_short(per_user: pd.DataFrame) -> bool:
    return per_user["algorithm"].nunique() > _MOST_IN_FULL
