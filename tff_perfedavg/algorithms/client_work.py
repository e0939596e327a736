"""A client's part of a round, as a TFF client work process."""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.algorithms.client_data import ClientData
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.local_update import DrawBatches, LocalUpdate


class ClientWeighting(enum.Enum):
    """What a user counts for in the mean over users."""

    UNIFORM = "uniform"
    NUM_EXAMPLES = "num_examples"


def build_client_work(
    model: Model,
    local_update: Callable[[Sequence[tf.Tensor], DrawBatches], LocalUpdate],
    client_data: ClientData,
    client_weighting: ClientWeighting,
    seed: int,
) -> tff.templates.MeasuredProcess:
    """Builds the client work that runs `local_update` on every user of a cohort.

    The process counts rounds in its state, since every draw of a user is keyed by
    (seed, round, user, step, role).

    A user is left out of the round, with weight 0 and an update of zeros, if its
    update is not finite or if it has no rows.

    Args:
      model: gives the weights' shapes.
      local_update: from the server's weights and a source of batches to the
        update of tau local steps.
      client_data: the form of the clients' data.
      client_weighting: what a user counts for.
      seed: the run's seed.

    Returns:
      A process whose result is the update `w_k - w` of each user with its weight,
      and whose measurements are, over the users taken: mean `support_loss`,
      `query_loss`, `adaptation_gain` (their difference), `update_norm`; and the
      counts `num_users_taken` and `num_users_excluded`.
    """
    weights_type = model_weights_type(model)
    seed_pair = batches.seed_pair(seed)

    @tff.tensorflow.computation(
        weights_type, client_data.training_type, tff.TensorType(np.int32)
    )
    def client_update(model_weights, value, round_number):
        initial = list(model_weights.trainable)
        user, rows = client_data.read_training(value)
        key = batches.user_key(tf.constant(seed_pair), round_number, user)

        def train():
            return local_update(
                initial,
                lambda step, sizes: batches.draw_batches(rows, key, step, sizes),
            )

        def idle():
            zero = tf.zeros([], initial[0].dtype)
            return LocalUpdate([tf.identity(w) for w in initial], zero, zero)

        has_rows = rows.num_rows > 0
        trained = tf.cond(has_rows, train, idle)
        update = [w - t for w, t in zip(initial, trained.weights, strict=True)]
        is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(u)) for u in update])
        taken = tf.logical_and(has_rows, is_finite)
        # Selected, not multiplied: 0 times NaN is NaN.
        update = [tf.where(taken, u, tf.zeros_like(u)) for u in update]

        def if_taken(value):
            return tf.where(taken, tf.cast(value, tf.float32), 0.0)

        weight = 1 if client_weighting is ClientWeighting.UNIFORM else rows.num_rows
        sums = collections.OrderedDict(
            support_loss=if_taken(trained.support_loss),
            query_loss=if_taken(trained.query_loss),
            update_norm=if_taken(tf.linalg.global_norm(update)),
            num_users_taken=tf.cast(taken, tf.int32),
            num_users_excluded=tf.cast(tf.logical_not(taken), tf.int32),
        )
        result = tff.learning.templates.ClientResult(
            update=tuple(update), update_weight=if_taken(weight)
        )
        return result, sums

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


def model_weights_type(model: Model) -> tff.StructWithPythonType:
    """Returns the type of a model's weights at the server."""
    specs = tuple(tf.TensorSpec(w.shape, w.dtype) for w in model.init(0))
    return tff.types.tensorflow_to_type(
        tff.learning.models.ModelWeights(trainable=specs, non_trainable=())
    )
