"""Learning processes: any algorithm, composed with TFF's own parts.

A round: the server sends w_k to a cohort, every user takes tau local steps from there,
the server takes the mean.
"""

from __future__ import annotations

import tensorflow_federated as tff

from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.federated import learning_process
from tff_perfedavg.federated.client_data import ClientData, SequenceClientData
from tff_perfedavg.federated.client_work import (
    ClientWeighting,
    UpdateTransform,
    build_client_work,
)
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm


def build_process(
    model: Model,
    algorithm: LocalAlgorithm | AlgorithmConfig,
    *,
    server_optimizer: tff.learning.optimizers.Optimizer | None = None,
    model_aggregator: tff.aggregators.AggregationFactory | None = None,
    client_weighting: ClientWeighting = ClientWeighting.UNIFORM,
    client_data: ClientData | None = None,
    update_transform: UpdateTransform | None = None,
    seed: int = 0,
) -> tff.learning.templates.LearningProcess:
    """Builds an algorithm as a learning process.

    Args:
      model: what to train; initial weights are `model.init(seed)`. What the
        process's `get_model_weights` gives is the algorithm's: learned rates stand
        behind the weights, and what it never changes is `non_trainable`.
      algorithm: the client update, or the configuration that builds it.
      server_optimizer: a TFF optimizer for the aggregated update; by default plain
        SGD at the algorithm's own rate: 1, so that the mean of the users' weights
        becomes the server's, or less.
      model_aggregator: a TFF aggregation factory; by default the weighted mean
        with the weights of `client_weighting`.
      client_weighting: uniform, as in the paper, unless told otherwise.
      client_data: the form of the clients' data, by default sequences of batches.
      update_transform: applied to each user's update before any is summed, for
        example `clip_update`.
      seed: of the initial weights and of every batch drawn.

    Returns:
      A process whose `next` takes the state and one round's users. Its
      measurements under `client_work` are listed in `build_client_work`.
    """
    algorithm = algorithm.build()
    algorithm.check(model)
    if server_optimizer is None:
        rate = algorithm.server_learning_rate
        server_optimizer = tff.learning.optimizers.build_sgdm(rate)
    client_work = build_client_work(
        model,
        algorithm,
        client_data or SequenceClientData(model),
        client_weighting,
        update_transform,
        seed,
    )
    return learning_process.compose(
        algorithm.parameters(model.init(seed)),
        client_work,
        server_optimizer,
        model_aggregator,
        algorithm.num_fixed,
    )


# The algorithm's value or configuration says which it is.
build_per_fed_avg = build_process
build_fed_avg = build_process
