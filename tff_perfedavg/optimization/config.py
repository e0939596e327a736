"""Hyper-parameters of local training and of adaptation, validated when built.

Plain Python: importing this module loads no TensorFlow, so commands can check
their flags before any long work starts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tff_perfedavg import errors, optimization
from tff_perfedavg.optimization.learned_rates import LearnedRates
from tff_perfedavg.optimization.moves import ALL, PARTS, Moves

if TYPE_CHECKING:
    import numpy as np

    from tff_perfedavg.optimization.adaptation import Adaptation

# Steps and rows are numbered in int32.
_MOST = 2**31 - 1
# Batches are padded to their size, whatever a user has.
MOST_BATCH_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """Hyper-parameters of a user's adaptation of the model.

    Attributes:
      inner_learning_rate: the step of each gradient step.
      num_steps: m; results are reported before and after each of the m steps.
        0 evaluates without adapting.
      batch_size: rows drawn afresh for every step from the user's adaptation
        split; None uses the whole split in every step.
      num_rows: the most rows of the adaptation split the user may use, drawn once;
        None for all.
      rows_per_class: whether `num_rows` is of each class.
      moves: which weight tensors move, one of `PARTS`.
      head_tensors: how many of the last weight tensors are the head (a dense layer
        has two, kernel and bias).
      pull: how strongly weights are pulled back to where they started, at least 0.
      learned: how learned rates, factors of the inner learning rate, stand behind the
        weights in what is adapted; None if there are none.
    """

    inner_learning_rate: float
    num_steps: int = 1
    batch_size: int | None = None
    num_rows: int | None = None
    moves: str = ALL
    head_tensors: int = 2
    pull: float = 0.0
    learned: LearnedRates | None = None
    rows_per_class: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "inner_learning_rate", "for example 0.01")
        check_at_least(self, "num_steps", 0)
        for field, most in (("batch_size", MOST_BATCH_ROWS), ("num_rows", _MOST)):
            if getattr(self, field) is not None:
                check_at_least(self, field, 1, most)
        errors.check_known("AdaptationConfig.moves", self.moves, PARTS)
        check_at_least(self, "head_tensors", 1)
        check_pull(self, "inner_learning_rate", "pull")

    def parameters(self, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the server's initial parameters: weights, then learned rates."""
        return self.build().parameters(weights)

    def weights(self, parameters: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Returns the model's weights among the server's parameters."""
        return self.learned.split(parameters)[0] if self.learned else parameters

    def build(self) -> Adaptation:
        """Builds the adaptation."""
        return optimization.Adaptation(
            self.inner_learning_rate,
            self.num_steps,
            Moves.of(self.moves, self.head_tensors),
            self.pull,
            self.batch_size,
            self.num_rows,
            self.learned,
            rows_per_class=self.rows_per_class,
        )


def check_positive(config: object, field: str, example: str) -> None:
    """Raises `ConfigError` unless a field is a finite number above 0.

    Args:
      config: the configuration that has the field.
      field: the field's name.
      example: the end of the message, such as `for example 0.01`.
    """
    value = getattr(config, field)
    if not _is_finite(value) or value <= 0:
        raise errors.ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be a finite "
            f"number above 0, {example}."
        )


def check_not_negative(config: object, field: str, example: str) -> None:
    """Raises `ConfigError` unless a field is a finite number of at least 0.

    Args:
      config: the configuration that has the field.
      field: the field's name.
      example: the end of the message, such as `0 for none`.
    """
    value = getattr(config, field)
    if not _is_finite(value) or value < 0:
        raise errors.ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be a finite "
            f"number of at least 0, {example}."
        )


def check_pull(config: object, rate: str, pull: str) -> None:
    """Raises `ConfigError` unless a pull is at least 0, and pull times rate below 2.

    A step multiplies the distance from the start by 1 - rate pull, whatever the loss.

    Args:
      config: the configuration that has both fields.
      rate: name of the field of the learning rate, above 0.
      pull: name of the field of the pull.
    """
    check_not_negative(config, pull, "0 for none")
    product = getattr(config, rate) * getattr(config, pull)
    if product >= 2:
        raise errors.ConfigError(
            f"{type(config).__name__}.{pull} is {getattr(config, pull)} and {rate} is "
            f"{getattr(config, rate)}: their product, {product:g}, must be below 2, or "
            "every step throws weights farther from their start; below 1 is wise."
        )


def _is_finite(value: object) -> bool:
    is_flag = isinstance(value, bool)
    return isinstance(value, (int, float)) and not is_flag and math.isfinite(value)


class _TakesSteps(Protocol):
    """Configuration of a client update."""

    @property
    def num_local_steps(self) -> int: ...

    @property
    def batch_sizes(self) -> Sequence[int]: ...


def check_rows(config: _TakesSteps) -> None:
    """Raises `ConfigError` if a user's rows of a round overflow int32."""
    rows = config.num_local_steps * sum(config.batch_sizes)
    if rows > _MOST:
        raise errors.ConfigError(
            f"{type(config).__name__}.num_local_steps is {config.num_local_steps}, "
            f"with {sum(config.batch_sizes)} rows a step; that is {rows} rows a round, "
            f"and at most {_MOST} can be numbered. Take fewer steps or smaller batches."
        )


def check_at_least(
    config: object, field: str, lowest: int, highest: int = _MOST
) -> None:
    """Raises `ConfigError` unless a field is a whole number from lowest to highest.

    Args:
      config: the configuration that has the field.
      field: the field's name.
      lowest: the least value allowed.
      highest: the greatest value allowed; by default that of int32.
    """
    value = getattr(config, field)
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise errors.ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be a whole "
            f"number of at least {lowest}."
        )
    if value > highest:
        raise errors.ConfigError(
            f"{type(config).__name__}.{field} is {value}; it must be at most {highest}."
        )
