"""FedRecon (Singhal, Sidahmed, Garrett, Wu, Rush, Prakash, NeurIPS 2021, 2102.03448).

Learns a body b for which users find heads of their own, from a start that never
changes (algorithm 1 with gradient steps as R and U):

    user i:  draw a batch D and, for every local step, D' (of the first, apart from D)
             h <- h_0, then m times: h <- h - a grad_h of the loss of (b_k, h) on D
             b <- b_k, then tau times: b <- b - eta grad_b of the loss of (b, h) on D'
             send b back; h is forgotten

`tff.learning.algorithms.build_fed_recon` does the same with a model of local and
global variables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from tff_perfedavg import optimization
from tff_perfedavg.algorithms import shared_settings
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.optimization.config import (
    MOST_BATCH_ROWS,
    AdaptationConfig,
    check_at_least,
    check_positive,
    check_rows,
)
from tff_perfedavg.optimization.moves import BODY, HEAD, Moves

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.algorithms.registry import LocalSettings
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.adaptation import Adaptation
    from tff_perfedavg.optimization.gradients import Loss, Weights
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures


@dataclasses.dataclass(frozen=True)
class FedReconConfig(AlgorithmConfig):
    """Hyper-parameters of FedRecon's client update.

    Attributes:
      inner_learning_rate: a, of the head's steps.
      outer_learning_rate: eta, of the body's.
      num_local_steps: tau, of the body.
      batch_size: rows of D and of each D'.
      inner_steps: m, of the head.
      head_tensors: how many of the last weight tensors are the head.
    """

    RATES: ClassVar = {r: r for r in ("inner_learning_rate", "outer_learning_rate")}

    inner_learning_rate: float
    outer_learning_rate: float
    num_local_steps: int = 10
    batch_size: int = 20
    inner_steps: int = shared_settings.inner_steps()
    head_tensors: int = shared_settings.head_tensors()

    def __post_init__(self) -> None:
        for field in self.RATES:
            check_positive(self, field, "for example 0.01")
        for field in ("num_local_steps", "inner_steps", "head_tensors"):
            check_at_least(self, field, 1)
        check_at_least(self, "batch_size", 1, MOST_BATCH_ROWS)
        check_rows(self)

    @classmethod
    def of(cls, settings: LocalSettings) -> FedReconConfig:
        s = settings
        rates = s.inner_learning_rate, s.outer_learning_rate
        return cls(*rates, s.num_local_steps, s.batch_size, **s.options_of(cls))

    @property
    def label(self) -> str:
        return "FedRecon"

    @property
    def adaptation(self) -> AdaptationConfig:
        rate, steps = self.inner_learning_rate, self.inner_steps
        head = self.head_tensors
        return AdaptationConfig(rate, steps, moves=HEAD, head_tensors=head)

    @property
    def roles(self) -> Mapping[str, int]:
        return {"support": self.batch_size, "query": self.batch_size}

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        return fed_recon(self.with_values(in_graph), self.inner(in_graph))


def fed_recon(config: FedReconConfig, inner: Adaptation) -> LocalAlgorithm:
    """Returns FedRecon, given `FedReconConfig`'s fields as numbers or as tensors.

    Args:
      config: hyper-parameters; numbers, or scalar tensors where a device decides.
      inner: the user's steps of the head.
    """
    body = Moves.of(BODY, config.head_tensors)
    local = optimization.Adaptation(config.outer_learning_rate, moves=body)

    def reconstruct(
        loss: Loss, weights: Weights, batches: Mapping[str, Batch]
    ) -> Weights:
        for _ in range(inner.num_steps):
            _, weights = inner.step(loss, weights, batches["support"])
        return weights

    def step(
        loss: Loss, weights: Weights, batches: Mapping[str, Batch]
    ) -> tuple[Weights, Measures]:
        value, weights = local.step(loss, weights, batches["query"])
        return weights, {"query_loss": value}

    return optimization.LocalAlgorithm(
        name=config.label,
        roles=config.roles,
        num_steps=config.num_local_steps,
        measures=("query_loss",),
        step=step,
        adaptation=inner,
        num_fixed=config.head_tensors,
        begin=reconstruct,
        update=lambda sent, end: optimization.subtract(
            body.chosen(sent), body.chosen(end)
        ),
    )
