"""Local updates against the float64 reference."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.helpers import batch_of, relative_error
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.optimization.adaptation import adapt
from tff_perfedavg.optimization.batches import BatchSource
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.local_update import (
    local_update,
    vectorized_local_update,
)

MODEL = mlp((4,), 3, hidden=(5,))
BY_HAND = reference.TwoLayerNetwork()
CONFIG = PerFedAvgConfig(
    inner_learning_rate=0.3,
    outer_learning_rate=0.07,
    num_local_steps=3,
    support_batch_size=4,
    query_batch_size=5,
    hessian_batch_size=6,
    hessian_batch="own",
)


def initial_weights():
    return BY_HAND.init(np.random.default_rng(0), 4, 5, 3)


def steps_of_batches(seed, num_steps, sizes):
    rng = np.random.default_rng(seed)
    return [
        [(rng.normal(size=[n, 4]), rng.integers(3, size=[n])) for n in sizes]
        for _ in range(num_steps)
    ]


def fed_from(steps):
    """A `draw_batches` that hands out prepared batches by step number."""

    def draw(number):
        roles = []
        for role, (first, _) in enumerate(steps[0]):
            size = len(first)
            xs = tf.stack([step[role][0] for step in steps])
            ys = tf.stack([step[role][1] for step in steps])
            batch = batch_of(np.zeros([size, 4]), np.zeros([size]))
            roles.append(batch._replace(x=xs[number], y=ys[number]))
        return roles

    return draw


def run(weights, steps, config):
    @tf.function
    def compute():
        return local_update(
            MODEL.batch_loss,
            [tf.constant(w) for w in weights],
            fed_from(steps),
            config.build(),
        )

    return compute()


@pytest.mark.parametrize("variant", ["exact", "first_order", "hessian_free"])
def test_tau_local_steps_equal_the_reference(variant):
    config = dataclasses.replace(CONFIG, variant=variant)
    steps = steps_of_batches(1, 3, (4, 5, 6)[: len(config.batch_sizes)])
    result = run(initial_weights(), steps, config)
    expected = reference.local_weights(BY_HAND, initial_weights(), steps, config)
    assert relative_error(result.state, expected) < 1e-9


def test_losses_are_means_over_the_local_steps():
    steps = steps_of_batches(1, 3, (4, 5, 6))
    result = run(initial_weights(), steps, CONFIG)
    weights, support, query = initial_weights(), [], []
    for batches in steps:
        support.append(BY_HAND.loss(weights, *batches[0]))
        gradient = BY_HAND.gradient(weights, *batches[0])
        adapted = reference.axpy(-CONFIG.inner_learning_rate, gradient, weights)
        query.append(BY_HAND.loss(adapted, *batches[1]))
        weights = reference.local_weights(BY_HAND, weights, [batches], CONFIG)
    assert np.isclose(result.measures["support_loss"], np.mean(support))
    assert np.isclose(result.measures["query_loss"], np.mean(query))


def test_fed_avg_takes_tau_plain_gradient_steps():
    config = FedAvgConfig(learning_rate=0.07, num_local_steps=3, batch_size=4)
    steps = steps_of_batches(1, 3, (4,))
    result = run(initial_weights(), steps, config)
    weights = initial_weights()
    for ((x, y),) in steps:
        weights = reference.axpy(-0.07, BY_HAND.gradient(weights, x, y), weights)
    assert relative_error(result.state, weights) < 1e-9
    assert result.measures["support_loss"] == result.measures["query_loss"]


def test_adaptation_takes_one_step_per_step_and_measures_around_each():
    steps = steps_of_batches(1, 3, (4,))
    x, y = steps_of_batches(9, 1, (20,))[0][0]
    held_out = batch_of(x, y)
    draw = fed_from(steps)

    @tf.function
    def compute():
        return adapt(
            MODEL.batch_loss,
            [tf.constant(w) for w in initial_weights()],
            lambda number: draw(number)[0],
            AdaptationConfig(0.3, 3).build(),
            lambda weights: MODEL.batch_loss(weights, held_out),
        )

    adapted, measured = compute()
    weights = initial_weights()
    expected = [BY_HAND.loss(weights, x, y)]
    for (batch,) in steps:
        weights = reference.axpy(-0.3, BY_HAND.gradient(weights, *batch), weights)
        expected.append(BY_HAND.loss(weights, x, y))
    assert relative_error(adapted, weights) < 1e-9
    assert np.allclose(measured, expected)


def test_no_adaptation_step_measures_once():
    held_out = batch_of(*steps_of_batches(9, 1, (20,))[0][0])

    @tf.function
    def compute():
        return adapt(
            MODEL.batch_loss,
            [tf.constant(w) for w in initial_weights()],
            lambda number: held_out,
            AdaptationConfig(0.3, num_steps=0).build(),
            lambda weights: MODEL.batch_loss(weights, held_out),
        )

    adapted, measured = compute()
    assert measured.shape == [1]
    assert relative_error(adapted, initial_weights()) == 0


@pytest.mark.parametrize("variant", ["exact", "first_order", "hessian_free"])
def test_users_side_by_side_equal_users_one_by_one(variant):
    config = dataclasses.replace(CONFIG, variant=variant)
    users = [steps_of_batches(seed, 3, (4, 5, 6)) for seed in (1, 2, 3)]
    roles = len(config.batch_sizes)
    draws = [fed_from([step[:roles] for step in user]) for user in users]

    def draw(number):
        each = [of_user(number) for of_user in draws]
        return tf.nest.map_structure(lambda *t: tf.stack(t), *each)

    @tf.function
    def compute():
        weights = [tf.constant(w) for w in initial_weights()]
        # The features themselves stand for their places.
        source = BatchSource(draw, lambda x: x)
        return vectorized_local_update(
            MODEL.batch_loss, weights, source, config.build(), tf.constant(3)
        )

    together = compute()
    for number, user in enumerate(users):
        alone = run(initial_weights(), [step[:roles] for step in user], config)
        assert relative_error([w[number] for w in together.state], alone[0]) < 1e-9
        for name in ("support_loss", "query_loss"):
            assert np.isclose(together.measures[name][number], alone.measures[name])
