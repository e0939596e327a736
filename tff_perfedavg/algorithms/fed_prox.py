"""FedProx (Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, MLSys 2020, arXiv 1812.06127).

FedAvg whose users are held near the server's model while they train (algorithm 2, its
inexact minimization by local steps):

    user i:  w <- w_k
             repeat tau times:
                 draw a batch D
                 w <- w - eta (g(w; D) + mu (w - w_k))
             send w back
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tff_perfedavg import optimization
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig, fed_avg
from tff_perfedavg.optimization.config import check_pull
from tff_perfedavg.settings import setting

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.gradients import Loss, Weights
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures


@dataclasses.dataclass(frozen=True)
class FedProxConfig(FedAvgConfig):
    """Hyper-parameters of FedProx's client update.

    Attributes:
      proximal_pull: mu; 0 is FedAvg.
    """

    proximal_pull: float = setting(0.1, "mu of FedProx, a user's pull to the server.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pull(self, "learning_rate", "proximal_pull")

    @property
    def label(self) -> str:
        return "FedProx + update"

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        return fed_prox(self.with_values(in_graph))


def fed_prox(config: FedProxConfig) -> LocalAlgorithm:
    """Returns FedProx, given `FedProxConfig`'s fields as numbers or as tensors."""
    local = optimization.Adaptation(config.learning_rate, pull=config.proximal_pull)

    def step(
        loss: Loss, state: Mapping[str, Weights], batches: Mapping[str, Batch]
    ) -> tuple[Mapping[str, Weights], Measures]:
        weights, start = state["weights"], state["start"]
        value, weights = local.step(loss, weights, batches["support"], start)
        measures = {"support_loss": value, "query_loss": value}
        return {"weights": weights, "start": start}, measures

    return dataclasses.replace(
        fed_avg(config),
        step=step,
        init=lambda sent: {"weights": list(sent), "start": list(sent)},
        update=lambda sent, end: optimization.subtract(sent, end["weights"]),
    )
