"""Names of baselines, and several runs' baselines side by side. Loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.data.user_store import UserStore

# By label shares; the first needs no model.
MAJORITY, MASKED, SHARES = "majority class", "absent classes masked", "label shares"
# By training without other users, and without federation.
LOCAL, CONVERGED = "local training", "local training to convergence"
POOLED = "pooled training"
# By distances to a user's rows: of inputs, and of a model's features.
NEIGHBOUR, CENTROID = "nearest neighbour", "nearest centroid"
FEATURE_NEIGHBOUR, FEATURE_CENTROID = "features' neighbour", "features' centroid"
# Nobody updates a baseline.
_UPDATE = " + update"
# Of the runs that a baseline is for, by name.
_MOST_LISTED = 2


def has_classes(population: UserStore) -> bool:
    """Whether users' labels are classes, one a row, which label shares need."""
    return population.description.num_classes is not None and not population.label_shape


def has_own_labels(population: UserStore) -> bool:
    """Whether every user's labels are its own, with a meaning for that user alone."""
    return has_classes(population) and population.description.own_labels


def name_for(baseline: str, label: str) -> str:
    """Returns a baseline's name in tables, beside a run.

    Args:
      baseline: its name by itself, such as `MASKED`.
      label: what the run is called.
    """
    label = label.removesuffix(_UPDATE)
    names = {
        MASKED: f"{label}, {MASKED}",
        SHARES: f"{label} + {SHARES}",
        FEATURE_NEIGHBOUR: f"{label} + {NEIGHBOUR}",
        FEATURE_CENTROID: f"{label} + {CENTROID}",
    }
    return names.get(baseline, baseline)


def combine(frames: Sequence[pd.DataFrame], labels: Sequence[str]) -> pd.DataFrame:
    """Concatenates the baselines of several runs, under distinct names.

    Args:
      frames: each run's, with a column `baseline`.
      labels: what the runs are called.

    Returns:
      All rows: first the baselines by label shares, then the others. What is no other
      for another run, as one majority class of the same users, is there once; what is
      another for some, as that of other users, says for which runs it is.
    """
    found: dict[str, list[tuple[pd.DataFrame, list[str]]]] = {}
    for frame, label in zip(frames, labels, strict=True):
        for name, rows in frame.groupby("baseline", sort=False):
            # Of a run's own model, even where they come out alike.
            is_runs = name_for(name, label) != name
            kept = found.setdefault(name_for(name, label), [])
            same = [runs for k, runs in kept if not is_runs and _agree(rows, k)]
            if same:
                same[0].append(label)
            else:
                kept.append((rows, [label]))
    named = [
        rows.assign(algorithm=f"{title} for {_listed(runs)}" if kept[1:] else title)
        for title, kept in found.items()
        for rows, runs in kept
    ]
    named.sort(key=lambda k: k["baseline"].iloc[0] not in (MAJORITY, MASKED, SHARES))
    return pd.concat(named, ignore_index=True)


def _listed(labels: Sequence[str]) -> str:
    labels = [label.removesuffix(_UPDATE) for label in labels]
    if len(labels) <= _MOST_LISTED:
        return " and ".join(labels)
    return f"{labels[0]} and {len(labels) - 1} others"


def _agree(rows: pd.DataFrame, other: pd.DataFrame) -> bool:
    keys, values = ["users", "user", "step"], ["loss", "accuracy"]
    rows, other = rows.sort_values(keys), other.sort_values(keys)
    return (
        len(rows) == len(other)
        and (rows[keys].to_numpy() == other[keys].to_numpy()).all()
        and np.allclose(rows[values], other[values], equal_nan=True)
    )
