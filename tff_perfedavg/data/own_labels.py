"""Per-user label permutations: K of a user's classes, in an order of its own.

Where users differ in what things mean to them (signs, gestures, words that each assigns
to actions of its own), no single model and no table of label shares can serve: before
adapting, every model is at chance. The tasks of few-shot learning are made in the same
way (Vinyals et al., 2016, arXiv 1606.04080, sec. 4.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.data.config import NATURAL, DataConfig
from tff_perfedavg.data.user_store import Description, Rows, User

# Sets these draws apart from others of the same seed.
_ORDERS = 3


def relabel(
    description: Description,
    make_users: Callable[[], Iterable[User]],
    config: DataConfig,
) -> tuple[Description, Callable[[], Iterator[User]]]:
    """Permutes labels per user, as a pure function of labels and seed.

    Every user keeps `config.own_labels` of the classes that both of its splits have,
    drawn without replacement, as labels 0, 1, ... in the order drawn. With
    `config.fresh_labels`, users who train have their adaptation rows of all other
    classes, too, as `User.training`, under the labels that follow. Natural users who
    hold fewer classes are left out, as those with few rows are.

    Args:
      description: what the rows mean without.
      make_users: the users, whose labels are classes; called once, and
        again for each time that users are made.
      config: number of labels, seed, and whether training draws labels afresh.

    Returns:
      What the rows mean now, and a function that makes the users, in their order, with
      `classes`, those of their labels.

    Raises:
      DataError: if a user holds fewer classes and is not natural, or nobody who trains
        holds as many; with the largest number that is feasible.
    """
    # Before any user is written.
    count, held, trains = config.own_labels, [], []
    for user in make_users():
        held.append(_held(user))
        trains.append(not user.is_new)
    sizes = np.array([len(classes) for classes in held])
    is_natural = config.partition == NATURAL
    _check_feasible(count, sizes, np.array(trains), is_natural)
    described = dataclasses.replace(
        description,
        num_classes=count,
        class_names=(),
        own_labels=True,
        fresh_labels=config.fresh_labels,
        source_classes=description.class_names,
        num_left_out=int((sizes < count).sum()),
    )

    def users():
        for number, user in enumerate(make_users()):
            if sizes[number] < count:
                continue
            rng = np.random.default_rng([config.seed, _ORDERS, number])
            kept = rng.permutation(held[number])[:count]
            fresh = config.fresh_labels and not user.is_new
            yield _with_labels(user, kept, fresh=fresh)

    return described, users


def _check_feasible(
    count: int, sizes: np.ndarray, trains: np.ndarray, is_natural: bool
) -> None:
    """Raises `DataError` if users hold too few classes.

    Args:
      count: labels of a user.
      sizes: int `[users]`, classes that each holds.
      trains: bool `[users]`.
      is_natural: whether users may be left out.
    """
    if is_natural:
        largest, who = int(sizes[trains].max()), "no user who trains"
        lacking = f"has more than {largest}"
    else:
        largest, who = int(sizes.min()), f"user {sizes.argmin()}"
        lacking = f"has only {largest}"
    if count > largest:
        feasible = largest if largest > 1 else "(none)"
        raise errors.DataError(
            f"own_labels is {count}, but {who} {lacking} classes in both adaptation "
            f"and evaluation rows; the largest feasible own_labels is {feasible}. Give "
            "fewer, or divide the data so that users hold more."
        )


def _held(user: User) -> np.ndarray:
    """Returns the classes of which a user can adapt and be judged, ascending."""
    return np.intersect1d(user.adaptation.y, user.evaluation.y)


def _with_labels(user: User, kept: np.ndarray, *, fresh: bool) -> User:
    others = np.setdiff1d(user.adaptation.y, kept)
    classes = np.concatenate([kept, others])
    labels = np.full([classes.max() + 1], -1, np.int64)
    labels[classes] = np.arange(len(classes))

    def chosen(rows: Rows, of: np.ndarray) -> Rows:
        places = np.flatnonzero(np.isin(rows.y, of))
        y = np.asarray(rows.y)[places]
        return Rows(rows.x[places], labels[y].astype(y.dtype))

    return user._replace(
        adaptation=chosen(user.adaptation, kept),
        evaluation=chosen(user.evaluation, kept),
        training=chosen(user.adaptation, others) if fresh else None,
        classes=tuple(kept.tolist()),
    )
