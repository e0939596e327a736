"""Division of data sets' rows among users, and generated data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.data import config as config_lib
from tff_perfedavg.data import partition
from tff_perfedavg.data.catalog import LabeledRows
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.data.user_store import Description, Rows, User

# Sets draws of new users and of splits apart from those of the partition.
_NEW_USERS, _SPLIT, _TASKS, _TURNS, _FOLDS = 1, 2, 4, 5, 6
# Of the rows of a class that users train on, at most this share judges them: what is
# learned from few classes needs the rows.
_MOST_OF_TRAINED = 0.2
SINUSOID_ROWS = 40


def describe(data: LabeledRows, config: DataConfig) -> Description:
    """Returns the description of a store of a data set's divided rows.

    Args:
      data: from `catalog.load`.
      config: how the rows are divided, which becomes the provenance.
    """
    return Description(
        name=data.name,
        num_classes=data.num_classes,
        scale=data.scale,
        class_names=list(data.class_names),
        provenance=str(config),
    )


def divide(data: LabeledRows, config: DataConfig) -> Iterator[User]:
    """Divides a data set among users.

    Args:
      data: from `catalog.load`.
      config: how.

    Yields:
      The users. Under the paper's rule and under `natural` their order is that of
      the partition.

    Raises:
      DataError: if the partition cannot be met, or all users have too few rows.
    """
    if config.partition in (config_lib.PAPER, config_lib.PAPER_DIFF_HETERO):
        yield from _by_the_papers_rule(data, config)
        return
    if config.partition == config_lib.TASKS:
        yield from _by_tasks(data, config)
        return
    if config.partition == config_lib.NATURAL:
        assert data.keys is not None
        by_key = partition.natural_partition(data.keys)
        users = {k: rows for k, rows in by_key.items() if len(rows) >= config.min_rows}
        if not users:
            raise errors.DataError(
                f"{data.name}: no user has {config.min_rows} rows; lower min_rows."
            )
        names: list[str] | None = [str(key) for key in users]
        per_user = list(users.values())
        is_new = np.array([key in data.new_keys for key in users])
    else:
        names = None
        per_user = _by_lot(data, config)
        is_new = np.zeros([len(per_user)], bool)
    if config.num_new_users:
        is_new = choose_new_users(len(per_user), config.num_new_users, config.seed)
    if config.fold_of:
        is_new = choose_fold(len(per_user), *config.fold_of, config.seed)
    for number, rows in enumerate(per_user):
        first, second = _split(data, rows, config, number)
        yield User(
            Rows(data.x[first], data.y[first]),
            Rows(data.x[second], data.y[second]),
            bool(is_new[number]),
            names[number] if names else None,
        )


def generate(config: DataConfig) -> tuple[Description, Iterator[User]]:
    """Makes the users of a generated data set, `synthetic` or `sinusoid`."""
    is_new = choose_new_users(config.num_users, config.num_new_users, config.seed)
    if config.dataset == "synthetic":
        classes, make = 10, _synthetic_user
    else:
        classes, make = None, _sinusoid_user
    description = Description(
        name=config.dataset, num_classes=classes, provenance=str(config)
    )

    def users():
        for number in range(config.num_users):
            rng = np.random.default_rng([config.seed, number])
            x, y = make(rng, config)
            end = len(y) - max(1, round(len(y) * config.evaluation_fraction))
            yield User(
                Rows(x[:end], y[:end]), Rows(x[end:], y[end:]), bool(is_new[number])
            )

    return description, users()


def choose_new_users(num_users: int, num_new_users: int, seed: int) -> np.ndarray:
    """Draws the new users, held out of training: bool `[num_users]`.

    Args:
      num_users: users in all.
      num_new_users: how many of them are new, from 0 to num_users - 1.
      seed: of the draw.

    Raises:
      DataError: if all users would be new.
    """
    if num_new_users >= num_users:
        raise errors.DataError(
            f"num_new_users is {num_new_users} of {num_users} users; at least one "
            "user must be left to train."
        )
    rng = np.random.default_rng([seed, _NEW_USERS])
    is_new = np.zeros([num_users], bool)
    is_new[rng.choice(num_users, num_new_users, replace=False)] = True
    return is_new


def choose_fold(num_users: int, number: int, count: int, seed: int) -> np.ndarray:
    """Draws who is held out of training in a fold of cross-validation.

    Args:
      num_users: of all folds.
      number: of the fold, from 1 to count.
      count: folds, equally large to one user.
      seed: of the division into folds, the same for all of them.

    Returns:
      bool `[num_users]`.

    Raises:
      DataError: if there are more folds than users.
    """
    if count > num_users:
        raise errors.DataError(
            f"fold is {number}/{count}, but there are {num_users} users; take at most "
            "as many folds."
        )
    rng = np.random.default_rng([seed, _FOLDS])
    is_new = np.zeros([num_users], bool)
    is_new[np.array_split(rng.permutation(num_users), count)[number - 1]] = True
    return is_new


def _by_the_papers_rule(data: LabeledRows, config: DataConfig) -> Iterator[User]:
    a, evaluation_a = config.a, config.evaluation_a
    arguments: dict[str, Any] = {
        "num_users": config.num_users,
        "seed": config.seed,
        "diff_hetero": config.partition == config_lib.PAPER_DIFF_HETERO,
    }
    if data.test is None:
        # One pool: divided by the rule with a + evaluation_a rows a class, then
        # class by class, which leaves both splits with the rule.
        source = data
        together = partition.paper_partition(data.y, a + evaluation_a, **arguments)
        pairs = [
            partition.split_by_class(data.y, rows, (a + evaluation_a) // 2, a // 2)
            for rows in together
        ]
    else:
        source = data.test
        pairs = list(
            zip(
                partition.paper_partition(data.y, a, **arguments),
                partition.paper_partition(data.test.y, evaluation_a, **arguments),
                strict=True,
            )
        )
    # New users are found among both kinds of user in equal numbers.
    half, half_new = config.num_users // 2, config.num_new_users // 2
    for number, (first, second) in enumerate(pairs):
        yield User(
            Rows(data.x[first], data.y[first]),
            Rows(source.x[second], source.y[second]),
            number % half >= half - half_new,
        )


def _by_tasks(data: LabeledRows, config: DataConfig) -> Iterator[User]:
    """Users who train hold classes of some families, new users those of the others.

    An image turned by a multiple of 90 degrees is of another class than before: with
    them there are four times as many (Santoro et al., 2016, arXiv 1605.06065, sec. 4).
    """
    assert data.keys is not None
    is_new = np.isin(data.keys, list(data.new_keys))
    new_classes = {*data.y[is_new].tolist()}
    splits = {
        c: _split_class(data.y, c, config, c in new_classes) for c in np.unique(data.y)
    }
    rng = np.random.default_rng([config.seed, _TURNS])
    number = 0
    for of_new, count in enumerate(
        (config.num_users - config.num_new_users, config.num_new_users)
    ):
        if not count:
            continue
        chosen = is_new == of_new
        drawn = partition.tasks(
            data.y[chosen],
            data.keys[chosen],
            config.classes_per_user,
            count,
            [config.seed, _TASKS, of_new],
        )
        for family, classes in drawn:
            first, second = (
                np.concatenate([splits[c][part] for c in classes]) for part in (0, 1)
            )
            turns = rng.integers(4) if config.turned_classes and not of_new else 0
            adaptation, evaluation = (
                Rows(np.rot90(data.x[rows], turns, (1, 2)), data.y[rows])
                for rows in (first, second)
            )
            yield User(adaptation, evaluation, bool(of_new), f"{family}/{number}")
            number += 1


def _split_class(
    labels: np.ndarray, label: int, config: DataConfig, is_new: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Splits a class's rows once for all users, so that none trains on another's."""
    (seed,) = np.random.SeedSequence([config.seed, _SPLIT, label]).generate_state(1)
    fraction = config.evaluation_fraction
    return partition.split_by_group(
        np.flatnonzero(labels == label),
        np.arange(len(labels)),
        fraction if is_new else min(fraction, _MOST_OF_TRAINED),
        int(seed),
    )


def _by_lot(data: LabeledRows, config: DataConfig) -> list[np.ndarray]:
    users, seed = config.num_users, config.seed
    if config.partition == config_lib.DIRICHLET:
        return partition.dirichlet_partition(
            data.y, config.concentration, config.rows_per_user, users, seed
        )
    if config.partition == config_lib.K_CLASSES:
        return partition.k_classes_partition(
            data.y, config.classes_per_user, users, seed
        )
    if config.partition == config_lib.QUANTITY_SKEW:
        return partition.quantity_skew_partition(
            len(data.y), config.concentration, users, seed
        )
    return partition.iid_partition(len(data.y), users, seed)


def _split(
    data: LabeledRows, rows: np.ndarray, config: DataConfig, user: int
) -> tuple[np.ndarray, np.ndarray]:
    if data.in_order:
        end = len(rows) - max(1, round(len(rows) * config.evaluation_fraction))
        return rows[: max(end, 1)], rows[max(end, 1) :]
    (seed,) = np.random.SeedSequence([config.seed, _SPLIT, user]).generate_state(1)
    groups = np.arange(len(data.y)) if data.groups is None else data.groups
    # Few groups, so that chance alone could leave a class out of a split; and a class
    # that only one split has cannot be a label of the user's own.
    by_class = data.groups is not None or config.own_labels
    return partition.split_by_group(
        rows,
        groups,
        config.evaluation_fraction,
        int(seed),
        labels=data.y if by_class else None,
    )


def _synthetic_user(
    rng: np.random.Generator, config: DataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic(alpha, beta) of Li et al., arXiv 1812.06127, appendix C.1."""
    inputs, classes = 60, 10
    size = int(rng.lognormal(4, 2)) + 50
    mean_model = rng.normal(0, np.sqrt(config.synthetic_alpha))
    mean_input = rng.normal(0, np.sqrt(config.synthetic_beta))
    kernel = rng.normal(mean_model, 1, [inputs, classes])
    bias = rng.normal(mean_model, 1, [classes])
    deviation = np.sqrt(np.arange(1, inputs + 1) ** -1.2)
    centre = rng.normal(mean_input, 1, [inputs])
    x = (centre + deviation * rng.normal(size=[size, inputs])).astype(np.float32)
    return x, (x @ kernel + bias).argmax(1).astype(np.int32)


def _sinusoid_user(
    rng: np.random.Generator, config: DataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """A sinusoid of its own amplitude and phase (Finn et al., 2017, sec. 5.1)."""
    amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0, np.pi)
    x = rng.uniform(-5, 5, [SINUSOID_ROWS, 1]).astype(np.float32)
    return x, (amplitude * np.sin(x - phase)).astype(np.float32)
