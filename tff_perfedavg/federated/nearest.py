"""Per-user evaluation of nearest-neighbour and nearest-centroid classification.

What a user's few labelled rows give without a gradient: the class of the nearest row
(1-NN), or of the nearest mean of a class's rows, by Euclidean distance between inputs
or between a model's features. On features, nearest centroid is the rule of Prototypical
Networks (Snell et al., 2017, arXiv 1703.05175, eq. 2).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping

import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.federated.client_data import ClientData
from tff_perfedavg.models.model import Batch, Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adaptation import adaptation_batches
from tff_perfedavg.optimization.config import AdaptationConfig

NEIGHBOUR, CENTROID = "neighbour", "centroid"


def build_nearest_eval(
    model: Model,
    adaptation: AdaptationConfig,
    client_data: ClientData,
    *,
    seed: int = 0,
) -> tff.Computation:
    """Builds the per-user evaluation of 1-NN and nearest centroids on adaptation rows.

    Args:
      model: whose classes they are, and whose features, if it has any.
      adaptation: which rows a user may use; no step is taken.
      client_data: the form of the clients' data.
      seed: of the choice of rows.

    Returns:
      A computation from (a list of the model's weights at the server, users at the
      clients) to one result per client: `user`; `neighbour` and `centroid`, float32
      `[2]`, the accuracy on inputs and on the model's features (NaN for a model
      without); `num_adaptation_examples` and `num_evaluation_examples`. NaN for a user
      without rows to adapt on or to be judged on.
    """
    weights_type = tff.types.tensorflow_to_type(
        [tf.TensorSpec(w.shape, w.dtype) for w in model.init(0)]
    )
    value_type, seed_pair = client_data.evaluation_type, batches.seed_pair(seed)
    how = adaptation.build()

    @tff.tensorflow.computation(weights_type, value_type)
    def evaluate_users(weights, value):
        def evaluate_user(user, rows, evaluation):
            own = adaptation_batches(rows, tf.constant(seed_pair), user, how)
            own, held_out = own(tf.constant(0)), batches.all_rows(evaluation)
            return collections.OrderedDict(
                user=user,
                **_accuracies(model, list(weights), own, held_out),
                num_adaptation_examples=tf.size(own.y),
                num_evaluation_examples=evaluation.num_rows,
            )

        return client_data.map_users(value, evaluate_user)

    at_server = tff.FederatedType(weights_type, tff.SERVER)

    @tff.federated_computation(at_server, tff.FederatedType(value_type, tff.CLIENTS))
    def evaluate(weights, values):
        weights = tff.federated_broadcast(weights)
        return tff.federated_map(evaluate_users, (weights, values))

    return evaluate


def _accuracies(
    model: Model, weights: list[tf.Tensor], own: Batch, held_out: Batch
) -> Mapping[str, tf.Tensor]:
    """Returns by rule the accuracy on inputs and on features, float32 `[2]`."""
    assert model.num_classes is not None
    found: dict[str, list[tf.Tensor]] = {NEIGHBOUR: [], CENTROID: []}
    for see in (_inputs, model.features):
        if see is None:
            for values in found.values():
                values.append(tf.constant(float("nan")))
            continue
        own_x, x = (see(weights, batch.x) for batch in (own, held_out))
        has_rows = tf.size(own.y) > 0
        # Of a user without rows a row of zeros, which counts nowhere.
        own_x = tf.cond(has_rows, lambda a=own_x: a, lambda b=x: tf.zeros_like(b[:1]))
        own_y = tf.cond(has_rows, lambda: own.y, lambda: tf.zeros([1], own.y.dtype))
        centroids = tf.math.unsorted_segment_mean(own_x, own_y, model.num_classes)
        is_held = tf.math.unsorted_segment_sum(
            tf.ones_like(own_y), own_y, model.num_classes
        )
        away = _distances(x, centroids) + tf.where(is_held > 0, 0.0, float("inf"))
        answers = {
            NEIGHBOUR: tf.gather(own_y, tf.argmin(_distances(x, own_x), 1)),
            CENTROID: tf.argmin(away, 1, own_y.dtype),
        }
        for name, answer in answers.items():
            hits = tf.cast(tf.equal(answer, held_out.y), tf.float32)
            accuracy = tf.reduce_mean(hits)
            found[name].append(tf.where(has_rows, accuracy, float("nan")))
    return {name: tf.stack(values) for name, values in found.items()}


def _inputs(_, x: tf.Tensor) -> tf.Tensor:
    """Inputs as they are, `[batch, numbers]`."""
    return tf.reshape(x, [-1, math.prod(x.shape[1:])])


def _distances(x: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Squared Euclidean distances of `[n, d]` and `[m, d]`: `[n, m]`."""
    products = tf.matmul(x, others, transpose_b=True)
    norms = [tf.reduce_sum(tf.square(t), 1) for t in (x, others)]
    return norms[0][:, tf.newaxis] - 2 * products + norms[1][tf.newaxis]
