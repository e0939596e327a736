"""Figures of runs and of their per-user results.

Every function returns a Matplotlib figure; `save` writes it and `inline_svg` gives it
as part of a page. Where labels are no classes, losses take the place of accuracies.
"""

from __future__ import annotations

import io
import itertools
import math
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.axes
import matplotlib.figure
import numpy as np
import pandas as pd

from tff_perfedavg.experiments.evaluation.metrics import (
    FEWEST_USERS,
    NEW,
    SEEN,
    t_quantile,
)
from tff_perfedavg.experiments.evaluation.metrics import quantity as quantity_of
from tff_perfedavg.files import atomic_write

GROUP_TITLES = {SEEN: "Users seen in training", NEW: "New users"}
# Told apart by more than colour, for curves that coincide. Colours after Okabe and
# Ito, which stand on a light and on a dark page.
_COLOURS = ("#1A85C9", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLES = ("o-", "s--", "^-", "D:", "v-.", "P-")
# Of baselines, in ink: lengths drawn and left out.
_DASHES = (
    *((1, 1), (4, 2), (1, 3), (6, 2, 1, 2), (8, 3), (3, 1, 1, 1, 1, 1), (2, 4)),
    *((10, 2, 2, 2), (1, 5), (5, 1), (7, 2, 1, 2, 1, 2)),
)
# Ink and lines as they are in files; in a page they follow its own colours.
_INK, _LINE = "#101112", "#b0b1b2"
SETTINGS = {
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tff_perfedavg",
}
# Of the users sorted by gain, the most that are drawn: half from either end.
_MOST_BARS = 60


def adaptation_curves(
    per_user: pd.DataFrame, baselines: pd.DataFrame | None = None
) -> matplotlib.figure.Figure:
    """Mean over users by adaptation step, one panel a group.

    With a band of a standard error over users, where they are `FEWEST_USERS` or more.

    Args:
      per_user: rows of `evaluate_users` with a column `algorithm`.
      baselines: rows of `baseline_names.combine`; of each kind the best is drawn, thin,
        and what takes no steps is level.
    """
    column, scale, quantity = _quantity(per_user)
    figure, panels = _panels(per_user["users"].unique())
    if baselines is not None:
        baselines = best_of_each(baselines, column)
    for group, panel in panels.items():
        of_group = per_user[per_user["users"] == group]
        for (label, rows), look in _looks(of_group.groupby("algorithm", sort=False)):
            # A user's runs are one user.
            by_user = rows.groupby(["step", "user"])[column].mean()
            by_step = by_user.groupby("step")
            error = scale * by_step.sem().where(by_step.size() >= FEWEST_USERS)
            mean = scale * rows.groupby("step")[column].mean()
            _band(panel, mean, error, label, look)
        if baselines is not None:
            rows = baselines[baselines["users"] == group]
            means = rows.groupby(["algorithm", "step"], sort=False)[column].mean()
            _draw_baselines(panel, scale * means, per_user["step"].max())
        panel.set_xlabel("adaptation steps (number)")
        panel.set_xticks(sorted(per_user["step"].unique()))
    y_label = f"{quantity},\nmean ± standard error over users"
    _finish(figure, panels, y_label)
    if baselines is not None:
        _move_legend_below(figure, len(panels))
    return figure


def learning_curves(
    curves: Mapping[str, pd.DataFrame],
    over: str = "round_num",
    name: str = "rounds (number)",
) -> matplotlib.figure.Figure:
    """Mean over users by round, before (thin) and after adapting, with 95 % intervals.

    The intervals are Student's; fewer than `FEWEST_USERS` users have none.

    Args:
      curves: by run, the rows of its `evaluation.metrics.csv`.
      over: their column that is drawn to the right.
      name: what it is called.
    """
    everything = pd.concat(curves.values())
    column, scale, quantity = _quantity(everything)
    figure, panels = _panels(everything["users"].unique())
    for group, panel in panels.items():
        for (label, rows), look in _looks(curves.items()):
            of_group = rows[rows["users"] == group]
            last = of_group["step"].max()
            # A line without the marker.
            line = look._replace(style=look.style[1:])
            for step, width, named in ((0, 0.8, None), (last, 2.0, label)):
                by_round = of_group[of_group["step"] == step].set_index(over)
                quantile = by_round["num_users"].map(t_quantile)
                error = scale * quantile * by_round[f"{column}_sem"]
                mean = scale * by_round[column]
                _band(panel, mean, error, named, line._replace(width=width))
        panel.set_xlabel(name)
    return _finish(figure, panels, f"{quantity}: thin before,\nthick after adapting")


def gain_histogram(per_user: pd.DataFrame) -> matplotlib.figure.Figure:
    """Histogram of users' gains by adapting, one panel a group."""
    gains = gain_by_user(per_user)
    _, scale, quantity = _quantity(per_user)
    figure, panels = _panels(gains["users"].unique())
    values = scale * gains["gain"].to_numpy()
    edges = np.histogram_bin_edges(values[np.isfinite(values)], bins=25)
    for group, panel in panels.items():
        of_group = gains[gains["users"] == group]
        for (label, rows), look in _looks(of_group.groupby("algorithm", sort=False)):
            panel.hist(
                scale * rows["gain"],
                edges,
                histtype="step",
                label=label,
                color=look.colour,
                linestyle=look.style[1:],
                linewidth=1.8,
            )
        panel.axvline(0, color=_LINE, linewidth=0.8)
        panel.set_xlabel(f"gain by adapting, {_short(quantity)}")
    return _finish(figure, panels, "users (number)")


def before_against_after(per_user: pd.DataFrame) -> matplotlib.figure.Figure:
    """Scatter plot of users before and after adapting; better above the diagonal."""
    gains = gain_by_user(per_user)
    _, scale, quantity = _quantity(per_user)
    figure, panels = _panels(gains["users"].unique())
    for group, panel in panels.items():
        of_group = gains[gains["users"] == group]
        for (label, rows), look in _looks(of_group.groupby("algorithm", sort=False)):
            panel.scatter(
                scale * rows["before"],
                scale * rows["after"],
                s=18,
                marker=look.style[0],
                facecolors="none",
                edgecolors=look.colour,
                alpha=0.7,
                label=label,
            )
        low, high = (
            pick(scale * gains[["before", "after"]].to_numpy())
            for pick in (np.nanmin, np.nanmax)
        )
        panel.plot([low, high], [low, high], color=_LINE, linewidth=0.8)
        panel.set_xlabel(f"before adapting, {_short(quantity)}")
    return _finish(figure, panels, f"after, {_short(quantity)}")


def users_by_gain(
    per_user: pd.DataFrame, histograms: np.ndarray | None, class_names: list[str]
) -> matplotlib.figure.Figure:
    """Bar chart of users sorted by gain, over the labels that each of them holds.

    Args:
      per_user: rows of one algorithm.
      histograms: `[users, classes]` rows of each class by user; None if labels are no
        classes.
      class_names: names of the classes.
    """
    gains = gain_by_user(per_user).sort_values("gain", kind="stable")
    x_label = "users, sorted by gain"
    if len(gains) > _MOST_BARS:
        half = _MOST_BARS // 2
        x_label += f" (of {len(gains)}, the {half} at either end)"
        gains = pd.concat([gains.head(half), gains.tail(half)])
    _, scale, quantity = _quantity(per_user)
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(9.6, 4.6))
        rows = 1 if histograms is None else 2
        panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        numbers = np.arange(len(gains))
        is_new = (gains["users"] == NEW).to_numpy()
        for chosen, colour, label in (
            (~is_new, _COLOURS[0], GROUP_TITLES[SEEN]),
            (is_new, _COLOURS[1], GROUP_TITLES[NEW]),
        ):
            if chosen.any():
                values = scale * gains["gain"].to_numpy()[chosen]
                panels[0].bar(numbers[chosen], values, color=colour, label=label)
        panels[0].axhline(0, color=_INK, linewidth=0.8)
        panels[0].set_ylabel(f"gain,\n{_short(quantity)}")
        panels[0].legend(loc="upper left")
        if histograms is not None:
            _stack_labels(panels[1], histograms[gains["user"]], class_names)
        panels[-1].set_xlabel(x_label)
        panels[-1].set_xticks([])
        figure.tight_layout()
    return figure


def gain_by_user(per_user: pd.DataFrame) -> pd.DataFrame:
    """Returns `before`, `after` the last step and `gain` of every user.

    The gain is of accuracy, or, where labels are no classes, how much the loss falls.
    """
    column, _, _ = _quantity(per_user)
    keys = ["algorithm", "users", "user"]
    by_step = per_user.groupby([*keys, "step"], sort=False)[column].mean().unstack()
    before, after = by_step.iloc[:, 0], by_step.iloc[:, -1]
    gain = after - before if column == "accuracy" else before - after
    table = pd.DataFrame({"before": before, "after": after, "gain": gain})
    return table.dropna().reset_index()


def save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG or SVG.

    Args:
      figure: the figure.
      path: the file, whose name ends in `.png` or `.svg`.
    """
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(SETTINGS), atomic_write(path) as file:
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)


def inline_svg(figure: matplotlib.figure.Figure, name: str) -> str:
    """Returns a figure as an `<svg>` element in the page's own ink and lines.

    Args:
      figure: the figure.
      name: sets its ids apart from those of the page's other figures.
    """
    text = io.StringIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    # Its size follows the page's; what it says follows in the caption.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its ids, and what refers to them, wherever they are.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(_INK, "var(--ink)").replace(_LINE, "var(--line)")


def _quantity(rows: pd.DataFrame) -> tuple[str, float, str]:
    """Returns the column that is drawn, its factor and what it is called."""
    if quantity_of(rows) == "accuracy":
        return "accuracy", 100.0, "accuracy on held-out rows (%)"
    return "loss", 1.0, "loss on held-out rows"


def _short(quantity: str) -> str:
    return quantity.replace(" on held-out rows", "")


class _Look(NamedTuple):
    """A curve's style: colour, marker and line (Matplotlib's), and width."""

    colour: str
    style: str
    width: float = 1.5


def _looks(groups):
    looks = [_Look(*look) for look in zip(_COLOURS, _STYLES, strict=True)]
    return zip(groups, itertools.cycle(looks))


def _panels(groups) -> tuple[matplotlib.figure.Figure, dict]:
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(4.8 * len(groups), 4.2))
        axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    return figure, dict(zip(groups, axes, strict=True))


def _band(
    panel: matplotlib.axes.Axes,
    mean: pd.Series,
    error: pd.Series,
    label: str | None,
    look: _Look,
) -> None:
    """Draws means over their index, and an error's width around them."""
    panel.plot(
        mean.index,
        mean,
        look.style,
        fillstyle="none",
        label=label,
        color=look.colour,
        linewidth=look.width,
        markersize=4,
    )
    panel.fill_between(
        mean.index,
        mean - error,
        mean + error,
        alpha=0.15,
        color=look.colour,
        linewidth=0,
    )


def best_of_each(baselines: pd.DataFrame, column: str) -> pd.DataFrame:
    """Returns the rows of the best run of each kind of baseline.

    Args:
      baselines: rows of `baseline_names.combine`.
      column: `accuracy` or `loss`, by whose mean after the last step runs are compared.
    """
    last = baselines.groupby("algorithm")["step"].transform("max")
    of_last = baselines[baselines["step"] == last]
    means = of_last.groupby(["baseline", "algorithm"])[column].mean()
    ordered = means.sort_values(ascending=column == "loss")
    best = ordered.reset_index().drop_duplicates("baseline")["algorithm"]
    return baselines[baselines["algorithm"].isin(best)]


def _move_legend_below(figure: matplotlib.figure.Figure, num_columns: int) -> None:
    """Puts the last panel's legend under the panels, where it hides no curve."""
    panel = figure.axes[-1]
    handles, labels = panel.get_legend_handles_labels()
    panel.get_legend().remove()
    inches = 0.22 * math.ceil(len(labels) / num_columns)
    height = figure.get_figheight() + inches
    with matplotlib.rc_context(SETTINGS):
        figure.set_figheight(height)
        figure.legend(handles, labels, loc="lower center", ncols=num_columns)
        figure.tight_layout(rect=(0, inches / height, 1, 1))


def _draw_baselines(
    panel: matplotlib.axes.Axes, means: pd.Series, last_step: int
) -> None:
    """Draws baselines' means by algorithm and step, told apart by their dashes."""
    names = means.index.unique("algorithm")
    for name, dashes in zip(names, itertools.cycle(_DASHES)):
        by_step = means[name]
        if len(by_step) == 1:
            by_step = pd.Series(by_step.iloc[0], [0, last_step])
        panel.plot(
            by_step.index,
            by_step,
            label=f"baseline: {name}",
            color=_INK,
            linewidth=0.8,
            linestyle=(0, dashes),
        )


def _finish(figure, panels, y_label) -> matplotlib.figure.Figure:
    with matplotlib.rc_context(SETTINGS):
        for group, panel in panels.items():
            panel.set_title(GROUP_TITLES[group])
            panel.grid(alpha=0.5)
        first, *_, last = [*panels.values()] * 2
        first.set_ylabel(y_label)
        last.legend()
        figure.tight_layout()
    return figure


def _stack_labels(
    panel: matplotlib.axes.Axes, histograms: np.ndarray, class_names: list[str]
) -> None:
    shares = histograms / np.maximum(histograms.sum(1, keepdims=True), 1)
    bottom = np.zeros(len(shares))
    colours = matplotlib.colormaps["tab20"]
    for number, name in enumerate(class_names):
        share = shares[:, number]
        panel.bar(
            np.arange(len(shares)),
            100 * share,
            bottom=100 * bottom,
            color=colours(number % 20),
            # Between two dollars Matplotlib would read mathematics.
            label=name.replace("$", r"\$"),
            width=1.0,
        )
        bottom += share
    panel.set_ylabel("labels held (%)")
    if len(class_names) <= 20:
        panel.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
