"""IID and non-IID partitions of a data set's rows among users.

Every partition is a pure function of labels (or sizes, or keys) and a seed: the same
arguments give the same users on any machine. All but `tasks` return, for each user, the
int64 numbers of its rows, and give no row twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tff_perfedavg import errors


def paper_partition(
    labels: np.ndarray, a: int, num_users: int, seed: int, *, diff_hetero: bool = False
) -> list[np.ndarray]:
    """Divides rows as the experiments of Per-FedAvg (arXiv 2002.07948, sec. 5).

    Of ten classes in order, each user of the first half holds `a` rows of each of
    the first five. Each user of the second half holds `a / 2` rows of one of the
    first five and `2 a` rows of one of the other five. The one class of each kind
    goes round the users in turn, in an order drawn from the seed, so every class
    serves equally many users (to one). Which classes a user holds depends on
    `num_users` and `seed` alone, so that a training and a test set divided with the
    same two give every user the same classes in both.

    Args:
      labels: int `[rows]` with ten distinct values.
      a: rows per class, even.
      num_users: number of users, even.
      seed: decides which rows and which pairs of classes.
      diff_hetero: leave the second half of users without their `a / 2` rows, the
        paper's other distribution.

    Returns:
      For each user, its rows grouped by class in ascending order.

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
    largest_a = 0
    # Else not worth a table of so many users.
    if num_users <= len(labels):
        counts = _paper_counts(rng, num_users, diff_hetero)
        # In units of a / 2, so that the demand is whole for every even a.
        demand = counts.sum(axis=0)
        largest_a = 2 * int(np.min(class_sizes[demand > 0] // demand[demand > 0]))
    if a > largest_a:
        raise errors.DataError(
            f"paper_partition: a = {a} for {num_users} users asks for more rows "
            f"than a class has; the largest feasible a is {largest_a}"
            + ("." if largest_a else " (none): use fewer users.")
        )
    return _deal(rng, labels, classes, counts * (a // 2))


def dirichlet_partition(
    labels: np.ndarray,
    concentration: float,
    rows_per_user: int,
    num_users: int,
    seed: int,
) -> list[np.ndarray]:
    """Partitions rows by Dirichlet label skew (Hsu et al., arXiv 1909.06335).

    A user's class proportions are drawn from a Dirichlet distribution around those
    of all rows, and its rows one by one from these, without replacement; a class that
    is used up is left out of the proportions from then on.

    Args:
      labels: int `[rows]`.
      concentration: alpha; near 0 a user has one class, large all users are alike.
      rows_per_user: rows of each user.
      num_users: number of users.
      seed: of proportions and rows.

    Raises:
      DataError: if the concentration is not above 0 or too extreme to draw with, a
        count below 1, or more rows are asked for than there are.
    """
    labels = np.asarray(labels)
    _check_counts("dirichlet_partition", rows_per_user=rows_per_user, users=num_users)
    if not (np.isfinite(concentration) and concentration > 0):
        raise errors.DataError(
            f"dirichlet_partition: concentration is {concentration}; it must be a "
            "finite number above 0."
        )
    if rows_per_user * num_users > len(labels):
        largest = len(labels) // num_users
        raise errors.DataError(
            f"dirichlet_partition: {num_users} users of {rows_per_user} rows ask for "
            f"more than the {len(labels)} rows there are; the largest feasible "
            f"rows_per_user is {largest}"
            + ("." if largest else " (none): use fewer users.")
        )
    rng = np.random.default_rng(seed)
    classes, left = np.unique(labels, return_counts=True)
    prior = left / left.sum()
    counts = np.zeros([num_users, len(classes)], np.int64)
    for of_user in counts:
        # Gamma draws, since a Dirichlet draw of tiny concentration can be all zeros.
        log_share = _log_gamma_draws("dirichlet_partition", rng, concentration, prior)
        missing = rows_per_user
        while missing:
            share = np.where(left > of_user, log_share, -np.inf)
            share = np.exp(share - share.max())
            drawn = rng.multinomial(missing, share / share.sum())
            of_user += np.minimum(drawn, left - of_user)
            missing = rows_per_user - of_user.sum()
        left -= of_user
    return _deal(rng, labels, classes, counts)


def k_classes_partition(
    labels: np.ndarray, classes_per_user: int, num_users: int, seed: int
) -> list[np.ndarray]:
    """Partitions rows by k-class label skew: every user has rows of exactly k classes.

    The classes go to users so that each serves as many users as any other (to one);
    its rows are divided evenly among them. All rows of a class that serves any user
    are given.

    Args:
      labels: int `[rows]`.
      classes_per_user: k.
      num_users: number of users.
      seed: of the classes and the rows.

    Raises:
      DataError: if k is not from 1 to the number of classes, or a class has fewer
        rows than users to serve.
    """
    labels = np.asarray(labels)
    _check_counts("k_classes_partition", users=num_users)
    classes, class_sizes = np.unique(labels, return_counts=True)
    if not 1 <= classes_per_user <= len(classes):
        raise errors.DataError(
            f"k_classes_partition: classes_per_user is {classes_per_user}; it must "
            f"be from 1 to {len(classes)}."
        )
    _check_enough("k_classes_partition", len(labels), num_users)
    rng = np.random.default_rng(seed)
    served = np.zeros([len(classes)], np.int64)
    holds = np.zeros([num_users, len(classes)], bool)
    for user in range(num_users):
        # The classes that served least so far, ties broken by lot.
        order = np.lexsort([rng.random(len(classes)), served])
        chosen = order[:classes_per_user]
        holds[user, chosen] = True
        served[chosen] += 1
    short = np.flatnonzero(class_sizes < served)
    if short.size:
        raise errors.DataError(
            f"k_classes_partition: class {classes[short[0]]} has "
            f"{class_sizes[short[0]]} rows for {served[short[0]]} users; use fewer "
            "users or classes_per_user."
        )
    counts = np.zeros([num_users, len(classes)], np.int64)
    for column, size in enumerate(class_sizes):
        holders = rng.permutation(np.flatnonzero(holds[:, column]))
        if holders.size:
            share, rest = divmod(size, holders.size)
            counts[holders, column] = share
            counts[holders[:rest], column] += 1
    return _deal(rng, labels, classes, counts)


def iid_partition(num_rows: int, num_users: int, seed: int) -> list[np.ndarray]:
    """Partitions all rows IID: evenly (to one), without regard to their labels.

    Args:
      num_rows: rows to divide.
      num_users: number of users, at least 1.
      seed: of the shuffle.

    Raises:
      DataError: if there is no user, or fewer rows than users.
    """
    _check_counts("iid_partition", users=num_users)
    _check_enough("iid_partition", num_rows, num_users)
    shuffled = np.random.default_rng(seed).permutation(num_rows)
    return np.array_split(shuffled, num_users)


def quantity_skew_partition(
    num_rows: int, concentration: float, num_users: int, seed: int
) -> list[np.ndarray]:
    """Partitions all rows by quantity skew: unequal shares, regardless of labels.

    Every user gets one row; the others are divided in proportions drawn from a
    symmetric Dirichlet distribution (Li et al., arXiv 2102.02079, sec. 4.3).

    Args:
      num_rows: rows to divide.
      concentration: near 0 a few users have nearly all, large all have alike.
      num_users: number of users.
      seed: of shares and rows.

    Raises:
      DataError: if the concentration is not above 0 or too extreme to draw with, or
        there are fewer rows than users.
    """
    _check_counts("quantity_skew_partition", users=num_users)
    _check_enough("quantity_skew_partition", num_rows, num_users)
    if not (np.isfinite(concentration) and concentration > 0):
        raise errors.DataError(
            f"quantity_skew_partition: concentration is {concentration}; it must be "
            "a finite number above 0."
        )
    rng = np.random.default_rng(seed)
    log_share = _log_gamma_draws(
        "quantity_skew_partition", rng, concentration, np.ones([num_users])
    )
    share = np.exp(log_share - log_share.max())
    # Cutting at rounded cumulative shares keeps the sum exact.
    ends = np.cumsum(share / share.sum()) * (num_rows - num_users)
    ends = np.rint(ends).astype(np.int64) + np.arange(1, num_users + 1)
    return np.split(rng.permutation(num_rows), ends[:-1])


def natural_partition(keys: np.ndarray) -> dict:
    """Natural partition of rows by their key: the writer, person or speaker.

    Args:
      keys: `[rows]`, the writer, person or speaker of each row.

    Returns:
      From each key, in ascending order, to the int64 numbers of its rows, in
      ascending order.
    """
    values, inverse = np.unique(np.asarray(keys), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=len(values)))
    return dict(zip(values.tolist(), np.split(order, ends[:-1]), strict=True))


def tasks(
    labels: np.ndarray,
    families: np.ndarray,
    classes_per_user: int,
    num_users: int,
    seed: int | Sequence[int],
) -> list[tuple[object, np.ndarray]]:
    """Draws few-shot tasks: a family of classes and some of its classes for every user.

    As the tasks of Vinyals et al. (2016, arXiv 1606.04080), but that all classes of a
    task are of one family, such as the characters of one alphabet, which are harder to
    tell apart. Families are drawn in proportion to their classes, classes without
    replacement. Users share classes and their rows, unlike those of the partitions.

    Args:
      labels: int `[rows]`, the class of each row.
      families: `[rows]`, the family of each row; rows of one class are of one.
      classes_per_user: how many classes a user holds.
      num_users: number of users.
      seed: of the draws.

    Returns:
      For each user its family and the int classes it holds, in the order drawn.

    Raises:
      DataError: if a count is below 1, or a family has fewer classes.
    """
    _check_counts("tasks", classes_per_user=classes_per_user, users=num_users)
    values = np.unique(np.asarray(families))
    classes = [np.unique(np.asarray(labels)[families == value]) for value in values]
    sizes = np.array([len(of_family) for of_family in classes])
    if sizes.min() < classes_per_user:
        raise errors.DataError(
            f"tasks: classes_per_user is {classes_per_user}, but the family "
            f"{values[sizes.argmin()]} has {sizes.min()} classes; give at most that."
        )
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_users):
        family = rng.choice(len(values), p=sizes / sizes.sum())
        chosen = rng.choice(classes[family], classes_per_user, replace=False)
        found.append((values[family], chosen))
    return found


def split_by_class(
    labels: np.ndarray, rows: np.ndarray, num_parts: int, first_parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits one user's rows in two, stratified by class.

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


def split_by_group(
    rows: np.ndarray,
    groups: np.ndarray,
    evaluation_fraction: float,
    seed: int,
    *,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits one user's rows in two by groups: none is on both sides.

    Rows of one group must not be separated where they share content, as windows of
    one recording do. Each row a group of its own gives a plain random split.

    Args:
      rows: the user's row numbers.
      groups: `[rows of the data set]`, the group of each row.
      evaluation_fraction: the share of the groups that goes to the second split,
        rounded; each split gets at least one group, the first before the second.
      seed: decides which groups.
      labels: `[rows of the data set]`; where given, the share is taken among the
        groups of each class (that of a group's first row) by itself.

    Returns:
      The row numbers of the two splits, each in ascending order of their place in
      `rows`.
    """
    if not 0 < evaluation_fraction < 1:
        raise errors.DataError(
            f"split_by_group: evaluation_fraction is {evaluation_fraction}; it must "
            "be between 0 and 1."
        )
    rng = np.random.default_rng(seed)
    names, first_row, inverse = np.unique(
        groups[rows], return_index=True, return_inverse=True
    )
    kind = np.zeros([len(names)]) if labels is None else labels[rows[first_row]]
    in_second = np.zeros([len(names)], bool)
    for value in np.unique(kind):
        candidates = rng.permutation(np.flatnonzero(kind == value))
        count = max(1, round(len(candidates) * evaluation_fraction))
        in_second[candidates[: min(count, len(candidates) - 1)]] = True
    return rows[~in_second[inverse]], rows[in_second[inverse]]


def _paper_counts(
    rng: np.random.Generator, num_users: int, diff_hetero: bool
) -> np.ndarray:
    """Returns int `[users, 10]`: rows of each class, in units of a / 2."""
    half = num_users // 2
    counts = np.zeros([num_users, 10], np.int64)
    counts[:half, :5] = 2
    low_order, high_order = rng.permutation(5), rng.permutation(5)
    for turn in range(num_users - half):
        low = low_order[turn % 5]
        # Moves on by one each time round, so that all 25 pairs come up.
        high = high_order[(turn + turn // 5) % 5]
        counts[half + turn, low] = 0 if diff_hetero else 1
        counts[half + turn, 5 + high] = 4
    return counts


def _deal(
    rng: np.random.Generator,
    labels: np.ndarray,
    classes: np.ndarray,
    counts: np.ndarray,
) -> list[np.ndarray]:
    """Deals each class's rows, shuffled, by counts `[users, classes]`."""
    per_user: list[list[np.ndarray]] = [[] for _ in counts]
    for column, label in enumerate(classes):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(counts[:, column])
        for user, piece in enumerate(np.split(shuffled[: ends[-1]], ends[:-1])):
            per_user[user].append(piece)
    return [np.concatenate(pieces) for pieces in per_user]


def _log_gamma_draws(
    where: str, rng: np.random.Generator, concentration: float, prior: np.ndarray
) -> np.ndarray:
    """Draws log Gamma(concentration * prior), which underflows less than Gamma does.

    Gamma(s) = Gamma(s + 1) U^(1/s).

    Raises:
      DataError: if a draw is beyond float64 all the same.
    """
    shape = concentration * prior
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        draws = np.log(rng.gamma(shape + 1)) + np.log(rng.random(shape.shape)) / shape
    if not np.isfinite(draws).all():
        raise errors.DataError(
            f"{where}: concentration is {concentration}, with which proportions are "
            "beyond float64; take one between 1e-300 and 1e300."
        )
    return draws


def _check_counts(where: str, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise errors.DataError(f"{where}: {name} is {count}; give at least 1.")


def _check_enough(where: str, num_rows: int, num_users: int) -> None:
    if num_rows < num_users:
        raise errors.DataError(
            f"{where}: {num_rows} rows are not one for each of {num_users} users; use "
            "fewer users."
        )
