"""FedBABU (Oh, Kim, Yun, ICLR 2022, arXiv 2106.06042).

FedAvg of the body alone: the head stays as it was initialized, the same for all users,
and is learned by adapting only, with the body or without it.

    user i:  b <- b_k
             repeat tau times:
                 draw a batch D
                 b <- b - eta grad_b of the loss of (b, h_0) on D
             send b back
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tff_perfedavg import optimization
from tff_perfedavg.algorithms import shared_settings
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig, fed_avg
from tff_perfedavg.optimization.config import AdaptationConfig, check_at_least
from tff_perfedavg.optimization.moves import BODY, Moves

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.gradients import Loss, Weights
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures


@dataclasses.dataclass(frozen=True)
class FedBabuConfig(FedAvgConfig):
    """Hyper-parameters of FedBABU's client update.

    Attributes:
      head_tensors: how many of the last weight tensors are the head.
    """

    head_tensors: int = shared_settings.head_tensors()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "head_tensors", 1)

    @property
    def num_fixed(self) -> int:
        """How many of the last weight tensors training leaves as they are."""
        return self.head_tensors

    @property
    def adaptation(self) -> AdaptationConfig:
        head = self.head_tensors
        return dataclasses.replace(super().adaptation, head_tensors=head)

    @property
    def label(self) -> str:
        return "FedBABU"

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        return fed_babu(self.with_values(in_graph))


def fed_babu(config: FedBabuConfig) -> LocalAlgorithm:
    """Returns FedBABU, given `FedBabuConfig`'s fields as numbers or as tensors."""
    body = Moves.of(BODY, config.head_tensors)
    local = optimization.Adaptation(config.learning_rate, moves=body)

    def step(
        loss: Loss, weights: Weights, batches: Mapping[str, Batch]
    ) -> tuple[Weights, Measures]:
        value, weights = local.step(loss, weights, batches["support"])
        return weights, {"support_loss": value, "query_loss": value}

    return dataclasses.replace(
        fed_avg(config),
        step=step,
        num_fixed=config.head_tensors,
        update=lambda sent, end: optimization.subtract(
            body.chosen(sent), body.chosen(end)
        ),
    )
