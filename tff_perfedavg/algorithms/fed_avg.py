"""Federated Averaging (McMahan et al., 2017, arXiv 1602.05629), the baseline.

A round: the server sends w_k to a cohort, every user takes tau SGD steps from
there, the server takes the mean. Adapted at test time like Per-FedAvg, this is
the "FedAvg + update" of arXiv 2002.07948, section 5.
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
from tff_perfedavg.optimization.config import FedAvgConfig


def build_fed_avg(
    model: Model,
    config: FedAvgConfig,
    *,
    server_optimizer: tff.learning.optimizers.Optimizer | None = None,
    model_aggregator: tff.aggregators.AggregationFactory | None = None,
    client_weighting: ClientWeighting = ClientWeighting.UNIFORM,
    client_data: ClientData | None = None,
    update_transform: UpdateTransform | None = None,
    seed: int = 0,
) -> tff.learning.templates.LearningProcess:
    """Builds FedAvg as a learning process; arguments as in `build_per_fed_avg`.

    There is no inner step, so the measured `query_loss` equals `support_loss`.
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
