"""Users and what each holds, in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tff_perfedavg import errors


@dataclasses.dataclass(frozen=True)
class Rows:
    """Features and labels of some rows.

    Attributes:
      x: float32 `[rows, ...]`.
      y: int32 `[rows]`.
    """

    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Population:
    """A data set divided among users.

    Attributes:
      name: of the data set.
      adaptation: per user, the rows it trains and adapts on.
      evaluation: per user, the rows it is judged on; none is an adaptation row.
      training_users: numbers of the users that take part in meta-training.
      new_users: numbers of the users never seen in training.
      num_classes: number of label values; labels are 0 to num_classes - 1.
    """

    name: str
    adaptation: Sequence[Rows]
    evaluation: Sequence[Rows]
    training_users: np.ndarray
    new_users: np.ndarray
    num_classes: int

    def __post_init__(self):
        shared = np.intersect1d(self.training_users, self.new_users)
        if shared.size:
            raise errors.DataError(
                f"{self.name}: user {shared[0]} is both a training and a new user."
            )
        for split in (self.adaptation, self.evaluation):
            for user, rows in enumerate(split):
                _check_rows(self.name, user, rows, self.num_classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row's features."""
        return self.adaptation[0].x.shape[1:]


def _check_rows(name: str, user: int, rows: Rows, num_classes: int) -> None:
    if len(rows.x) != len(rows.y):
        raise errors.DataError(
            f"{name}: user {user} has {len(rows.x)} rows of features and "
            f"{len(rows.y)} labels."
        )
    if not np.isfinite(rows.x).all():
        raise errors.DataError(
            f"{name}: user {user} has features that are not finite numbers; "
            "remove or fill those rows."
        )
    if rows.y.size and (rows.y.min() < 0 or rows.y.max() >= num_classes):
        raise errors.DataError(
            f"{name}: user {user} has a label outside 0 to {num_classes - 1}."
        )
