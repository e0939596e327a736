"""The theory's quantities on quadratics, where all are known in closed form."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import batch_of
from tff_perfedavg.algorithms.diagnostics import (
    draw_probes,
    population_diagnostics,
    user_diagnostics,
)
from tff_perfedavg.algorithms.meta_sgd import MetaSgdConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.algorithms.registry import LocalSettings
from tff_perfedavg.experiments.evaluation.diagnosis import theory_of
from tff_perfedavg.models.dense import logistic_regression
from tff_perfedavg.models.model import Batch

SIZE = 4
CONFIG = PerFedAvgConfig(
    0.3, 0.1, support_batch_size=8, hessian_free_delta=1e-3, hessian_batch="own"
)
# The unit vectors, times sqrt(d): probes whose mean of z z^T is exactly the identity.
BASIS = [[np.sqrt(SIZE) * np.eye(SIZE)[i]] for i in range(SIZE)]


def quadratic_loss(weights, batch):
    """Mean over rows of (w - c)^T A (w - c) / 2; a row is (A, c), A symmetric."""
    matrices, centres = batch.x[:, :SIZE], batch.x[:, SIZE]
    distance = weights[0] - centres
    values = tf.einsum("ni,nij,nj->n", distance, matrices, distance) / 2
    return tf.reduce_sum(values * batch.mask) / tf.reduce_sum(batch.mask)


def make_users(rng, count=5):
    """Rows of each user: symmetric matrices and centres, `[rows, d + 1, d]`."""
    users = []
    for number in range(count):
        matrices = rng.normal(size=[6 + number, SIZE, SIZE])
        matrices = (matrices + matrices.transpose(0, 2, 1)) / 2
        centres = rng.normal(size=[6 + number, 1, SIZE])
        users.append(np.concatenate([matrices, centres], 1))
    return users


@functools.cache
def traced(config, num_probes):
    """A user's diagnostics as a graph, which takes a while to trace."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, SIZE + 1, SIZE], tf.float64),
            tf.TensorSpec([SIZE], tf.float64),
            [[tf.TensorSpec([SIZE], tf.float64)]] * num_probes,
        ]
    )
    def of_user(x, point, probes):
        count = tf.shape(x)[0]
        rows = Batch(x, tf.zeros([count], tf.int32), tf.ones([count], x.dtype))
        return user_diagnostics(quadratic_loss, [point], rows, probes, config)

    return of_user


def measure(users, point, config=CONFIG, probes=BASIS):
    probes = [[tf.constant(p, tf.float64) for p in probe] for probe in probes]
    of_user = traced(config, len(probes))
    found = [of_user(tf.constant(x), tf.constant(point), probes) for x in users]
    return population_diagnostics(found, config)


def test_all_quantities_of_quadratics():
    rng = np.random.default_rng(0)
    users, point = make_users(rng), rng.normal(size=SIZE)
    found = measure(users, point)
    gradients, hessians, sigma_g, sigma_h, exact, first_order = [], [], [], [], [], []
    alpha = CONFIG.inner_learning_rate
    for x in users:
        matrices, centres = x[:, :SIZE], x[:, SIZE]
        each = np.einsum("nij,nj->ni", matrices, point - centres)
        gradient, hessian = each.mean(0), matrices.mean(0)
        sigma_g.append(((each - gradient) ** 2).sum(1).mean())
        sigma_h.append(((matrices - hessian) ** 2).sum((1, 2)).mean())
        # The gradient is linear: at w - alpha g it is g - alpha H g.
        adapted = gradient - alpha * hessian @ gradient
        first_order.append(adapted)
        exact.append(adapted - alpha * hessian @ adapted)
        gradients.append(gradient)
        hessians.append(hessian)
    gradients, hessians = np.array(gradients), np.array(hessians)
    exact, first_order = np.mean(exact, 0), np.mean(first_order, 0)
    norm = np.linalg.norm(exact)
    assert np.isclose(found.meta_gradient_norm, norm)
    error = np.linalg.norm(first_order - exact) / norm
    assert np.isclose(found.first_order_error, error)
    # Differences of a linear gradient have no error but rounding.
    assert found.hessian_free_error < 1e-9
    assert np.isclose(found.sigma_g, np.sqrt(np.mean(sigma_g)))
    assert np.isclose(found.sigma_h, np.sqrt(np.mean(sigma_h)))
    of_gradients = ((gradients - gradients.mean(0)) ** 2).sum(1).mean()
    assert np.isclose(found.gamma_g, np.sqrt(of_gradients))
    of_hessians = ((hessians - hessians.mean(0)) ** 2).sum((1, 2)).mean()
    assert np.isclose(found.gamma_h, np.sqrt(of_hessians))
    assert np.isclose(found.bias_floor, alpha**2 * np.mean(sigma_g) / 8)


def test_client_drift_of_quadratics():
    rng = np.random.default_rng(5)
    users, point = make_users(rng), rng.normal(size=SIZE)
    found = measure(users, point)
    alpha, beta = CONFIG.inner_learning_rate, CONFIG.outer_learning_rate
    ends = []
    for x in users:
        matrices, centres = x[:, :SIZE], x[:, SIZE]
        hessian = matrices.mean(0)
        constant = np.einsum("nij,nj->ni", matrices, centres).mean(0)
        contraction = np.eye(SIZE) - alpha * hessian
        weights = point
        for _ in range(CONFIG.num_local_steps):
            gradient = hessian @ weights - constant
            weights = weights - beta * contraction @ contraction @ gradient
        ends.append(weights)
    squares = ((np.array(ends) - np.mean(ends, 0)) ** 2).sum(1)
    assert np.isclose(found.client_drift, np.sqrt(squares.mean()))


def halves(of_whole):
    """A quadratic of two tensors, the first half of the weights and the second."""
    return lambda weights, batch: of_whole([tf.concat(list(weights), 0)], batch)


def test_the_meta_gradient_goes_through_the_steps_that_users_take():
    rng = np.random.default_rng(6)
    users, point, alpha = make_users(rng, 2), rng.normal(size=SIZE), 0.3
    logarithms = np.array([0.7, -1.1])
    config, rates = MetaSgdConfig(alpha, 0.1, 1), np.exp(logarithms)
    parameters = [point[:2], point[2:], logarithms]

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE + 1, SIZE], tf.float64)])
    def of_user(x):
        count = tf.shape(x)[0]
        rows = Batch(x, tf.zeros([count], tf.int32), tf.ones([count], x.dtype))
        probe = [tf.ones([2], tf.float64)] * 2
        loss, held = halves(quadratic_loss), [tf.constant(p) for p in parameters]
        return user_diagnostics(loss, held, rows, [probe], config)

    found = population_diagnostics([of_user(tf.constant(x)) for x in users], config)
    exact, first_order = [], []
    for x in users:
        matrices, centres = x[:, :SIZE], x[:, SIZE]
        hessian = matrices.mean(0)
        gradient = np.einsum("nij,nj->ni", matrices, point - centres).mean(0)
        step = alpha * np.repeat(rates, 2)
        adapted = gradient - hessian @ (step * gradient)
        first_order.append(adapted)
        exact.append(adapted - hessian @ (step * adapted))
    exact, first_order = np.array(exact), np.array(first_order)
    norm = np.linalg.norm(exact.mean(0))
    assert np.isclose(found.meta_gradient_norm, norm)
    error = np.linalg.norm((first_order - exact).mean(0)) / norm
    assert np.isclose(found.first_order_error, error)
    # One local step along it, of weights alone.
    spread = ((exact - exact.mean(0)) ** 2).sum(1).mean()
    assert np.isclose(found.client_drift, 0.1 * np.sqrt(spread))
    # A theorem on steps of all weights at alpha.
    assert np.isnan(found.bias_floor)


def test_the_theory_is_asked_of_what_it_speaks_of():
    for algorithm in ("per_fed_avg", "anil", "boil", "meta_sgd"):
        local = LocalSettings(algorithm=algorithm)
        assert theory_of(local) == (local.config, "")
    config, told = theory_of(LocalSettings(algorithm="fed_avg"))
    assert config == LocalSettings().config
    assert "FedAvg + update trains in another way" in told
    for algorithm in ("p_fed_me", "fed_recon", "fed_babu"):
        config, told = theory_of(LocalSettings(algorithm=algorithm))
        assert config is None
        assert "curvature alone is measured" in told


def test_users_alike_have_no_spread_and_one_row_no_variance():
    rng = np.random.default_rng(1)
    (x, *_), point = make_users(rng), rng.normal(size=SIZE)
    alike = measure([x, x, x], point)
    spreads = [alike.gamma_g, alike.gamma_h, alike.client_drift]
    assert np.allclose(spreads, 0, atol=1e-12)
    assert alike.sigma_g > 0.1
    single = measure([x[:1], x[1:2]], point)
    assert np.allclose([single.sigma_g, single.sigma_h], 0, atol=1e-12)
    assert single.gamma_g > 0.1


def test_random_probes_estimate_what_the_basis_gives():
    rng = np.random.default_rng(2)
    users, point = make_users(rng), rng.normal(size=SIZE)
    by_basis = measure(users, point)
    probes = draw_probes([np.zeros(SIZE)], 300, seed=0)
    by_chance = measure(users, point, probes=probes)
    assert np.isclose(by_chance.sigma_h, by_basis.sigma_h, rtol=0.05)
    assert np.isclose(by_chance.gamma_h, by_basis.gamma_h, rtol=0.05)


@pytest.mark.parametrize("rate", [0.01, 0.02])
def test_the_first_order_error_is_proportional_to_alpha(rate):
    rng = np.random.default_rng(3)
    users, point = make_users(rng), rng.normal(size=SIZE)
    small, double = (
        measure(users, point, dataclasses.replace(CONFIG, inner_learning_rate=a))
        for a in (rate, 2 * rate)
    )
    ratio = double.first_order_error / small.first_order_error
    assert np.isclose(ratio, 2, rtol=0.2)


def test_a_models_user_is_measured():
    model = logistic_regression((3,), 4)
    rng = np.random.default_rng(4)
    rows = batch_of(rng.normal(size=[7, 3]).astype(np.float32), rng.integers(4, size=7))
    weights = model.init(0)
    probes = draw_probes(weights, 2, seed=0)
    measured = tf.function(
        lambda: user_diagnostics(
            model.batch_loss, [tf.constant(w) for w in weights], rows, probes, CONFIG
        )
    )()
    assert measured.gradient.shape == (16,)
    assert measured.hessian_products.shape == (2, 16)
    assert measured.gradient_variance > 0
    assert measured.hessian_variance > 0
