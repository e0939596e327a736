"""The seam between federated computations and where clients' rows are kept.

A client work or an evaluation knows its data only as `UserRows`. A form of client
data says what TFF type one client's value has and turns such a value, inside the
graph, into the user's number and its rows.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.batches import UserRows


class ClientData(Protocol):
    """One form of client data."""

    @property
    def training_type(self) -> tff.Type:
        """Type of one client's value in training."""

    @property
    def evaluation_type(self) -> tff.Type:
        """Type of one client's value in evaluation."""

    def read_training(self, value: Any) -> tuple[tf.Tensor, UserRows]:
        """Returns the user's number (int32 scalar) and its training rows."""

    def read_evaluation(self, value: Any) -> tuple[tf.Tensor, UserRows, UserRows]:
        """Returns the user's number, its adaptation and its evaluation rows."""


class StoreClientData:
    """Clients as users of a `UserStore`: a client's value is its user's number.

    The rows are memory-mapped by the process that runs the client (TFF's worker), so
    they never pass through TFF's executors, and a population may be larger than
    memory. Features become float32, times the store's scale.
    """

    def __init__(self, store: UserStore, model: Model):
        """Checks that the model fits the store.

        Raises:
          DataError: if features or labels have another shape or number of classes
            than the model's.
        """
        for kind, found, wanted in (
            ("features", store.input_shape, model.input_spec.shape[1:]),
            ("labels", store.label_shape, model.label_spec.shape[1:]),
            ("classes", store.description.num_classes, model.num_classes),
        ):
            if found != (wanted if kind == "classes" else tuple(wanted)):
                raise errors.DataError(
                    f"{store.path} has {kind} {found}, the model {model.name!r} takes "
                    f"{wanted}."
                )
        self._store = store
        self._model = model

    @property
    def training_type(self) -> tff.TensorType:
        return tff.TensorType(np.int32)

    @property
    def evaluation_type(self) -> tff.TensorType:
        return tff.TensorType(np.int32)

    def read_training(self, value: tf.Tensor) -> tuple[tf.Tensor, UserRows]:
        bounds = self._bounds(value)
        return value, self._rows(bounds[0], bounds[1])

    def read_evaluation(self, value) -> tuple[tf.Tensor, UserRows, UserRows]:
        bounds = self._bounds(value)
        adaptation = self._rows(bounds[0], bounds[1])
        return value, adaptation, self._rows(bounds[1], bounds[2])

    def _bounds(self, user: tf.Tensor) -> tf.Tensor:
        return tf.gather(mapped_file(self._store, "users")(), user)

    def _rows(self, start: tf.Tensor, end: tf.Tensor) -> UserRows:
        store, model = self._store, self._model
        features = mapped_file(store, "features")()
        labels = mapped_file(store, "labels")()
        scale = tf.constant(store.description.scale, model.input_spec.dtype)

        def take(numbers):
            chosen = start + tf.cast(numbers, tf.int64)
            x = tf.cast(tf.gather(features, chosen), model.input_spec.dtype) * scale
            return x, tf.cast(tf.gather(labels, chosen), model.label_spec.dtype)

        return UserRows(tf.cast(end - start, tf.int32), take)


def mapped_file(store: UserStore, name: str) -> Callable[[], tf.Tensor]:
    """Returns a function that maps a file of a store where the graph runs.

    Args:
      store: the store.
      name: `users` (int64 `[users, 4]`), `features` or `labels` (`[rows, ...]`).
    """
    array = getattr(store, name)
    dtype, shape, path = tf.as_dtype(array.dtype), array.shape, store.file(name)
    return lambda: tf.raw_ops.ImmutableConst(
        dtype=dtype, shape=shape, memory_region_name=path
    )


class SequenceClientData:
    """Clients as `tff.SequenceType`: any `tf.data.Dataset` of batches will do.

    A training value is a sequence of batches, each an ordered dictionary with
    `user` (int32 scalar, the same in every batch), `x` `[rows, ...]` and `y`
    `[rows, ...]`; how the rows are cut into batches has no influence. An
    evaluation value is an ordered dictionary of two such sequences, `adaptation`
    and `evaluation`.
    """

    def __init__(self, model: Model):
        self._element_spec = collections.OrderedDict(
            user=tf.TensorSpec([], tf.int32), x=model.input_spec, y=model.label_spec
        )

    @property
    def training_type(self) -> tff.SequenceType:
        return tff.SequenceType(tff.types.tensorflow_to_type(self._element_spec))

    @property
    def evaluation_type(self) -> tff.StructType:
        return tff.to_type(
            collections.OrderedDict(
                adaptation=self.training_type, evaluation=self.training_type
            )
        )

    def read_training(self, value: tf.data.Dataset) -> tuple[tf.Tensor, UserRows]:
        # Every row carries its user's number, so that one pass gathers all.
        rows = value.map(
            lambda b: (tf.fill([tf.shape(b["x"])[0]], b["user"]), b["x"], b["y"])
        )
        # Rows are gathered into one tensor whatever the batches were.
        rows = rows.unbatch().batch(_MANY_ROWS).take(1)
        empty = tuple(
            tf.zeros([0, *spec.shape[1:]], spec.dtype)
            for spec in (
                tf.TensorSpec([None], tf.int32),
                self._element_spec["x"],
                self._element_spec["y"],
            )
        )
        rows = rows.with_options(_plain_iteration())
        users, x, y = rows.reduce(empty, lambda _, all_rows: all_rows)
        user = tf.reduce_max(tf.concat([users, [0]], 0))
        return user, UserRows(
            num_rows=tf.shape(x)[0],
            take=lambda numbers: (tf.gather(x, numbers), tf.gather(y, numbers)),
        )

    def read_evaluation(self, value) -> tuple[tf.Tensor, UserRows, UserRows]:
        # A split without rows does not say whose it is; the other does.
        user, adaptation = self.read_training(value["adaptation"])
        same_user, evaluation = self.read_training(value["evaluation"])
        return tf.maximum(user, same_user), adaptation, evaluation


def client_dataset(user: int, x, y) -> tf.data.Dataset:
    """Returns one user's rows as a client's value for `SequenceClientData`.

    Args:
      user: the user's number in the population; its draws are keyed by it.
      x: `[rows, ...]` features.
      y: `[rows, ...]` labels.
    """
    element = collections.OrderedDict(user=tf.constant(user, tf.int32), x=x, y=y)
    return tf.data.Dataset.from_tensors(element)


def _plain_iteration() -> tf.data.Options:
    """Options without tf.data's start-up work, which outweighs one short pass."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.threading.private_threadpool_size = 1
    return options


# More rows than one user holds.
_MANY_ROWS = 1 << 24
