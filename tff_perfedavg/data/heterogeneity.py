"""Label heterogeneity (label skew) of a store's users."""

from __future__ import annotations

import dataclasses

import numpy as np

from tff_perfedavg.data.user_store import UserStore


@dataclasses.dataclass(frozen=True)
class Heterogeneity:
    """Summary statistics of heterogeneity: label histograms, sizes, label skew.

    Attributes:
      histograms: int `[users, classes]`, rows of each class, both splits together;
        None if the labels are no classes.
      sizes: int `[users]`, rows of each user.
      total_variation: mean over users of the total-variation distance, from 0 to 1,
        between a user's distribution of classes and that of all users together; None if
        the labels are no classes. It says nothing of what the labels mean to a user.
    """

    histograms: np.ndarray | None
    sizes: np.ndarray
    total_variation: float | None

    def __str__(self) -> str:
        sizes = self.sizes
        lines = [
            f"users                 {len(sizes)}",
            f"rows                  {sizes.sum()}",
            f"rows per user         {sizes.min()} to {sizes.max()}, "
            f"median {np.median(sizes):g}, mean {sizes.mean():.1f}",
        ]
        if self.histograms is not None:
            classes = np.count_nonzero(self.histograms, axis=1)
            lines += [
                f"classes per user      {classes.min()} to {classes.max()}, "
                f"mean {classes.mean():.1f}",
                f"mean total variation  {self.total_variation:.3f} of label shares "
                "(0: the same shares, 1: no label in common)",
            ]
        return "\n".join(lines)


def label_histograms(store: UserStore, *, evaluation: bool = True) -> np.ndarray:
    """Counts each user's rows of each class: a histogram int64 `[users, classes]`.

    Args:
      store: the users; their labels must be classes.
      evaluation: whether evaluation rows count, too, beside adaptation rows. Rows for
        training alone do not.
    """
    num_classes = store.description.num_classes
    assert num_classes is not None, "labels are no classes"
    users, owner = np.asarray(store.users), store.owners()
    numbers = np.arange(len(owner))
    last = users[owner, 2 if evaluation else 1]
    counted = (numbers >= users[owner, 0]) & (numbers < last)
    owner, labels = owner[counted], np.asarray(store.labels)[counted].astype(np.int64)
    cells = owner * num_classes + labels
    counts = np.bincount(cells, minlength=len(users) * num_classes)
    return counts.reshape(len(users), num_classes)


def summarize(store: UserStore) -> Heterogeneity:
    """Summarizes the heterogeneity of a store's users, training and new together."""
    sizes = store.users[:, 2] - store.users[:, 0]
    if store.description.num_classes is None or store.label_shape:
        return Heterogeneity(None, sizes, None)
    histograms = label_histograms(store)
    population = histograms.sum(0) / histograms.sum()
    own = histograms / histograms.sum(1, keepdims=True)
    distance = 0.5 * np.abs(own - population).sum(1)
    return Heterogeneity(histograms, sizes, float(distance.mean()))
