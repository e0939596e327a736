"""Pooled (centralized) training baseline: one model on all training users' rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import tensorflow as tf

from tff_perfedavg.data.user_store import Rows, UserStore
from tff_perfedavg.experiments.evaluation.baseline_names import POOLED
from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
from tff_perfedavg.models.model import Batch, Model
from tff_perfedavg.optimization.adam import AdamState, adam_step, start
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.gradients import loss_and_gradient
from tff_perfedavg.progress import progress

# The budget: Adam at its paper's rate, on so many rows a step.
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 2000, 64, 0.001
# Sets these draws apart from every other use of the same seed.
_CHOICE_OF_ROWS = 5


def train_pooled(
    model: Model, weights: Sequence[np.ndarray], population: UserStore, *, seed: int = 0
) -> list[np.ndarray]:
    """Trains one model on the pooled adaptation rows of all training users.

    `NUM_STEPS` steps of Adam, each on `BATCH_SIZE` rows drawn anew, whoever's they are.

    Args:
      model: the model.
      weights: the starting point.
      population: the users; new ones have no part in it.
      seed: of the draws, which depend on it and on the step alone.

    Returns:
      The weights after the last step.
    """
    bounds = np.asarray(population.users)[population.training_users]
    places = np.concatenate([np.arange(first, end) for first, end, *_ in bounds])

    @tf.function
    def train(state, x, y):
        rows = Batch(x, y, tf.ones([tf.shape(x)[0]], x.dtype))
        _, gradient = loss_and_gradient(model.batch_loss, state.weights, rows)
        return AdamState(*adam_step(state, gradient, LEARNING_RATE))

    state = start(weights)
    label_dtype = model.label_spec.dtype.as_numpy_dtype
    with progress(total=NUM_STEPS, desc=POOLED, unit="step") as bar:
        for step in range(NUM_STEPS):
            rng = np.random.default_rng([seed, _CHOICE_OF_ROWS, step])
            chosen = places[np.sort(rng.integers(len(places), size=BATCH_SIZE))]
            rows = Rows(population.features[chosen], population.labels[chosen])
            x = tf.constant(population.scaled(rows).x)
            state = train(state, x, tf.constant(np.asarray(rows.y, label_dtype)))
            bar.update()
    return [w.numpy() for w in state.weights]


def evaluate_pooled(
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    adaptation: AdaptationConfig,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Adapts and evaluates every user with a pooled model.

    Args:
      model: the model.
      weights: of `train_pooled`.
      population: the users.
      adaptation: how they adapt.
      seed: of the adaptation's draws.

    Returns:
      The rows of `evaluate_users` behind columns `algorithm` and `baseline`.
    """
    # Rates are learned for another model.
    adaptation = dataclasses.replace(adaptation, learned=None)
    frame = evaluate_users(model, weights, population, adaptation, seed=seed)
    frame.insert(0, "baseline", POOLED)
    frame.insert(0, "algorithm", POOLED)
    return frame
