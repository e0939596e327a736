import math

import pytest

from tff_perfedavg import errors
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.experiments.settings.experiment import (
    Experiment,
    check_experiment_name,
)
from tff_perfedavg.optimization.config import AdaptationConfig

PER_FED_AVG = {"inner_learning_rate": 0.1, "outer_learning_rate": 0.1}


@pytest.mark.parametrize("value", [0, -0.1, math.inf, math.nan, "0.1", True])
@pytest.mark.parametrize(
    "field", ["inner_learning_rate", "outer_learning_rate", "hessian_free_delta"]
)
def test_a_rate_that_is_not_finite_and_positive_is_refused(field, value):
    with pytest.raises(errors.ConfigError, match=f"{field} is .*above 0"):
        PerFedAvgConfig(**PER_FED_AVG | {field: value})


@pytest.mark.parametrize("value", [0, -3, 1.5, "2", True])
@pytest.mark.parametrize(
    "field",
    [
        "num_local_steps",
        "support_batch_size",
        "query_batch_size",
        "hessian_batch_size",
    ],
)
def test_a_count_below_one_is_refused(field, value):
    with pytest.raises(errors.ConfigError, match=f"{field} is .*at least 1"):
        PerFedAvgConfig(**PER_FED_AVG | {field: value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: Experiment(batch_size=10**9), "batch_size is 1000000000; .* 1000000"),
        (
            lambda: FedAvgConfig(0.1, batch_size=10**9),
            r"FedAvgConfig\.batch_size is 10",
        ),
        (
            lambda: AdaptationConfig(0.1, batch_size=10**9),
            "batch_size is 10+; .*at most",
        ),
        (
            lambda: AdaptationConfig(0.1, num_steps=10**30),
            "num_steps is 10+; .*at most",
        ),
        (
            lambda: Experiment(num_local_steps=10**30),
            "num_local_steps is 10+; it must be at most 2147483647",
        ),
        (
            lambda: Experiment(num_local_steps=10**6, batch_size=10**6),
            "with 2000000 rows a step; that is 20+ rows a round.* smaller batches",
        ),
        (lambda: Experiment(num_users=10**30), "num_users is 10+; it must be at most"),
    ],
)
def test_a_count_that_no_round_could_hold_is_refused(config, message):
    with pytest.raises(errors.ConfigError, match=message):
        config()


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(
        errors.ConfigError, match=r"'second_order'.*exact, first_order, hessian_free"
    ):
        PerFedAvgConfig(**PER_FED_AVG, variant="second_order")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: FedAvgConfig(learning_rate=0), r"FedAvgConfig\.learning_rate is 0"),
        (lambda: FedAvgConfig(0.1, num_local_steps=0), "num_local_steps is 0"),
        (lambda: FedAvgConfig(0.1, batch_size=0), "batch_size is 0"),
        (lambda: AdaptationConfig(-1), r"AdaptationConfig\.inner_learning_rate is -1"),
        (lambda: AdaptationConfig(0.1, num_steps=-1), "num_steps is -1"),
        (lambda: AdaptationConfig(0.1, batch_size=0), "batch_size is 0"),
        (lambda: Experiment(dataset="digit"), "dataset is 'digit'; known: digits"),
        (lambda: Experiment(model="mpl"), "model is 'mpl'; known: mlp"),
        (lambda: Experiment(total_rounds=0), "total_rounds is 0"),
        (
            lambda: Experiment(variant="full"),
            "variant is 'full'; known: exact, first_o",
        ),
        (lambda: Experiment(algorithm="sgd"), "algorithm is 'sgd'; known: fed_avg"),
        (
            lambda: Experiment(server_optimizer="lamb"),
            "server_optimizer is 'lamb'; known: sgdm, adam, yogi, adagrad",
        ),
        (
            lambda: Experiment(server_learning_rate=0.0),
            "server_learning_rate is 0.0; it must be a number above 0",
        ),
        (
            lambda: Experiment(server_learning_rate=math.nan),
            "server_learning_rate is nan; it must be a number above 0",
        ),
        (
            lambda: Experiment(server_optimizer="adam", server_momentum=0.9),
            "server_momentum is 0.9, but server_optimizer adam has none; .* sgdm",
        ),
        (
            lambda: Experiment(server_beta_1=0.0),
            "server_beta_1 is 0.0, but server_optimizer sgdm has none; .* adam or yogi",
        ),
        (
            lambda: Experiment(server_optimizer="adagrad", server_beta_2=0.9),
            "server_beta_2 is 0.9, but server_optimizer adagrad has none",
        ),
        (
            lambda: Experiment(server_epsilon=1e-3),
            "server_epsilon is 0.001, but server_optimizer sgdm has none",
        ),
        (
            lambda: Experiment(server_optimizer="yogi", server_epsilon=0.0),
            "server_epsilon is 0.0; it must be a number above 0",
        ),
        (
            lambda: Experiment(server_decay_rounds=0),
            "server_decay_rounds is 0; it must be a number of rounds from 1",
        ),
        (
            lambda: Experiment(
                server_decay_rounds=100, total_rounds=101
            ).check_rounds(),
            "total_rounds is 101, but after server_decay_rounds, 100, .* set them",
        ),
        (
            lambda: Experiment(server_momentum=1.0),
            "server_momentum is 1.0; it must be from 0 to 0.999999",
        ),
        (
            lambda: Experiment(server_optimizer="adam", server_beta_2=1.0),
            "server_beta_2 is 1.0; it must be from 0 to 0.999999",
        ),
        (lambda: check_experiment_name("../x"), "experiment_name is '../x'"),
        (lambda: check_experiment_name(""), "experiment_name is ''"),
    ],
)
def test_bad_values_are_named(config, message):
    with pytest.raises(errors.ConfigError, match=message):
        config()


def test_adapting_by_no_step_is_allowed():
    assert AdaptationConfig(0.1, num_steps=0).num_steps == 0


def test_an_experiment_gives_each_rate_to_its_own_place():
    experiment = Experiment(inner_learning_rate=0.2, outer_learning_rate=0.03)
    config = experiment.local.config
    assert (config.inner_learning_rate, config.outer_learning_rate) == (0.2, 0.03)
    fed_avg = Experiment(
        algorithm="fed_avg", inner_learning_rate=0.2, outer_learning_rate=0.03
    )
    assert fed_avg.local.config.learning_rate == 0.03
