"""Client work process of TFF: runs an algorithm's client update."""

from __future__ import annotations

import collections
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.federated.client_data import ClientData, TrainUser, TrainUsers
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.batches import UserRows
from tff_perfedavg.optimization.fresh_labels import with_fresh_labels
from tff_perfedavg.optimization.gradients import Scale, Weights, global_norm
from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm
from tff_perfedavg.optimization.local_update import (
    LocalUpdate,
    local_update,
    vectorized_local_update,
)

# From one user's update, tensors shaped like the weights, to what is sent of it.
UpdateTransform = Callable[[list[tf.Tensor]], list[tf.Tensor]]
# What is summed over users, by name: tensors, lists of them, or more of the like.
_Sums: TypeAlias = collections.OrderedDict[str, Any]

# Orders of magnitude of float32, from 1e-38 to 1e38.
_DECADES = 77


class ClientWeighting(enum.Enum):
    """Weight of a user in the mean: uniform, or its number of rows."""

    UNIFORM = "uniform"
    NUM_EXAMPLES = "num_examples"


def build_client_work(
    model: Model,
    algorithm: LocalAlgorithm,
    client_data: ClientData,
    client_weighting: ClientWeighting,
    update_transform: UpdateTransform | None,
    seed: int,
) -> tff.templates.MeasuredProcess:
    """Builds the client work process that takes every user's local steps.

    The process counts rounds in its state, since every draw of a user is keyed by
    (seed, round, user, step, role). Where the client data have fresh labels, a user's
    task is drawn by (seed, round, user): the same for all of its steps and roles.

    A user is left out of the round, with weight 0 and an update of zeros, if its
    update has no finite norm or if it has no rows.

    Args:
      model: what to train.
      algorithm: the local steps.
      client_data: the form of the clients' data.
      client_weighting: what a user counts for.
      update_transform: applied to each user's update before any is summed.
      seed: the run's seed.

    Returns:
      A process whose result is the update `w_k - w` of each user, of what is not
      fixed, with its weight, and whose measurements are, over the users taken: what
      the algorithm reports (of Per-FedAvg mean `support_loss`, `query_loss` and their
      difference `adaptation_gain`); mean `update_norm`; `outlier_decades`, powers of
      ten from the median update norm to the largest (0 where all are of one order of
      magnitude); and the counts `num_users_taken` and `num_users_excluded`.
    """
    user_work = _UserWork(model, algorithm, client_weighting, update_transform, seed)
    initial = algorithm.parameters(model.init(0))
    weights_type = weights_type_of(initial, algorithm.num_fixed)

    @tff.tensorflow.computation(
        weights_type, client_data.training_type, tff.TensorType(np.int32)
    )
    def client_update(  # type: ignore[no-untyped-def]
        model_weights, value, round_number
    ):
        sent = [*model_weights.trainable, *model_weights.non_trainable]
        of_round = user_work.of_round(sent, round_number, client_data.fresh_labels)
        sums = client_data.sum_users(value, *of_round)
        # A mean over the client's users, whose weight is theirs together: TFF's mean
        # over clients is then the mean over users, however many a client stands for.
        update = tuple(
            tf.math.divide_no_nan(u, tf.cast(sums["weight"], u.dtype))
            for u in sums["update"]
        )
        result = tff.learning.templates.ClientResult(update, sums["weight"])
        return result, sums["measurements"]

    @tff.tensorflow.computation(client_update.type_signature.result[1])
    def finish_measurements(sums):  # type: ignore[no-untyped-def]
        return user_work.report(sums)

    return _compose(client_update, finish_measurements)


def _compose(
    client_update: tff.Computation, finish_measurements: tff.Computation
) -> tff.templates.MeasuredProcess:
    """Composes a process that counts rounds from what clients and the server do."""
    weights_type, training_type, _ = client_update.type_signature.parameter

    @tff.tensorflow.computation(tff.TensorType(np.int32))
    def next_round(round_number):  # type: ignore[no-untyped-def]
        return round_number + 1

    @tff.federated_computation
    def initialize():  # type: ignore[no-untyped-def]
        return tff.federated_value(0, tff.SERVER)

    @tff.federated_computation(
        tff.FederatedType(tff.TensorType(np.int32), tff.SERVER),
        tff.FederatedType(weights_type, tff.CLIENTS),
        tff.FederatedType(training_type, tff.CLIENTS),
    )
    def next_fn(round_number, weights, values):  # type: ignore[no-untyped-def]
        result, sums = tff.federated_map(
            client_update, (weights, values, tff.federated_broadcast(round_number))
        )
        measurements = tff.federated_map(finish_measurements, tff.federated_sum(sums))
        return tff.templates.MeasuredProcessOutput(
            tff.federated_map(next_round, round_number), result, measurements
        )

    if isinstance(training_type, tff.SequenceType):
        return tff.learning.templates.ClientWorkProcess(initialize, next_fn)
    # TFF's ClientWorkProcess refuses client data that are no sequences.
    return tff.templates.MeasuredProcess(initialize, next_fn)


class _UserWork:
    """A user's local update and the sums of its measurements. Graph code."""

    def __init__(
        self,
        model: Model,
        algorithm: LocalAlgorithm,
        client_weighting: ClientWeighting,
        update_transform: UpdateTransform | None,
        seed: int,
    ):
        """As `build_client_work`."""
        self._loss = model.batch_loss
        self._algorithm = algorithm
        self._client_weighting = client_weighting
        self._update_transform = update_transform
        self._seed_pair = batches.seed_pair(seed)

    def of_round(
        self, initial: list[tf.Tensor], round_number: tf.Tensor, fresh_labels: int
    ) -> tuple[TrainUser, TrainUsers]:
        """Returns the work of one user, and that of several side by side."""

        def source(users: tf.Tensor, rows: UserRows) -> batches.BatchSource:
            pair = tf.constant(self._seed_pair)
            key = batches.user_key(pair, round_number, users)
            if fresh_labels:
                rows = with_fresh_labels(rows, key, fresh_labels)
            return batches.batch_source(
                rows,
                key,
                self._algorithm.num_steps,
                self._algorithm.batch_sizes,
                self._algorithm.random_roles,
            )

        def one_user(user: tf.Tensor, rows: UserRows) -> _Sums:
            draw = source(user, rows)
            trained = local_update(
                self._loss, initial, draw, self._algorithm, rows.num_steps
            )
            return self._finish(initial, trained, rows.num_rows)

        def users_side_by_side(users: tf.Tensor, rows: UserRows) -> _Sums:
            draw = source(users, rows)
            trained = vectorized_local_update(
                *(self._loss, initial, draw, self._algorithm),
                tf.size(users),
                rows.num_steps,
            )
            finished: _Sums = tf.vectorized_map(
                lambda of_user: self._finish(initial, *of_user),
                (trained, rows.num_rows),
            )
            return finished

        return one_user, users_side_by_side

    def report(
        self, sums: Mapping[str, Any]
    ) -> collections.OrderedDict[str, tf.Tensor]:
        """Returns the measurements of the users whose sums these are."""
        count = tf.cast(sums["num_users_taken"], tf.float32)
        means = {name: sums["measures"][name] / count for name in sums["measures"]}
        return collections.OrderedDict(
            **self._algorithm.report(means),
            update_norm=sums["update_norm"] / count,
            outlier_decades=_outlier_decades(sums["norms_by_decade"]),
            num_users_taken=sums["num_users_taken"],
            num_users_excluded=sums["num_users_excluded"],
        )

    def _finish(
        self, initial: Weights, trained: LocalUpdate, num_rows: tf.Tensor
    ) -> _Sums:
        """One user's update times its weight, the weight, and its measurements."""
        update = self._algorithm.update(initial, trained.state)
        norm = global_norm(update)
        # Not entry by entry: for a small model, passes over the weights are what a
        # user costs beside its steps.
        taken = tf.logical_and(num_rows > 0, tf.math.is_finite(norm))
        if self._update_transform is not None:
            update = self._update_transform(update)
            norm = global_norm(update)
        is_uniform = self._client_weighting is ClientWeighting.UNIFORM

        def if_taken(value: Scale) -> tf.Tensor:
            # Selected, not multiplied: 0 times NaN is NaN.
            return tf.where(taken, tf.cast(value, tf.float32), 0.0)

        weight = if_taken(1.0 if is_uniform else num_rows)
        taken_count = tf.cast(taken, tf.int32)
        measures = [(name, if_taken(m)) for name, m in trained.measures.items()]
        return collections.OrderedDict(
            update=[
                tf.math.multiply_no_nan(u, tf.cast(weight, u.dtype)) for u in update
            ],
            weight=weight,
            measurements=collections.OrderedDict(
                measures=collections.OrderedDict(measures),
                update_norm=if_taken(norm),
                # How many users have a norm of each order of magnitude: unlike a
                # largest, numbers that can be summed.
                norms_by_decade=taken_count
                * tf.one_hot(_decade(norm), _DECADES, dtype=tf.int32),
                num_users_taken=taken_count,
                num_users_excluded=tf.cast(tf.logical_not(taken), tf.int32),
            ),
        )


def _decade(norm: tf.Tensor) -> tf.Tensor:
    """Returns the order of magnitude of a norm, counted from 1e-38."""
    log = tf.math.log(tf.maximum(norm, 1e-38)) / math.log(10.0)
    return tf.cast(tf.floor(log), tf.int32) + 38


def _outlier_decades(counts: tf.Tensor) -> tf.Tensor:
    """Returns the distance from the median's decade to the largest that is there."""
    below = tf.cumsum(counts)
    total = below[-1]
    median = tf.reduce_sum(tf.cast(2 * below < total, tf.int32))
    largest = tf.reduce_sum(tf.cast(below < total, tf.int32))
    return largest - median


def weights_type_of(
    weights: Sequence[np.ndarray], num_fixed: int = 0
) -> tff.StructWithPythonType:
    """Returns the TFF type of the server's `ModelWeights`.

    Args:
      weights: arrays of their shapes and dtypes.
      num_fixed: how many of the last never change.
    """
    specs = [tf.TensorSpec(w.shape, w.dtype) for w in weights]
    return tff.types.tensorflow_to_type(server_weights(specs, num_fixed))


def server_weights(weights: Sequence[Any], num_fixed: int = 0) -> Any:
    """Returns weights as TFF's `ModelWeights`.

    Args:
      weights: arrays, tensors or their specifications.
      num_fixed: how many of the last never change: they are `non_trainable`.
    """
    count = len(weights) - num_fixed
    return tff.learning.models.ModelWeights(
        trainable=tuple(weights[:count]), non_trainable=tuple(weights[count:])
    )
