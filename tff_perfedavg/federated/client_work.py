"""A client's part of a round, as a TFF client work process."""

from __future__ import annotations

import collections
import enum
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.federated.client_data import ClientData
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.config import LocalConfig
from tff_perfedavg.optimization.local_update import (
    local_update,
    vectorized_local_update,
)
from tff_perfedavg.optimization.meta_gradient import global_norm

# From one user's update, tensors shaped like the weights, to what is sent of it.
UpdateTransform = Callable[[list[tf.Tensor]], list[tf.Tensor]]


# Orders of magnitude of float32, from 1e-38 to 1e38.
_DECADES = 77


class ClientWeighting(enum.Enum):
    """What a user counts for in the mean over users."""

    UNIFORM = "uniform"
    NUM_EXAMPLES = "num_examples"


def build_client_work(
    model: Model,
    config: LocalConfig,
    client_data: ClientData,
    client_weighting: ClientWeighting,
    update_transform: UpdateTransform | None,
    seed: int,
) -> tff.templates.MeasuredProcess:
    """Builds the client work that takes every user's local steps.

    The process counts rounds in its state, since every draw of a user is keyed by
    (seed, round, user, step, role).

    A user is left out of the round, with weight 0 and an update of zeros, if its
    update has no finite norm or if it has no rows.

    Args:
      model: what to train.
      config: the local steps: Per-FedAvg's or FedAvg's.
      client_data: the form of the clients' data.
      client_weighting: what a user counts for.
      update_transform: applied to each user's update before any is summed.
      seed: the run's seed.

    Returns:
      A process whose result is the update `w_k - w` of each user with its weight,
      and whose measurements are, over the users taken: mean `support_loss`,
      `query_loss`, `adaptation_gain` (their difference), `update_norm`;
      `outlier_decades`, powers of ten from the median update norm to the largest (0
      where all are of one order of magnitude); and the counts `num_users_taken` and
      `num_users_excluded`.
    """
    weights_type = model_weights_type(model)
    seed_pair = batches.seed_pair(seed)

    def finish_user(initial, trained, num_rows):
        """One user's update times its weight, the weight, and its measurements."""
        update = [w - t for w, t in zip(initial, trained.weights, strict=True)]
        norm = global_norm(update)
        # Not entry by entry: for a small model, passes over the weights are what a
        # user costs beside its steps.
        taken = tf.logical_and(num_rows > 0, tf.math.is_finite(norm))
        if update_transform is not None:
            update = update_transform(update)
            norm = global_norm(update)
        weight = 1.0 if client_weighting is ClientWeighting.UNIFORM else num_rows

        def if_taken(value):
            # Selected, not multiplied: 0 times NaN is NaN.
            return tf.where(taken, tf.cast(value, tf.float32), 0.0)

        weight = if_taken(weight)
        taken_count = tf.cast(taken, tf.int32)
        return collections.OrderedDict(
            update=[
                tf.math.multiply_no_nan(u, tf.cast(weight, u.dtype)) for u in update
            ],
            weight=weight,
            measurements=collections.OrderedDict(
                support_loss=if_taken(trained.support_loss),
                query_loss=if_taken(trained.query_loss),
                update_norm=if_taken(norm),
                # How many users have a norm of each order of magnitude: unlike a
                # largest, numbers that can be summed.
                norms_by_decade=taken_count
                * tf.one_hot(_decade(norm), _DECADES, dtype=tf.int32),
                num_users_taken=taken_count,
                num_users_excluded=tf.cast(tf.logical_not(taken), tf.int32),
            ),
        )

    @tff.tensorflow.computation(
        weights_type, client_data.training_type, tff.TensorType(np.int32)
    )
    def client_update(model_weights, value, round_number):
        initial = list(model_weights.trainable)

        def key_of(user):
            return batches.user_key(tf.constant(seed_pair), round_number, user)

        def source(rows, key):
            return batches.batch_source(
                rows, key, config.num_local_steps, config.batch_sizes
            )

        def one_user(user, rows):
            draw = source(rows, key_of(user))
            trained = local_update(model.batch_loss, initial, draw, config)
            return finish_user(initial, trained, rows.num_rows)

        def users_side_by_side(users, rows):
            draw = source(rows, key_of(users))
            trained = vectorized_local_update(
                model.batch_loss, initial, draw, config, tf.size(users)
            )
            return tf.vectorized_map(
                lambda of_user: finish_user(initial, *of_user), (trained, rows.num_rows)
            )

        sums = client_data.sum_users(value, one_user, users_side_by_side)
        # A mean over the client's users, whose weight is theirs together: TFF's mean
        # over clients is then the mean over users, however many a client stands for.
        update = tuple(
            tf.math.divide_no_nan(u, tf.cast(sums["weight"], u.dtype))
            for u in sums["update"]
        )
        result = tff.learning.templates.ClientResult(
            update=update, update_weight=sums["weight"]
        )
        return result, sums["measurements"]

    @tff.tensorflow.computation(client_update.type_signature.result[1])
    def finish_measurements(sums):
        count = tf.cast(sums["num_users_taken"], tf.float32)
        support_loss, query_loss, update_norm = (
            sums[name] / count for name in ("support_loss", "query_loss", "update_norm")
        )
        return collections.OrderedDict(
            support_loss=support_loss,
            query_loss=query_loss,
            adaptation_gain=support_loss - query_loss,
            update_norm=update_norm,
            outlier_decades=_outlier_decades(sums["norms_by_decade"]),
            num_users_taken=sums["num_users_taken"],
            num_users_excluded=sums["num_users_excluded"],
        )

    @tff.tensorflow.computation(tff.TensorType(np.int32))
    def next_round(round_number):
        return round_number + 1

    @tff.federated_computation
    def initialize():
        return tff.federated_value(0, tff.SERVER)

    @tff.federated_computation(
        tff.FederatedType(tff.TensorType(np.int32), tff.SERVER),
        tff.FederatedType(weights_type, tff.CLIENTS),
        tff.FederatedType(client_data.training_type, tff.CLIENTS),
    )
    def next_fn(round_number, weights, values):
        result, sums = tff.federated_map(
            client_update, (weights, values, tff.federated_broadcast(round_number))
        )
        measurements = tff.federated_map(finish_measurements, tff.federated_sum(sums))
        return tff.templates.MeasuredProcessOutput(
            tff.federated_map(next_round, round_number), result, measurements
        )

    if isinstance(client_data.training_type, tff.SequenceType):
        return tff.learning.templates.ClientWorkProcess(initialize, next_fn)
    # TFF's ClientWorkProcess refuses client data that are no sequences.
    return tff.templates.MeasuredProcess(initialize, next_fn)


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


def model_weights_type(model: Model) -> tff.StructWithPythonType:
    """Returns the type of a model's weights at the server."""
    specs = tuple(tf.TensorSpec(w.shape, w.dtype) for w in model.init(0))
    return tff.types.tensorflow_to_type(
        tff.learning.models.ModelWeights(trainable=specs, non_trainable=())
    )
