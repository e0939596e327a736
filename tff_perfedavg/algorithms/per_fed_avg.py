"""Personalized Federated Averaging (Fallah, Mokhtari, Ozdaglar, NeurIPS 2020).

arXiv 2002.07948, Algorithm 1. A round: the server sends w_k to a cohort, every
user takes tau meta-gradient steps from there, the server takes the mean.
"""

from __future__ import annotations

import tensorflow_federated as tff

from tff_perfedavg.algorithms import learning_process
from tff_perfedavg.algorithms.client_data import ClientData, SequenceClientData
from tff_perfedavg.algorithms.client_work import (
    ClientWeighting,
    UpdateTransform,
    build_client_work,
)
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import PerFedAvgConfig


def build_per_fed_avg(
    model: Model,
    config: PerFedAvgConfig,
    *,
    server_optimizer: tff.learning.optimizers.Optimizer | None = None,
    model_aggregator: tff.aggregators.AggregationFactory | None = None,
    client_weighting: ClientWeighting = ClientWeighting.UNIFORM,
    client_data: ClientData | None = None,
    update_transform: UpdateTransform | None = None,
    seed: int = 0,
) -> tff.learning.templates.LearningProcess:
    """Builds Per-FedAvg as a learning process.

    Args:
      model: what to train; initial weights are `model.init(seed)`.
      config: a user's part of a round.
      server_optimizer: a TFF optimizer for the aggregated update; by default the
        plain mean of the users' weights becomes the server's.
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
    client_work = build_client_work(
        model,
        config,
        client_data or SequenceClientData(model),
        client_weighting,
        update_transform,
        seed,
    )
    return learning_process.compose(
        model, client_work, server_optimizer, model_aggregator, seed
    )
