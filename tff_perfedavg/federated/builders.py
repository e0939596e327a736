"""Learning processes: Per-FedAvg and FedAvg, composed with TFF's own parts.

A round: the server sends w_k to a cohort, every user takes tau local steps from there,
the server takes the mean.
"""

from __future__ import annotations

import tensorflow_federated as tff

from tff_perfedavg.federated import learning_process
from tff_perfedavg.federated.client_data import ClientData, SequenceClientData
from tff_perfedavg.federated.client_work import (
    ClientWeighting,
    UpdateTransform,
    build_client_work,
)
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import LocalConfig


def build_process(
    model: Model,
    config: LocalConfig,
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
      model: what to train; initial weights are `model.init(seed)`.
      config: a user's part of a round, which says what algorithm it is.
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


# The configuration says which algorithm it is: Personalized Federated Averaging
# (arXiv 2002.07948, Algorithm 1), or Federated Averaging (arXiv 1602.05629), which has
# no inner step, so that its `query_loss` equals `support_loss`. Adapted at test time
# like Per-FedAvg, it is the "FedAvg + update" of arXiv 2002.07948, section 5.
build_per_fed_avg = build_process
build_fed_avg = build_process
