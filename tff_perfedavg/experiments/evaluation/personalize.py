"""Personalized weights: the initial model adapted to every user, and stored."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.files.personalized_store import PersonalizedStore
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adaptation import adapt, adaptation_batches
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.progress import progress


@dataclasses.dataclass(frozen=True)
class Personalization:
    """Inputs of personalization: model, weights, users and adaptation.

    Attributes:
      model: the model.
      weights: its initial weights.
      population: the users' store.
      config: the adaptation.
      seed: of the adaptation's draws, if it has any.
    """

    model: Model
    weights: Sequence[np.ndarray]
    population: UserStore
    config: AdaptationConfig
    seed: int = 0

    @property
    def provenance(self) -> dict[str, Any]:
        """How weights were adapted and on which rows, as JSON takes it."""
        return {
            "adaptation": dataclasses.asdict(self.config),
            "seed": self.seed,
            "store": self.population.fingerprint,
        }


def personalize(
    source: Personalization,
    users: Sequence[int] | np.ndarray,
    path: str | os.PathLike,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> PersonalizedStore:
    """Adapts the initial model to users, as evaluation does, and stores the weights.

    Written user by user, in memory that does not grow with their number; the directory
    appears whole when the last is written. A user without adaptation rows keeps the
    initial weights.

    Args:
      source: what the weights are made of.
      users: which users.
      path: where the directory will be; nothing may be there.
      provenance: what else to keep, as JSON takes it.

    Raises:
      DataError: if a user is not in the store, something is at the path, a file
        is where a directory is needed, or the disk does not take it.
    """
    chosen = _checked(users, source.population)
    return PersonalizedStore.write(
        path,
        chosen,
        _adapted(source, chosen),
        {**source.provenance, **(provenance or {})},
    )


def _checked(users: Sequence[int] | np.ndarray, population: UserStore) -> np.ndarray:
    """Returns users in ascending order, each once, if all are in the store."""
    known = f"{population.path} has users 0 to {population.num_users - 1}"
    try:
        found = np.unique(np.asarray(users, np.int64))
    except OverflowError as e:
        beyond = next(u for u in users if not 0 <= u < population.num_users)
        raise errors.DataError(f"{known}; {beyond} is none.") from e
    outside = found[(found < 0) | (found >= population.num_users)]
    if len(outside):
        raise errors.DataError(f"{known}; {outside[0]} is none.")
    if not len(found):
        raise errors.DataError(f"{known}; none was given.")
    return found


def _adapted(source: Personalization, users: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Yields each user's adapted weights."""
    adapt_user = _build_adaptation(source)
    labels = source.model.label_spec.dtype.as_numpy_dtype
    with progress(total=len(users), desc="adapting", unit="user") as bar:
        for user in users:
            rows = source.population.scaled(source.population.adaptation(user))
            adapted = adapt_user(np.int32(user), rows.x, np.asarray(rows.y, labels))
            yield [tensor.numpy() for tensor in adapted]
            bar.update()


def _build_adaptation(source: Personalization):
    model, adaptation = source.model, source.config.build()
    adaptation.moves.check(model)
    seed_pair = batches.seed_pair(source.seed)

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.int32),
            model.input_spec,
            model.label_spec,
        ]
    )
    def adapt_user(user, x, y):
        adapted, _ = adapt(
            model.batch_loss,
            source.weights,
            adaptation_batches(
                batches.UserRows.of(x, y), tf.constant(seed_pair), user, adaptation
            ),
            adaptation,
            lambda _: tf.zeros([]),
        )
        return adapted

    return adapt_user
