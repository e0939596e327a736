"""Builders of an experiment's model, client data and learning process."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow_federated as tff

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.aggregation import build_aggregation
from tff_perfedavg.experiments.assemble.own_model import build_own_model
from tff_perfedavg.experiments.assemble.server_optimizer import build_server_optimizer
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.federated import builders
from tff_perfedavg.federated.client_data import (
    BlockClientData,
    ClientData,
    StoreClientData,
)
from tff_perfedavg.federated.client_work import ClientWeighting
from tff_perfedavg.federated.layout import choose_client_data
from tff_perfedavg.fleet.names import PARTIAL
from tff_perfedavg.models.convolutional import char_cnn, cnn, conv1d
from tff_perfedavg.models.dense import logistic_regression, mlp, mlp_regressor
from tff_perfedavg.models.four_blocks import conv4
from tff_perfedavg.models.model import Model


def build_model(experiment: Experiment, population: UserStore) -> Model:
    """Builds the experiment's model for the store's features and labels.

    Args:
      experiment: its settings.
      population: the users' store, which gives shapes and number of classes.

    Raises:
      ConfigError: if it does not suit labels of that kind; and as `build_own_model`.
      ModelError: as `build_own_model`.
    """
    models: dict[str, Callable[..., Model]] = {
        "mlp": mlp,
        "logistic_regression": logistic_regression,
        "cnn": cnn,
        "conv4": conv4,
        "conv1d": conv1d,
        "char_cnn": char_cnn,
        "mlp_regressor": mlp_regressor,
    }
    num_outputs = population.description.num_classes
    experiment.check_model_suits(str(population.path), num_outputs is not None)
    if num_outputs is None:
        num_outputs = math.prod(population.label_shape)
    if experiment.has_own_model:
        return build_own_model(
            experiment.model,
            population.input_shape,
            num_outputs,
            experiment.base_random_seed,
            has_classes=population.description.num_classes is not None,
        )
    return models[experiment.model](population.input_shape, num_outputs)


def build_client_data(
    experiment: Experiment, model: Model, population: UserStore
) -> StoreClientData:
    """Chooses the form of client data: how many users a TFF client stands for.

    Args:
      experiment: its settings.
      model: what is trained.
      population: the users' store.
    """
    return choose_client_data(
        population,
        model,
        experiment.cohorts.clients_per_round,
        experiment.client_form,
        experiment.layout.block_size,
        with_steps=experiment.fleet_of_run.late_reports == PARTIAL,
    )


def build_process(
    experiment: Experiment, model: Model, client_data: ClientData
) -> tff.learning.templates.LearningProcess:
    """Builds the experiment's learning process.

    Args:
      experiment: its settings.
      model: what is trained, from the weights that its `init` returns.
      client_data: the form of the clients' data.
    """
    aggregation = build_aggregation(
        experiment.aggregation,
        experiment.cohorts.clients_per_round,
        in_blocks=isinstance(client_data, BlockClientData),
    )
    config = experiment.local.config
    return builders.build_process(
        model,
        config,
        server_optimizer=build_server_optimizer(
            experiment.server, config.server_learning_rate
        ),
        client_data=client_data,
        client_weighting=ClientWeighting(experiment.aggregation.client_weighting),
        model_aggregator=aggregation.model_aggregator,
        update_transform=aggregation.update_transform,
        seed=experiment.base_random_seed,
    )
