"""Hyper-parameters of local training and of adaptation, validated when built.

Plain Python: importing this module loads no TensorFlow, so commands can check
their flags before any long work starts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from tff_perfedavg import errors, optimization

if TYPE_CHECKING:
    from tff_perfedavg.optimization.adaptation import Adaptation

# Steps and rows are numbered in int32.
_MOST = 2**31 - 1
# Batches are padded to their size, whatever a user has.
MOST_BATCH_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """How a user adapts the model to itself before using it.

    Attributes:
      inner_learning_rate: the step of each gradient step.
      num_steps: m; results are reported before and after each of the m steps.
        0 evaluates without adapting.
      batch_size: rows drawn afresh for every step from the user's adaptation
        split; None uses the whole split in every step.
      num_rows: the most rows of the adaptation split the user may use, drawn once;
        None for all.
      num_trainable: how many of the last weight tensors move (a dense layer has two,
        kernel and bias); None for all.
    """

    inner_learning_rate: float
    num_steps: int = 1
    batch_size: int | None = None
    num_rows: int | None = None
    num_trainable: int | None = None

    def __post_init__(self):
        check_positive(self, "inner_learning_rate", "for example 0.01")
        check_at_least(self, "num_steps", 0)
        for field, most in (
            ("batch_size", MOST_BATCH_ROWS),
            ("num_rows", _MOST),
            ("num_trainable", _MOST),
        ):
            if getattr(self, field) is not None:
                check_at_least(self, field, 1, most)

    def build(self) -> Adaptation:
        """Builds the adaptation."""
        return optimization.Adaptation(
            self.inner_learning_rate,
            self.num_steps,
            self.num_trainable,
            self.batch_size,
            self.num_rows,
        )


def check_positive(config, field: str, example: str) -> None:
    """Raises `ConfigError` unless a field is a finite number above 0."""
    value = getattr(config, field)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise errors.ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be a finite "
            f"number above 0, {example}."
        )


def check_rows(config) -> None:
    """Raises `ConfigError` if a user draws more rows a round than have numbers."""
    rows = config.num_local_steps * sum(config.batch_sizes)
    if rows > _MOST:
        raise errors.ConfigError(
            f"{type(config).__name__}.num_local_steps is {config.num_local_steps}, "
            f"with {sum(config.batch_sizes)} rows a step; that is {rows} rows a round, "
            f"and at most {_MOST} can be numbered. Take fewer steps or smaller batches."
        )


def check_at_least(config, field: str, lowest: int, highest: int = _MOST) -> None:
    """Raises `ConfigError` unless a field is a whole number from lowest to highest."""
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
