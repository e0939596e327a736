"""Adam and training to convergence against the paper's formulas in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.helpers import batch_of, relative_error, toy_user
from tff_perfedavg.models.dense import mlp
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


@pytest.mark.parametrize("num_rows", [2, 30])
def test_training_ends_where_the_loss_stops_falling(num_rows):
    x, y = toy_user(np.random.default_rng(num_rows), num_rows)
    found, steps = converge(MODEL.batch_loss, WEIGHTS, batch_of(x, y))
    weights, steps_by_hand = reference.train_to_convergence(BY_HAND, WEIGHTS, x, y)
    assert steps == steps_by_hand
    assert 10 < steps <= 200
    assert relative_error(found, weights) < 1e-3
    assert BY_HAND.loss(found, x, y) < BY_HAND.loss(WEIGHTS, x, y)


def test_a_loss_that_cannot_fall_ends_it_at_the_first_look():
    x, y = toy_user(np.random.default_rng(0), 0)
    found, steps = converge(MODEL.batch_loss, WEIGHTS, batch_of(x, y))
    assert steps == adam.STEPS_BETWEEN_CHECKS
    assert relative_error(found, WEIGHTS) == 0


def test_weights_of_a_loss_that_is_no_number_are_not_kept():
    # A number at the start alone.
    def loss(weights, batch):
        is_start = tf.equal(tf.reduce_sum(tf.abs(weights[0] - 1)), 0)
        return tf.where(is_start, 1.0, np.nan) * tf.reduce_sum(weights[0])

    found, steps = converge(loss, [tf.ones([2])], None)
    assert steps == adam.STEPS_BETWEEN_CHECKS
    assert found[0].tolist() == [1, 1]


def test_training_that_still_gains_ends_at_the_bound():
    # So far away that every step gains the same.
    def loss(weights, batch):
        return tf.reduce_sum(weights[0])

    found, steps = converge(loss, [tf.fill([1], 1.0)], None)
    assert steps == adam.MOST_STEPS
    # The last step's point is not measured any more.
    expected = 1 - adam.LEARNING_RATE * (adam.MOST_STEPS - 1)
    assert np.isclose(found[0], expected, rtol=1e-4)
