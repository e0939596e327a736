"""Data sets by name, divided among users."""

from __future__ import annotations

import numpy as np
from sklearn import datasets

from tff_perfedavg import errors
from tff_perfedavg.data import partition
from tff_perfedavg.data.population import Population, Rows


def digits(
    *,
    num_training_users: int = 20,
    num_new_users: int = 6,
    a: int = 8,
    evaluation_a: int = 4,
    seed: int = 0,
) -> Population:
    """Loads scikit-learn's digits (8x8 images, 1797), divided by the paper's rule.

    The rule gives every user `a` plus `evaluation_a` rows a class, which are then
    split class by class: both splits follow the rule by themselves, and no row is
    in two splits or with two users. Both kinds of user are found among training
    and new users in equal numbers.

    Args:
      num_training_users: users that take part in training, even.
      num_new_users: users held out of training, even.
      a: rows per class in the adaptation split, even.
      evaluation_a: the same for the evaluation split, even.
      seed: decides who holds what.

    Raises:
      DataError: if the rule cannot be met; see `partition.paper_partition`.
    """
    for name, count in (
        ("num_training_users", num_training_users),
        ("num_new_users", num_new_users),
        ("a", a),
        ("evaluation_a", evaluation_a),
    ):
        if count < 0 or count % 2:
            raise errors.DataError(
                f"digits: {name} is {count}; the paper's rule needs an even number."
            )
    bunch = datasets.load_digits()
    x = (bunch.images / 16).astype(np.float32)
    y = bunch.target.astype(np.int32)
    num_users = num_training_users + num_new_users
    total = a + evaluation_a
    parts = total // 2
    adaptation, evaluation = [], []
    for rows in partition.paper_partition(y, total, num_users, seed):
        first, second = partition.split_by_class(y, rows, parts, a // 2)
        adaptation.append(Rows(x[first], y[first]))
        evaluation.append(Rows(x[second], y[second]))
    # The first half of the partition's users is of the first kind, the second of
    # the other.
    half, half_new = num_users // 2, num_new_users // 2
    is_new = np.zeros([num_users], bool)
    is_new[half - half_new : half] = True
    is_new[num_users - half_new :] = True
    return Population(
        name="digits",
        adaptation=adaptation,
        evaluation=evaluation,
        training_users=np.flatnonzero(~is_new),
        new_users=np.flatnonzero(is_new),
        num_classes=10,
    )
