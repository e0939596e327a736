"""Summary of a user store's heterogeneity: text, and a bar chart of labels."""

from __future__ import annotations

import pathlib

import matplotlib.figure
import numpy as np

from tff_perfedavg.data import heterogeneity
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.files import atomic_write

_MOST_USERS_DRAWN = 60


def summary(store: UserStore) -> str:
    """Returns a text summary of a store, as `--describe` prints it."""
    description = store.description
    size = sum(f.stat().st_size for f in store.path.iterdir())
    seen, new = len(store.training_users), len(store.new_users)
    users = np.asarray(store.users)
    adaptation = users[:, 1] - users[:, 0]
    evaluation = users[:, 2] - users[:, 1]
    lines = [
        f"{store.path}: {description.name}, {size / 1e6:.1f} MB",
        f"divided by            {description.provenance}",
        f"features              {store.feature_dtype} {list(store.input_shape)}",
        f"labels                {store.label_dtype} {list(store.label_shape)}, "
        + (
            "no classes"
            if description.num_classes is None
            else f"{description.num_classes} classes"
        ),
        *_body(store),
        *_own_labels(store),
        f"seen and new users    {seen} and {new}",
        f"adaptation rows       {adaptation.min()} to {adaptation.max()} per user",
        f"evaluation rows       {evaluation.min()} to {evaluation.max()} per user",
        str(heterogeneity.summarize(store)),
    ]
    return "\n".join(lines)


def _body(store: UserStore) -> list[str]:
    """Returns what is told of features that a frozen network made."""
    body = store.description.body
    if body is None:
        return []
    images = f"images {list(body.image_shape)} resized to {body.image_size} pixels"
    return [f"                      of {body.name}, {images}"]


def _own_labels(store: UserStore) -> list[str]:
    """Returns what is told of labels that are users' own."""
    description = store.description
    if not description.own_labels:
        return []
    lines = ["                      each user's own, for example of user 0: "]
    lines[0] += ", ".join(store.label_names(0))
    if description.fresh_labels:
        held = [len(np.unique(store.training(u).y)) for u in store.training_users[:100]]
        of = f"{min(held)}" if min(held) == max(held) else f"{min(held)} to {max(held)}"
        lines.append(
            f"                      in training, {description.num_classes} of a user's "
            f"{of} classes in a fresh order every round"
        )
    if description.num_left_out:
        lines.append(
            f"left out              {description.num_left_out} users, who hold fewer "
            "classes"
        )
    return lines


def draw(store: UserStore, path: pathlib.Path) -> None:
    """Draws how many rows of each class the first users hold, as a PNG.

    Args:
      store: the users' store.
      path: the file.
    """
    found = heterogeneity.summarize(store)
    shown = min(store.num_users, _MOST_USERS_DRAWN)
    numbers = np.arange(shown)
    figure = matplotlib.figure.Figure(figsize=(8, 4))
    axes = figure.subplots()
    if found.histograms is None:
        axes.bar(numbers, found.sizes[:shown])
    else:
        names = store.description.class_names or range(found.histograms.shape[1])
        bottom = np.zeros([shown])
        colours = matplotlib.colormaps["tab20"].resampled(20)
        for column, name in enumerate(names):
            rows = found.histograms[:shown, column]
            colour = colours(column % 20)
            axes.bar(numbers, rows, bottom=bottom, label=str(name), color=colour)
            bottom += rows
        if len(names) <= 20:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel(f"user (the first {shown} of {store.num_users})")
    axes.set_ylabel("rows (number)")
    axes.set_title(f"{store.description.name}: who holds what")
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
