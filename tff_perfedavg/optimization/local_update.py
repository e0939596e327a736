"""The client update: tau local steps from the server's parameters.

Graph code, like `gradients`: call it inside a `tf.function` or a
`tff.tensorflow.computation`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.optimization.batches import BatchSource, DrawBatches
from tff_perfedavg.optimization.gradients import Loss, Weights
from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures, State


class LocalUpdate(NamedTuple):
    """The result of a user's local steps; for several users, with a leading axis.

    Attributes:
      state: the algorithm's state after the last step.
      measures: by name, means over the steps.
    """

    state: State
    measures: Measures


def local_update(
    loss: Loss,
    parameters: Weights,
    draw_batches: DrawBatches,
    algorithm: LocalAlgorithm,
    num_steps: tf.Tensor | None = None,
) -> LocalUpdate:
    """Takes a user's tau local steps, or as many as it has time for.

    Args:
      loss: the user's loss.
      parameters: what the server sent, the weights w_k as a rule.
      draw_batches: gives a step's batches, in the order of the algorithm's roles.
      algorithm: what a step is, and how many there are.
      num_steps: int32 scalar, the first of these that are taken, from 1; None for all.
    """

    def by_role(number):
        return dict(zip(algorithm.roles, draw_batches(number), strict=True))

    def step(number, state):
        return algorithm.step(loss, state, by_role(number))

    parameters = [tf.convert_to_tensor(p) for p in parameters]
    zero = tf.zeros([], parameters[0].dtype)
    state = algorithm.init(parameters)
    if algorithm.begin is not None:
        state = algorithm.begin(loss, state, by_role(tf.constant(0)))
    return _repeat(step, state, zero, algorithm, num_steps)


def vectorized_local_update(
    loss: Loss,
    parameters: Weights,
    source: BatchSource,
    algorithm: LocalAlgorithm,
    num_users: tf.Tensor,
    num_steps: tf.Tensor | None = None,
) -> LocalUpdate:
    """Takes the local steps of several users side by side, vectorized.

    Args:
      loss: the users' loss.
      parameters: what the server sent, the same for all.
      source: chooses a step's batches with a leading axis `[users]`, and reads those
        of one user.
      algorithm: as for `local_update`.
      num_users: int32 scalar.
      num_steps: int32 `[users]`, as for `local_update`.
    """

    def for_each(function, number, stacked):
        def of_one_user(of_user):
            state, chosen = of_user
            batches = dict(zip(algorithm.roles, source.read(chosen), strict=True))
            return function(loss, state, batches)

        # Features are read inside, where they are used: outside they would be copied.
        return tf.vectorized_map(of_one_user, (stacked, source.choose(number)))

    def for_all(tensor):
        return tf.broadcast_to(tensor, tf.concat([[num_users], tf.shape(tensor)], 0))

    stacked = tf.nest.map_structure(for_all, algorithm.init(list(parameters)))
    if algorithm.begin is not None:
        stacked = for_each(algorithm.begin, tf.constant(0), stacked)
    zeros = tf.zeros([num_users], parameters[0].dtype)
    step = functools.partial(for_each, algorithm.step)
    return _repeat(step, stacked, zeros, algorithm, num_steps)


def _repeat(
    step: Callable,
    state: State,
    zero: tf.Tensor,
    algorithm: LocalAlgorithm,
    limit: tf.Tensor | None,
) -> LocalUpdate:
    """Runs tau steps in a graph loop: short to trace whatever tau.

    Args:
      step: from a step's number and a state to the next state and measures.
      state: before the first step.
      zero: a scalar, or `[users]` of several side by side.
      algorithm: says tau and what is measured.
      limit: int32, shaped like `zero`: steps that are taken; None for tau.
    """
    num_steps = most = algorithm.num_steps
    if limit is not None:
        num_steps = tf.minimum(limit, most)
        most = tf.reduce_max(num_steps)

    def body(number, state, sums):
        stepped, measured = step(number, state)
        if measured.keys() != {*algorithm.measures}:
            raise errors.ConfigError(
                f"{algorithm.name}: its step measures {sorted(measured)}, but measures "
                f"is {sorted(algorithm.measures)}; make them the same."
            )
        if limit is not None and limit.shape.rank:
            # Those who are done stay as they are.
            stepped, measured = (
                tf.nest.map_structure(
                    functools.partial(_where, number < num_steps), new, old
                )
                for new, old in (
                    (stepped, state),
                    (measured, dict.fromkeys(measured, zero)),
                )
            )
        sums = {name: sums[name] + measured[name] for name in sums}
        return number + 1, stepped, sums

    _, state, sums = tf.while_loop(
        lambda number, *_: number < most,
        body,
        (tf.constant(0), state, dict.fromkeys(algorithm.measures, zero)),
        maximum_iterations=algorithm.num_steps,
    )
    count = tf.cast(num_steps, zero.dtype)
    means = {name: sums[name] / count for name in algorithm.measures}
    return LocalUpdate(state, means)


def _where(chosen: tf.Tensor, new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """Selects along the leading axis."""
    shape = [-1] + [1] * (new.shape.rank - 1)
    return tf.where(tf.reshape(chosen, shape), new, old)
