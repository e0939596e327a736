"""Server optimizers as settings: against float64 formulas, resumed, and swept."""

import numpy as np
import pytest

from tests import reference
from tests.helpers import relative_error, toy_user
from tff_perfedavg import errors
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.parts import ServerSettings
from tff_perfedavg.models.dense import mlp

pytestmark = pytest.mark.usefixtures("shared_builds")

MODEL = mlp((4,), 3, hidden=(5,))
# Batches of all rows, so that what a user does depends on no draw.
CONFIG = FedAvgConfig(learning_rate=0.5, num_local_steps=2, batch_size=12)
SHORT = Experiment(
    model="logistic_regression",
    algorithm="fed_avg",
    total_rounds=4,
    num_local_steps=1,
    batch_size=5,
)
ADAM = {"server_optimizer": "adam", "server_learning_rate": 0.05}


def momentum(g, state, t, rate=0.3, decay=0.9):
    v = state.get("v", 0) * decay + g
    return rate * v, {"v": v}


def adam(g, state, t, rate=0.02, beta_1=0.8, beta_2=0.99, epsilon=1e-3):
    """Kingma and Ba, 2015, with epsilon as before section 2.1."""
    m = beta_1 * state.get("m", 0) + (1 - beta_1) * g
    v = beta_2 * state.get("v", 0) + (1 - beta_2) * g**2
    corrected = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    return corrected * m / (np.sqrt(v) + epsilon), {"m": m, "v": v}


def yogi(g, state, t, rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-3):
    """Zaheer et al., 2018, corrected as Adam is; second moments begin with 1e-6."""
    m = beta_1 * state.get("m", 0) + (1 - beta_1) * g
    v = state.get("v", 1e-6)
    v = v - (1 - beta_2) * np.sign(v - g**2) * g**2
    corrected = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    return corrected * m / (np.sqrt(v) + epsilon), {"m": m, "v": v}


def adagrad(g, state, t, rate=0.1, epsilon=1e-2):
    """Duchi et al., 2011; sums of squares begin with 0.1."""
    s = state.get("s", 0.1) + g**2
    return rate * g / np.sqrt(s + epsilon), {"s": s}


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"server_learning_rate": 0.3, "server_momentum": 0.9}, momentum),
        (
            {
                "server_optimizer": "adam",
                "server_learning_rate": 0.02,
                "server_beta_1": 0.8,
                "server_beta_2": 0.99,
                "server_epsilon": 1e-3,
            },
            adam,
        ),
        # By TFF's defaults, and ours for the rate.
        ({"server_optimizer": "yogi"}, yogi),
        ({"server_optimizer": "adagrad", "server_epsilon": 1e-2}, adagrad),
    ],
    ids=["momentum", "adam", "yogi", "adagrad"],
)
def test_two_server_steps_equal_the_float64_formulas(tff, settings, formula):
    from tff_perfedavg.experiments.assemble.server_optimizer import (
        build_server_optimizer,
    )
    from tff_perfedavg.federated.builders import build_process
    from tff_perfedavg.federated.client_data import client_dataset

    rng = np.random.default_rng(3)
    users = [toy_user(rng, size) for size in (12, 7)]
    optimizer = build_server_optimizer(ServerSettings(**settings), 1.0)
    process = build_process(MODEL, CONFIG, server_optimizer=optimizer)
    state = process.initialize()
    network = reference.TwoLayerNetwork()
    expected = [w.astype(np.float64) for w in MODEL.init(0)]
    states = [{} for _ in expected]
    for step in (1, 2):
        before = expected
        state = process.next(
            state, [client_dataset(n, *rows) for n, rows in enumerate(users)]
        ).state
        expected, states = step_of(formula, network, expected, states, users, step)
        found = process.get_model_weights(state).trainable
        # Against the step, which is smaller than the weights.
        change = reference.axpy(-1, before, found)
        assert relative_error(change, reference.axpy(-1, before, expected)) < 1e-4


def step_of(formula, network, weights, states, users, step):
    """The server's weights and its optimizer's states after a round of FedAvg."""
    ends = [fed_avg(network, weights, x.astype(np.float64), y) for x, y in users]
    mean = reference.mean(ends, [1] * len(ends))
    steps = [
        formula(w - m, state, step)
        for w, m, state in zip(weights, mean, states, strict=True)
    ]
    moved = [w - change for w, (change, _) in zip(weights, steps, strict=True)]
    return moved, [state for _, state in steps]


def fed_avg(network, weights, x, y):
    for _ in range(CONFIG.num_local_steps):
        gradient = network.gradient(weights, x, y)
        weights = reference.axpy(-CONFIG.learning_rate, gradient, weights)
    return weights


@pytest.mark.parametrize("settings", [{"server_learning_rate": 0.3}, ADAM])
def test_a_rate_that_decays_follows_half_a_cosine(tff, settings):
    """Loshchilov and Hutter, 2017, equation 5, with no minimum and no restart."""
    import tensorflow as tf

    from tff_perfedavg.experiments.assemble.server_optimizer import (
        build_server_optimizer,
    )

    rate, rounds = settings["server_learning_rate"], 8
    asked = ServerSettings(**settings, server_decay_rounds=rounds)
    optimizer = build_server_optimizer(asked, 1.0)
    state = optimizer.initialize(tf.TensorSpec([1], np.float32))
    weights = tf.zeros([1])
    for step in range(rounds + 2):
        before = np.array(weights)
        expected = rate * (1 + np.cos(np.pi * min(step / rounds, 1))) / 2
        state, weights = optimizer.next(state, weights, tf.ones([1]))
        # By the same gradient in each round, Adam's steps are as long as its rate.
        assert np.allclose(before - weights, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "own", "expected"),
    [
        ({}, 1.0, 1.0),
        ({}, 0.5, 0.5),
        ({"server_learning_rate": 0.3}, 0.5, 0.3),
        ({"server_optimizer": "adam"}, 0.5, 0.01),
        ({"server_optimizer": "adagrad"}, 1.0, 0.1),
        (ADAM, 1.0, 0.05),
    ],
)
def test_a_rate_not_given_is_the_algorithms_own_or_the_optimizers(
    tff, settings, own, expected
):
    from tff_perfedavg.experiments.assemble.server_optimizer import (
        build_server_optimizer,
    )

    state = build_server_optimizer(ServerSettings(**settings), own).initialize([])
    assert state["learning_rate"] == expected
    # Version 0.1.0's checkpoints hold a plain rate and nothing else.
    if "server_optimizer" not in settings:
        assert [*state] == ["learning_rate"]


@pytest.mark.parametrize("decay", [{}, {"server_decay_rounds": 5}])
def test_a_resumed_run_of_adam_ends_with_the_same_bits(tff, tmp_path, decay):
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.training.training import train, train_and_save

    experiment = SHORT.replace(**ADAM, **decay)
    paths = RunPaths(tmp_path, "resumed")
    half = train_and_save(experiment.replace(total_rounds=2), paths)
    resumed = train_and_save(experiment, paths)
    assert trained_model.load(paths.model)[1] == experiment
    once = train(experiment, build_population(experiment, tmp_path))
    for one, other in zip(resumed.weights, once.weights, strict=True):
        assert np.array_equal(one, other)
    assert relative_error(resumed.weights, half.weights) > 1e-2


def test_a_rate_that_has_decayed_is_not_gone_on_with(tff, tmp_path):
    from tff_perfedavg.experiments.training.training import train_and_save

    decayed = SHORT.replace(total_rounds=2, server_decay_rounds=2)
    paths = RunPaths(tmp_path, "decayed")
    train_and_save(decayed, paths)
    for more, message in [
        ({"total_rounds": 3}, "total_rounds is 3, but after server_decay_rounds, 2"),
        (
            {"total_rounds": 3, "server_decay_rounds": 3},
            "server_decay_rounds 2, not 3",
        ),
    ]:
        with pytest.raises(errors.ConfigError, match=message):
            train_and_save(decayed.replace(**more), paths)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["blocks_loop", "blocks_vectorized"])
def test_every_layout_of_users_takes_the_same_server_steps(tff, tmp_path, form):
    """With clipping, which in blocks is ours and elsewhere TFF's."""
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.training.training import train

    # Where gradients are nearly 0, Adam's step is made of their rounding.
    clipped = SHORT.replace(
        **ADAM, server_epsilon=1e-3, aggregator="clip", clipping_norm=0.02
    )
    population = build_population(clipped, tmp_path)
    users = train(clipped.replace(client_form="users"), population)
    blocks = train(clipped.replace(client_form=form, block_size=2), population)
    assert relative_error(blocks.weights, users.weights) < 1e-5


@pytest.mark.slow
def test_noise_is_added_before_the_servers_step(tff, tmp_path):
    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.training.training import train

    private = SHORT.replace(
        **ADAM,
        aggregator="dp_fixed",
        clipping_norm=0.1,
        noise_multiplier=0.5,
        total_rounds=1,
    )
    population = build_population(private, tmp_path)
    start = build_model(private, population).init(private.base_random_seed)
    moved = reference.axpy(-1, start, train(private, population).weights)
    # Adam's first step takes a weight as far as its rate, however large the noise.
    moved = np.abs(np.concatenate([m.ravel() for m in moved]))
    assert moved.max() < 0.0501
    assert np.median(moved) > 0.0499


@pytest.mark.slow
def test_a_sweep_of_server_rates_starts_from_one_initial_model(run, tmp_path):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=s).astype(np.float32) for s in ([64, 10], [10])]
    np.savez(tmp_path / "start.npz", weight_0=start[0], weight_1=start[1])
    answer = run(
        "sweep.py",
        "--grid=server_learning_rate=0.25,1",
        f"--initial={tmp_path / 'start.npz'}",
        "--model=logistic_regression",
        "--total_rounds=1",
        "--adaptation_steps=1",
        f"--root_output_dir={tmp_path}",
    )
    assert answer.returncode == 0, answer.stderr
    slow, fast = (
        trained_model.load(RunPaths(tmp_path, f"server_learning_rate{rate}").model)[0]
        for rate in ("0.25", "1")
    )
    # A quarter of the way from the start to the mean of the users' weights.
    way, quarter = (reference.axpy(-1, start, end) for end in (fast, slow))
    assert relative_error(quarter, [0.25 * w for w in way]) < 1e-3
