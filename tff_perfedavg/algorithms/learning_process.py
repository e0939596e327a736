"""Composes a client work with TFF's own parts into a learning process."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.algorithms.client_work import model_weights_type
from tff_perfedavg.models.model import Model


def compose(
    model: Model,
    client_work: tff.learning.templates.ClientWorkProcess,
    server_optimizer: tff.learning.optimizers.Optimizer | None,
    model_aggregator: tff.aggregators.AggregationFactory | None,
    seed: int,
) -> tff.learning.templates.LearningProcess:
    """Composes distributor, client work, aggregator and finalizer.

    Args:
      model: gives the initial weights, `model.init(seed)`.
      client_work: gives each user's update and weight.
      server_optimizer: applies the aggregated update; by default SGD with a rate
        of 1, so that the mean of the users' weights becomes the server's.
      model_aggregator: aggregates updates; by default their weighted mean. An
        unweighted factory counts every user alike, and a user left out as an
        update of zeros.
      seed: of the initial weights.
    """
    if server_optimizer is None:
        server_optimizer = tff.learning.optimizers.build_sgdm(1.0)
    if model_aggregator is None:
        model_aggregator = tff.aggregators.MeanFactory()
    elif isinstance(model_aggregator, tff.aggregators.UnweightedAggregationFactory):
        model_aggregator = tff.aggregators.as_weighted_aggregator(model_aggregator)
    weights_type = model_weights_type(model)
    initial = model.init(seed)

    @tff.tensorflow.computation
    def initial_weights():
        return tff.learning.models.ModelWeights(
            trainable=tuple(tf.constant(w) for w in initial), non_trainable=()
        )

    return tff.learning.templates.compose_learning_process(
        initial_weights,
        tff.learning.templates.build_broadcast_process(weights_type),
        client_work,
        model_aggregator.create(weights_type.trainable, tff.TensorType(np.float32)),
        tff.learning.templates.build_apply_optimizer_finalizer(
            server_optimizer, weights_type
        ),
    )
