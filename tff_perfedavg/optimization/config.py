"""Hyper-parameters of local training and of adaptation, validated when built.

Plain Python: importing this module loads no TensorFlow, so commands can check
their flags before any long work starts.
"""

from __future__ import annotations

import dataclasses
import math

from tff_perfedavg import errors

EXACT = "exact"
FIRST_ORDER = "first_order"
HESSIAN_FREE = "hessian_free"
VARIANTS = (EXACT, FIRST_ORDER, HESSIAN_FREE)
# Steps and rows are numbered in int32.
_MOST = 2**31 - 1
# Batches are padded to their size, whatever a user has.
MOST_BATCH_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class PerFedAvgConfig:
    """One user's part of a round of Per-FedAvg (Algorithm 1, arXiv 2002.07948).

    Attributes:
      inner_learning_rate: alpha, the step a user adapts with.
      outer_learning_rate: beta, the step along the meta-gradient.
      num_local_steps: tau, meta-gradient steps a user takes per round.
      support_batch_size: rows of D, where the inner gradient is taken.
      query_batch_size: rows of D', where the adapted model is judged.
      hessian_batch_size: rows of D'', where the Hessian is taken (unused by
        `first_order`).
      variant: how the Hessian-vector product is formed, one of `VARIANTS`
        (`exact`: differentiated; `first_order`: dropped; `hessian_free`: from
        the difference of two gradients).
      hessian_free_delta: the distance of `hessian_free`'s two gradients from w.
        With `hessian_free_normalized` it is a length in weight space; without,
        it multiplies the query gradient, as delta does in the paper.
      hessian_free_normalized: divide delta by the norm of the query gradient,
        which keeps float32 differences accurate whatever that norm is.
    """

    inner_learning_rate: float
    outer_learning_rate: float
    num_local_steps: int = 10
    support_batch_size: int = 20
    query_batch_size: int = 20
    hessian_batch_size: int = 20
    variant: str = EXACT
    hessian_free_delta: float = 1e-2
    hessian_free_normalized: bool = True

    def __post_init__(self):
        _check_positive(self, "inner_learning_rate", "for example 0.01")
        _check_positive(self, "outer_learning_rate", "for example 0.01")
        _check_positive(self, "hessian_free_delta", "for example 0.01")
        check_at_least(self, "num_local_steps", 1)
        for field in ("support_batch_size", "query_batch_size", "hessian_batch_size"):
            check_at_least(self, field, 1, MOST_BATCH_ROWS)
        if self.variant not in VARIANTS:
            raise errors.ConfigError(
                f"PerFedAvgConfig.variant is {self.variant!r}; known variants: "
                f"{', '.join(VARIANTS)}."
            )
        _check_rows(self)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a step's batches: D, D' and, unless `first_order`, D''."""
        sizes = (self.support_batch_size, self.query_batch_size)
        if self.variant == FIRST_ORDER:
            return sizes
        return (*sizes, self.hessian_batch_size)


@dataclasses.dataclass(frozen=True)
class FedAvgConfig:
    """One user's part of a round of FedAvg (McMahan et al., arXiv 1602.05629).

    Attributes:
      learning_rate: the step of each local SGD step.
      num_local_steps: tau, SGD steps a user takes per round.
      batch_size: rows of each step's batch.
    """

    learning_rate: float
    num_local_steps: int = 10
    batch_size: int = 20

    def __post_init__(self):
        _check_positive(self, "learning_rate", "for example 0.01")
        check_at_least(self, "num_local_steps", 1)
        check_at_least(self, "batch_size", 1, MOST_BATCH_ROWS)
        _check_rows(self)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a step's one batch."""
        return (self.batch_size,)


# What decides a user's part of a round.
LocalConfig = PerFedAvgConfig | FedAvgConfig


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
    """

    inner_learning_rate: float
    num_steps: int = 1
    batch_size: int | None = None
    num_rows: int | None = None

    def __post_init__(self):
        _check_positive(self, "inner_learning_rate", "for example 0.01")
        check_at_least(self, "num_steps", 0)
        for field, most in (("batch_size", MOST_BATCH_ROWS), ("num_rows", _MOST)):
            if getattr(self, field) is not None:
                check_at_least(self, field, 1, most)


def _check_positive(config, field: str, example: str) -> None:
    value = getattr(config, field)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise errors.ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be a finite "
            f"number above 0, {example}."
        )


def _check_rows(config: LocalConfig) -> None:
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
