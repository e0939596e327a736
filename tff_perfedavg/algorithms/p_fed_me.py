"""pFedMe (Dinh, Tran, Nguyen, NeurIPS 2020, 2006.08848), from the server's weights.

Learns a model w near which users have models of their own, by the Moreau envelopes of
their losses:

    F(w) = mean over users of min over t of f_i(t) + lambda / 2 ||t - w||^2
    grad F_i(w) = lambda (w - t*)

Algorithm 1, with the inner minimum found by K gradient steps:

    user i:  w <- w_k
             repeat tau times:
                 draw a batch D
                 t <- w, then K times: t <- t - a (g(t; D) + lambda (t - w))
                 w <- w - b lambda (w - t)
             send w back

t starts from w in every local step: a user keeps nothing between rounds. The server's
mixing with its last model, beta in the paper, is its learning rate.
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
    check_pull,
    check_rows,
)
from tff_perfedavg.settings import setting

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.algorithms.registry import LocalSettings
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.adaptation import Adaptation
    from tff_perfedavg.optimization.gradients import Loss, Weights
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures


@dataclasses.dataclass(frozen=True)
class PFedMeConfig(AlgorithmConfig):
    """Hyper-parameters of pFedMe's client update.

    Attributes:
      inner_learning_rate: a, of the steps to the user's own model.
      outer_learning_rate: b (eta in the paper), of the local steps.
      num_local_steps: tau, local steps a round.
      batch_size: rows of each.
      moreau_steps: K.
      moreau_pull: lambda.
    """

    RATES: ClassVar = {r: r for r in ("inner_learning_rate", "outer_learning_rate")}

    inner_learning_rate: float
    outer_learning_rate: float
    num_local_steps: int = 10
    batch_size: int = 20
    moreau_steps: int = setting(5, "K of pFedMe, steps to a user's own model.")
    moreau_pull: float = setting(15.0, "lambda of pFedMe, that model's pull.")

    def __post_init__(self) -> None:
        for field in (*self.RATES, "moreau_pull"):
            check_positive(self, field, "for example 0.01")
        for field in ("num_local_steps", "moreau_steps"):
            check_at_least(self, field, 1)
        check_at_least(self, "batch_size", 1, MOST_BATCH_ROWS)
        check_rows(self)
        check_pull(self, "inner_learning_rate", "moreau_pull")

    @classmethod
    def of(cls, settings: LocalSettings) -> PFedMeConfig:
        s = settings
        rates = s.inner_learning_rate, s.outer_learning_rate
        return cls(*rates, s.num_local_steps, s.batch_size, **s.options_of(cls))

    @property
    def label(self) -> str:
        return "pFedMe"

    @property
    def adaptation(self) -> AdaptationConfig:
        rate, steps = self.inner_learning_rate, self.moreau_steps
        return AdaptationConfig(rate, steps, pull=self.moreau_pull)

    @property
    def roles(self) -> Mapping[str, int]:
        return {"support": self.batch_size}

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        return p_fed_me(self.with_values(in_graph), self.inner(in_graph))


def p_fed_me(config: PFedMeConfig, inner: Adaptation) -> LocalAlgorithm:
    """Returns pFedMe, given `PFedMeConfig`'s fields as numbers or as tensors.

    Args:
      config: hyper-parameters; numbers, or scalar tensors where a device decides.
      inner: the user's K steps to its own model, with the pull lambda.
    """
    rate = config.outer_learning_rate * inner.pull

    def step(
        loss: Loss, weights: Weights, batches: Mapping[str, Batch]
    ) -> tuple[Weights, Measures]:
        own, losses = weights, []
        for _ in range(inner.num_steps):
            value, own = inner.step(loss, own, batches["support"], weights)
            losses.append(value)
        away = [rate * d for d in optimization.subtract(weights, own)]
        # The last loss that a step's gradient comes with; the one behind it is not
        # evaluated.
        measures = {"support_loss": losses[0], "query_loss": losses[-1]}
        return optimization.subtract(weights, away), measures

    return optimization.LocalAlgorithm(
        name=config.label,
        roles=config.roles,
        num_steps=config.num_local_steps,
        measures=("support_loss", "query_loss"),
        step=step,
        adaptation=inner,
        report=optimization.with_adaptation_gain,
    )
