"""FedAvg (McMahan, Moore, Ramage, Hampson, Aguera y Arcas, AISTATS 2017, 1602.05629).

Learns one model for all users, by the mean of their losses f_i. Algorithm 1, with a
fixed number of local steps in the place of epochs:

    server, round k:  w_{k+1} <- mean over the cohort of what its users send back
    user i:           w <- w_k
                      repeat tau times:
                          draw a batch D
                          w <- w - eta g(w; D)
                      send w back

Adapted at test time like Per-FedAvg, it is the "FedAvg + update" of arXiv 2002.07948,
section 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from tff_perfedavg import optimization
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.optimization.config import (
    MOST_BATCH_ROWS,
    AdaptationConfig,
    check_at_least,
    check_positive,
    check_rows,
)

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.algorithms.registry import LocalSettings
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.gradients import Loss, Weights
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures


@dataclasses.dataclass(frozen=True)
class FedAvgConfig(AlgorithmConfig):
    """Hyper-parameters of FedAvg's client update.

    Attributes:
      learning_rate: eta, the step of each local SGD step.
      num_local_steps: tau, SGD steps a user takes per round.
      batch_size: rows of each step's batch.
    """

    RATES: ClassVar = {"outer_learning_rate": "learning_rate"}

    learning_rate: float
    num_local_steps: int = 10
    batch_size: int = 20

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate", "for example 0.01")
        check_at_least(self, "num_local_steps", 1)
        check_at_least(self, "batch_size", 1, MOST_BATCH_ROWS)
        check_rows(self)

    @classmethod
    def of(cls, settings: LocalSettings) -> FedAvgConfig:
        s = settings
        common = s.outer_learning_rate, s.num_local_steps, s.batch_size
        return cls(*common, **s.options_of(cls))

    @property
    def label(self) -> str:
        return "FedAvg + update"

    @property
    def adaptation(self) -> AdaptationConfig:
        return AdaptationConfig(self.learning_rate)

    @property
    def roles(self) -> Mapping[str, int]:
        return {"support": self.batch_size}

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        return fed_avg(self.with_values(in_graph))


def fed_avg(config: FedAvgConfig) -> LocalAlgorithm:
    """Returns FedAvg, given `FedAvgConfig`'s fields as numbers or as tensors."""

    def step(
        loss: Loss, weights: Weights, batches: Mapping[str, Batch]
    ) -> tuple[Weights, Measures]:
        value, change = optimization.loss_and_gradient(
            loss, weights, batches["support"], config.learning_rate
        )
        # There is no inner step between a first loss and a second.
        measures = {"support_loss": value, "query_loss": value}
        return optimization.subtract(weights, change), measures

    return optimization.LocalAlgorithm(
        name=config.label,
        roles=config.roles,
        num_steps=config.num_local_steps,
        measures=("support_loss", "query_loss"),
        step=step,
        adaptation=optimization.Adaptation(config.learning_rate),
        server_learning_rate=config.server_learning_rate,
        report=optimization.with_adaptation_gain,
    )
