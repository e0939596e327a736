"""Divides a data set's rows among users.

A partition is a pure function of labels and a seed: the same arguments give the
same users on any machine.
"""

from __future__ import annotations

import numpy as np

from tff_perfedavg import errors


def paper_partition(
    labels: np.ndarray, a: int, num_users: int, seed: int
) -> list[np.ndarray]:
    """Divides rows as the experiments of Per-FedAvg (arXiv 2002.07948, sec. 5).

    Of ten classes in order, each user of the first half holds `a` rows of each of
    the first five. Each user of the second half holds `a / 2` rows of one of the
    first five and `2 a` rows of one of the other five. The one class of each kind
    goes round the users in turn, in an order drawn from the seed, so every class
    serves equally many users (to one).

    Args:
      labels: int `[rows]` with ten distinct values.
      a: rows per class, even.
      num_users: number of users, even.
      seed: decides which rows and which pairs of classes.

    Returns:
      For each user, the int64 numbers of its rows, grouped by class in ascending
      order. No row is given twice.

    Raises:
      DataError: if the labels are not ten classes, if `a` or `num_users` is not
        an even number above 0, or if a class has too few rows; the message gives
        the largest `a` that is feasible.
    """
    labels = np.asarray(labels)
    classes, class_sizes = np.unique(labels, return_counts=True)
    if labels.ndim != 1 or len(classes) != 10:
        raise errors.DataError(
            f"paper_partition: labels of shape {labels.shape} have {len(classes)} "
            "distinct values; the paper's rule needs a vector of ten classes."
        )
    for name, value in (("a", a), ("num_users", num_users)):
        if value <= 0 or value % 2:
            raise errors.DataError(
                f"paper_partition: {name} is {value}; it must be an even number "
                "above 0."
            )

    rng = np.random.default_rng(seed)
    counts = _paper_counts(rng, num_users)
    # In units of a / 2, so that the demand is whole for every even a.
    demand = counts.sum(axis=0)
    largest_a = 2 * int(np.min(class_sizes[demand > 0] // demand[demand > 0]))
    if a > largest_a:
        raise errors.DataError(
            f"paper_partition: a = {a} for {num_users} users asks for more rows "
            f"than a class has; the largest feasible a is {largest_a}"
            + ("." if largest_a else " (none): use fewer users.")
        )

    per_user: list[list[np.ndarray]] = [[] for _ in range(num_users)]
    for column, label in enumerate(classes):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(counts[:, column] * (a // 2))
        pieces = np.split(shuffled[: ends[-1]], ends[:-1])
        for user, piece in enumerate(pieces):
            per_user[user].append(piece)
    return [np.concatenate(pieces) for pieces in per_user]


def split_by_class(
    labels: np.ndarray, rows: np.ndarray, num_parts: int, first_parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits one user's rows in two, alike in every class.

    Args:
      labels: `[rows of the data set]`.
      rows: the user's row numbers.
      num_parts: how many equal parts each class is cut into.
      first_parts: how many of them go to the first split.

    Returns:
      The row numbers of the two splits, disjoint.

    Raises:
      DataError: if a class of the user cannot be cut into `num_parts`.
    """
    first, second = [], []
    for label in np.unique(labels[rows]):
        of_class = rows[labels[rows] == label]
        if len(of_class) % num_parts:
            raise errors.DataError(
                f"split_by_class: {len(of_class)} rows of class {label} cannot be "
                f"cut into {num_parts} equal parts."
            )
        end = len(of_class) // num_parts * first_parts
        first.append(of_class[:end])
        second.append(of_class[end:])
    return np.concatenate(first), np.concatenate(second)


def _paper_counts(rng: np.random.Generator, num_users: int) -> np.ndarray:
    """Returns int `[users, 10]`: rows of each class, in units of a / 2."""
    half = num_users // 2
    counts = np.zeros([num_users, 10], np.int64)
    counts[:half, :5] = 2
    low_order, high_order = rng.permutation(5), rng.permutation(5)
    for turn in range(num_users - half):
        low = low_order[turn % 5]
        # Moves on by one each time round, so that all 25 pairs come up.
        high = high_order[(turn + turn // 5) % 5]
        counts[half + turn, low] = 1
        counts[half + turn, 5 + high] = 4
    return counts
