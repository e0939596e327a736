"""From an experiment's settings to its data, its model and its learning process."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow_federated as tff

from tff_perfedavg.algorithms.client_work import ClientWeighting
from tff_perfedavg.algorithms.fed_avg import build_fed_avg
from tff_perfedavg.algorithms.per_fed_avg import build_per_fed_avg
from tff_perfedavg.data import catalog
from tff_perfedavg.data.population import Population
from tff_perfedavg.models.convolutional import cnn
from tff_perfedavg.models.dense import logistic_regression, mlp
from tff_perfedavg.models.model import Model
from tff_perfedavg.programs import experiment as experiment_lib
from tff_perfedavg.programs.experiment import Experiment


def build_population(experiment: Experiment) -> Population:
    """Loads and divides the experiment's data set."""
    datasets: dict[str, Callable[..., Population]] = {"digits": catalog.digits}
    return datasets[experiment.dataset](seed=experiment.base_random_seed)


def build_model(experiment: Experiment, population: Population) -> Model:
    """Builds the experiment's model for the population's features and labels."""
    builders: dict[str, Callable[..., Model]] = {
        "mlp": mlp,
        "logistic_regression": logistic_regression,
        "cnn": cnn,
    }
    return builders[experiment.model](population.input_shape, population.num_classes)


def build_process(
    experiment: Experiment, model: Model
) -> tff.learning.templates.LearningProcess:
    """Builds the experiment's learning process."""
    builders: dict[str, Callable[..., tff.learning.templates.LearningProcess]] = {
        experiment_lib.PER_FED_AVG: build_per_fed_avg,
        experiment_lib.FED_AVG: build_fed_avg,
    }
    return builders[experiment.algorithm](
        model,
        experiment.client_config(),
        client_weighting=ClientWeighting(experiment.client_weighting),
        seed=experiment.base_random_seed,
    )
