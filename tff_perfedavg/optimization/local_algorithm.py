"""What an algorithm is: a value that says what a user does in a round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.gradients import Loss, Weights, subtract

# A user's state between its local steps: any nest of tensors.
State = Any
Measures = Mapping[str, tf.Tensor]
Step = Callable[[Loss, State, Mapping[str, Batch]], tuple[State, Measures]]


def _same(parameters):
    return parameters


@dataclasses.dataclass(frozen=True)
class LocalAlgorithm:
    """What a user does in a round, as pure functions that close over their settings.

    Learning processes, exported files and tests run whatever is here and never ask
    which algorithm it is. All functions are graph code.

    Attributes:
      name: what tables and cards call it.
      roles: rows of each batch that a local step draws, by role; batches of one step
        are disjoint. The order decides which rows a role gets.
      num_steps: tau, local steps a round; an int32 scalar where a device decides.
      measures: names of the numbers that `step` measures, `query_loss` among them:
        the loss that is watched while training.
      step: from (loss, state, batches by role) to the state after a local step and
        its measures, scalars by name.
      adaptation: how a user adapts the model before it uses it.
      parameters: from a model's initial weights, arrays, to what the server holds.
      init: from what the server sent to the user's state.
      update: from what the server sent and the last state to what is sent back,
        what the server is to take a step against.
      report: from the measures' means, over steps and users, to what is reported.
    """

    name: str
    roles: Mapping[str, int]
    num_steps: int | tf.Tensor
    measures: tuple[str, ...]
    step: Step
    adaptation: Adaptation
    parameters: Callable[[Weights], Weights] = _same
    init: Callable[[Weights], State] = list
    update: Callable[[Weights, State], list[tf.Tensor]] = subtract
    report: Callable[[Measures], Measures] = _same

    def build(self) -> LocalAlgorithm:
        """Returns itself: a value may stand where a configuration may."""
        return self

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a step's batches, in the order of the roles."""
        return tuple(self.roles.values())


def with_adaptation_gain(means: Measures) -> Measures:
    """Adds how much lower the query loss is than the support loss."""
    gain = means["support_loss"] - means["query_loss"]
    return {**means, "adaptation_gain": gain}
