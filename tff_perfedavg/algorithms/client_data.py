"""The seam between federated computations and where clients' rows are kept.

A client work or an evaluation knows its data only as `UserRows`. A form of client
data says what TFF type one client's value has and turns such a value, inside the
graph, into the user's number and its rows.
"""

from __future__ import annotations

import collections
from typing import Any, Protocol

import tensorflow as tf
import tensorflow_federated as tff

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
        user, adaptation = self.read_training(value["adaptation"])
        _, evaluation = self.read_training(value["evaluation"])
        return user, adaptation, evaluation


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
