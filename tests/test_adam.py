"""Adam and training to convergence against the paper's formulas in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.helpers import batch_of, relative_error, toy_user
from tff_perfedavg.models.dense import mlp, mlp_regressor
from tff_perfedavg.optimization import adam

MODEL = mlp((4,), 3, hidden=(5,))
BY_HAND = reference.TwoLayerNetwork()
WEIGHTS = MODEL.init(1)


def converge(loss, weights, batch):
    """Trains to convergence in a graph."""
    weights, steps = tf.function(
        lambda: adam.train_to_convergence(loss, weights, batch)
    )()
    return [w.numpy() for w in weights], int(steps)


def test_steps_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    gradients = [[rng.normal(size=[2, 3]), rng.normal(size=[3])] for _ in range(4)]
    state = adam.start([tf.zeros([2, 3]), tf.ones([3])])
    for gradient in gradients:
        state = adam.adam_step(
            state, [tf.constant(g, tf.float32) for g in gradient], 0.1
        )
    by_hand = reference.Adam([np.zeros([2, 3]), np.ones([3])], 0.1)
    for gradient in gradients:
        by_hand.step(gradient)
    assert int(state.number) == 4
    assert relative_error(state.weights, by_hand.weights) < 1e-5


@pytest.mark.parametrize("is_contradictory", [False, True])
def test_training_ends_where_the_loss_stops_falling(is_contradictory):
    x, y = toy_user(np.random.default_rng(2), 4)
    if is_contradictory:
        # Nobody is right of rows that are alike and have different labels.
        x, y = np.concatenate([x, x]), np.concatenate([y, (y + 1) % 3])
    found, steps = converge(MODEL.batch_loss, WEIGHTS, batch_of(x, y))
    weights, steps_by_hand = reference.train_to_convergence(BY_HAND, WEIGHTS, x, y)
    assert steps == steps_by_hand
    # At a look, or where nothing is left to gain.
    assert (steps % adam.STEPS_BETWEEN_CHECKS == 0) == is_contradictory
    assert 10 < steps < adam.MOST_STEPS
    assert relative_error(found, weights) < 1e-2
    assert np.isclose(BY_HAND.loss(found, x, y), BY_HAND.loss(weights, x, y), 1e-3)
    assert BY_HAND.loss(found, x, y) < BY_HAND.loss(WEIGHTS, x, y)


def test_ten_times_as_many_steps_gain_a_regressor_next_to_nothing():
    # A wave, as every user of the sinusoid has one.
    x = np.linspace(-5, 5, 20, dtype=np.float32)[:, np.newaxis]
    batch = batch_of(x, 3 * np.sin(x + 1))
    model = mlp_regressor((1,), 1)
    weights = model.init(0)
    found, steps = converge(model.batch_loss, weights, batch)
    first, last = (float(model.batch_loss(w, batch)) for w in (weights, found))
    assert last < 0.005 * first
    assert steps < adam.MOST_STEPS


def test_a_loss_that_is_negligible_ends_it():
    x, y = toy_user(np.random.default_rng(0), 0)
    found, steps = converge(MODEL.batch_loss, WEIGHTS, batch_of(x, y))
    assert steps == 0
    assert relative_error(found, WEIGHTS) == 0


def test_weights_of_a_loss_that_is_no_number_are_not_kept():
    # A number at the start alone.
    def loss(weights, batch):
        is_start = tf.equal(tf.reduce_sum(tf.abs(weights[0] - 1)), 0)
        return tf.where(is_start, 1.0, np.nan) * tf.reduce_sum(weights[0])

    found, steps = converge(loss, [tf.ones([2])], None)
    # A look at either rate.
    assert steps == 2 * adam.STEPS_BETWEEN_CHECKS
    assert found[0].tolist() == [1, 1]


class Slope:
    """A loss that falls by the same share for ever."""

    def loss(self, weights, x, y):
        return np.exp(0.2 * weights[0].sum())

    def gradient(self, weights, x, y):
        return [np.full_like(weights[0], 0.2 * self.loss(weights, x, y))]


def test_training_that_still_gains_ends_at_the_bound():
    def loss(weights, batch):
        return tf.exp(0.2 * tf.reduce_sum(weights[0]))

    found, steps = converge(loss, [tf.ones([1])], None)
    expected, steps_by_hand = reference.train_to_convergence(
        Slope(), [np.ones([1])], None, None
    )
    assert steps == steps_by_hand == adam.MOST_STEPS
    assert np.isclose(found[0], expected[0], rtol=1e-3)
