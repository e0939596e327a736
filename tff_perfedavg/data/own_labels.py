"""Users with labels of their own: K of a user's classes, in an order of its own.

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
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.data.user_store import Description, Rows, User

# Sets these draws apart from others of the same seed.
_ORDERS = 3


def describe(description: Description, config: DataConfig) -> Description:
    """Returns what a store says of its rows when their labels become users' own."""
    return dataclasses.replace(
        description,
        num_classes=config.own_labels,
        class_names=(),
        own_labels=True,
        fresh_labels=config.fresh_labels,
        source_classes=description.class_names,
    )


def relabel(
    make_users: Callable[[], Iterable[User]], config: DataConfig
) -> Iterator[User]:
    """Gives users labels of their own, a pure function of labels and seed.

    Every user keeps `config.own_labels` of the classes that both of its splits have,
    drawn without replacement, as labels 0, 1, ... in the order drawn. With
    `config.fresh_labels`, users who train have their adaptation rows of all other
    classes, too, as `User.training`, under the labels that follow.

    Args:
      make_users: the users, whose labels are classes; called twice.
      config: number of labels, seed, and whether training draws labels afresh.

    Yields:
      The users in their order, with `classes`, those of their labels.

    Raises:
      DataError: naming the user that holds fewer classes, and the most that everybody
        holds.
    """
    count = config.own_labels
    # Else a store would be half written before the user who holds too few.
    held = [_held(user) for user in make_users()]
    largest = min(map(len, held), default=count)
    if count > largest:
        number = next(n for n, classes in enumerate(held) if len(classes) == largest)
        remedy = "give own_labels of at most that" if largest > 1 else "see who does"
        raise errors.DataError(
            f"own_labels is {count}, but user {number} has only {largest} classes in "
            f"both its adaptation and its evaluation rows; the largest feasible "
            f"own_labels is {largest if largest > 1 else '(none)'}: {remedy}, or "
            "divide the data so that users hold more classes (min_rows, "
            "classes_per_user, another partition)."
        )
    for number, user in enumerate(make_users()):
        rng = np.random.default_rng([config.seed, _ORDERS, number])
        kept = rng.permutation(held[number])[:count]
        yield _with_labels(user, kept, fresh=config.fresh_labels and not user.is_new)


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
