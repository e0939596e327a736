"""The figure of an advice: accuracy by steps, and by rows of a user."""

from __future__ import annotations

import matplotlib.axes
import matplotlib.figure
import pandas as pd

from tff_perfedavg.experiments.report.figures import GROUP_TITLES
from tff_perfedavg.experiments.study.advice import AS_IS, METHODS, Advice

# As in other figures: colours that stand on a light and on a dark page.
_COLOURS = dict(zip(METHODS.values(), ("#1A85C9", "#D55E00"), strict=True))
_STYLES = dict(zip(METHODS.values(), ("o-", "s--"), strict=True))
_DASHES = ((4, 2), (1, 1), (6, 2, 1, 2), (8, 3), (3, 1, 1, 1, 1, 1), (1, 3))


def draw(advice: Advice) -> matplotlib.figure.Figure:
    """Draws accuracy by adaptation steps, and by rows of a user."""
    figure = matplotlib.figure.Figure(figsize=(9, 4.5), layout="constrained")
    of_steps, of_rows = figure.subplots(1, 2, sharey=True)
    _curves(of_steps, advice.by_step)
    # Steps grow by factors, from none.
    of_steps.set_xscale("symlog", linthresh=1)
    of_steps.set_xlabel("gradient steps of a user (number)")
    _curves(of_rows, advice.by_rows)
    of_rows.set_xscale("log")
    of_rows.set_xlabel("rows a user adapts on (number)")
    for axes in (of_steps, of_rows):
        ticks = axes.lines[0].get_xdata()
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    drawn = [AS_IS, *METHODS.values()]
    means = advice.by_user.drop(columns=drawn, errors="ignore").mean()
    for dashes, (name, mean) in zip(_DASHES, means.items(), strict=False):
        of_steps.axhline(100 * mean, color="#707172", dashes=dashes, lw=1, label=name)
    of_steps.set_ylabel("accuracy (%)")
    figure.suptitle(f"{GROUP_TITLES[advice.group]}, {len(advice.by_user)} of them")
    told = of_steps.get_legend_handles_labels()
    figure.legend(*told, loc="outside lower center", ncols=3)
    return figure


def _curves(axes: matplotlib.axes.Axes, table: pd.DataFrame) -> None:
    for method in table:
        curve = 100 * table[method]
        axes.plot(
            curve.index, curve, _STYLES[method], color=_COLOURS[method], label=method
        )
    axes.grid(alpha=0.4)
