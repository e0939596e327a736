"""The interface of algorithms: a user's local update as a value of pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Batch, Model
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.gradients import Loss, Weights, subtract
from tff_perfedavg.optimization.moves import BODY, Moves

_T = TypeVar("_T")
# A user's state between its local steps: any nest of tensors.
State = Any
Measures = Mapping[str, tf.Tensor]
Step = Callable[[Loss, State, Mapping[str, Batch]], tuple[State, Measures]]


def _same(parameters: _T) -> _T:
    return parameters


@dataclasses.dataclass(frozen=True)
class LocalAlgorithm:
    """An algorithm's client update, as pure functions that close over their settings.

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
      num_fixed: how many of the last parameters stay as initialized: users send
        nothing for them.
      server_learning_rate: of the server's plain gradient steps, if its optimizer is
        not chosen; 1 makes the mean of what users have the server's.
      random_sizes: roles whose batches have a random number of rows in every step,
        from one to as many as they would have.
      init: from what the server sent to the user's state.
      begin: from (loss, state, batches of the first step by role) to the state from
        which the steps start; None if they start from `init`'s.
      update: from what the server sent and the last state to what is sent back,
        what the server is to take a step against.
      report: from the measures' means, over steps and users, to what is reported.

    Raises:
      ConfigError: if `query_loss` is not among the measures.
    """

    name: str
    roles: Mapping[str, int]
    num_steps: int | tf.Tensor
    measures: tuple[str, ...]
    step: Step
    adaptation: Adaptation
    parameters: Callable[[Weights], Weights] = _same
    num_fixed: int = 0
    server_learning_rate: float = 1.0
    random_sizes: tuple[str, ...] = ()
    init: Callable[[Weights], State] = list
    begin: Callable[[Loss, State, Mapping[str, Batch]], State] | None = None
    update: Callable[[Weights, State], list[tf.Tensor]] = subtract
    report: Callable[[Measures], Measures] = _same

    def __post_init__(self) -> None:
        if "query_loss" not in self.measures:
            raise errors.ConfigError(
                f"{self.name}: measures is {self.measures}, without 'query_loss', the "
                "loss that is watched while training; measure it."
            )

    def build(self) -> LocalAlgorithm:
        """Returns itself: a value may stand where a configuration may."""
        return self

    def check(self, model: Model) -> None:
        """Raises `ConfigError` if the model has too few weight tensors."""
        self.adaptation.moves.check(model)
        if self.num_fixed:
            Moves.of(BODY, self.num_fixed).check(model)

    @property
    def random_roles(self) -> list[int]:
        """Numbers of the roles in `random_sizes`."""
        return [i for i, role in enumerate(self.roles) if role in self.random_sizes]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a step's batches, in the order of the roles."""
        return tuple(self.roles.values())


def with_adaptation_gain(means: Measures) -> Measures:
    """Adds how much lower the query loss is than the support loss."""
    gain = means["support_loss"] - means["query_loss"]
    return {**means, "adaptation_gain": gain}
