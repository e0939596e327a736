"""Per-FedAvg (Fallah, Mokhtari, Ozdaglar, NeurIPS 2020, arXiv 2002.07948).

Learns a model w that users with losses f_i adapt by one gradient step of their own:

    F(w) = mean over users of f_i(w - a grad f_i(w))
    grad F_i(w) = (I - a Hessian f_i(w)) grad f_i(w - a grad f_i(w))

Algorithm 1, each part estimated on a batch of its own (equations 7 and 8):

    server, round k:  w_{k+1} <- mean over the cohort of what its users send back
    user i:           w <- w_k
                      repeat tau times:
                          draw batches D, D', D''
                          w~ <- w - a g(w; D)
                          w  <- w - b (I - a H(w; D'')) g(w~; D')
                      send w back

The Hessian-vector product is differentiated (exact), left out (first-order) or taken
from the difference of two gradients (Hessian-free), section 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from tff_perfedavg import errors, optimization
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.optimization.config import (
    MOST_BATCH_ROWS,
    check_at_least,
    check_positive,
    check_rows,
)

if TYPE_CHECKING:
    from tff_perfedavg.algorithms.registry import LocalSettings
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.adaptation import Adaptation
    from tff_perfedavg.optimization.gradients import Loss, Scale, Weights
    from tff_perfedavg.optimization.hessian import HessianProduct
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures

EXACT, FIRST_ORDER, HESSIAN_FREE = "exact", "first_order", "hessian_free"
VARIANTS = (EXACT, FIRST_ORDER, HESSIAN_FREE)


@dataclasses.dataclass(frozen=True)
class PerFedAvgConfig(AlgorithmConfig):
    """One user's part of a round of Per-FedAvg.

    Attributes:
      inner_learning_rate: a (alpha in the paper), the step a user adapts with.
      outer_learning_rate: b (beta), the step along the meta-gradient.
      num_local_steps: tau, meta-gradient steps a user takes per round.
      support_batch_size, query_batch_size, hessian_batch_size: rows of D, D' and D''.
      variant: how the Hessian-vector product is formed, one of `VARIANTS`.
      hessian_free_delta, hessian_free_normalized: of `optimization.hessian_free`.
    """

    METHODS: ClassVar = {v: {"variant": v} for v in (FIRST_ORDER, HESSIAN_FREE, EXACT)}
    RATES: ClassVar = {r: r for r in ("inner_learning_rate", "outer_learning_rate")}

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
        for field in (*self.RATES, "hessian_free_delta"):
            check_positive(self, field, "for example 0.01")
        check_at_least(self, "num_local_steps", 1)
        for role in ("support", "query", "hessian"):
            check_at_least(self, f"{role}_batch_size", 1, MOST_BATCH_ROWS)
        errors.check_known("PerFedAvgConfig.variant", self.variant, VARIANTS)
        check_rows(self)

    @classmethod
    def of(cls, settings: LocalSettings) -> PerFedAvgConfig:
        s, rows = settings, settings.batch_size
        rates = s.inner_learning_rate, s.outer_learning_rate
        return cls(*rates, s.num_local_steps, rows, rows, rows, s.variant)

    @property
    def label(self) -> str:
        return "Per-FedAvg " + self.variant.replace("_", "-").replace("hess", "Hess")

    @property
    def product(self) -> HessianProduct:
        """The Hessian-vector product of the variant."""
        free = self.hessian_free_delta, self.hessian_free_normalized
        return {
            EXACT: optimization.exact(),
            FIRST_ORDER: optimization.first_order(),
            HESSIAN_FREE: optimization.hessian_free(*free),
        }[self.variant]

    @property
    def roles(self) -> Mapping[str, int]:
        roles = ("support", "query", *self.product.roles)
        return {role: getattr(self, f"{role}_batch_size") for role in roles}

    def build(self, **in_graph) -> LocalAlgorithm:
        return per_fed_avg(self.with_values(in_graph))


def per_fed_avg(config) -> LocalAlgorithm:
    """Returns Per-FedAvg, given `PerFedAvgConfig`'s fields as numbers or as tensors."""
    inner = optimization.Adaptation(config.inner_learning_rate)
    product, rate = config.product, config.outer_learning_rate

    def step(loss, weights, batches):
        gradient, measures = meta_gradient(loss, weights, batches, inner, product, rate)
        return optimization.subtract(weights, gradient), measures

    return optimization.LocalAlgorithm(
        name=config.label,
        roles=config.roles,
        num_steps=config.num_local_steps,
        measures=("support_loss", "query_loss"),
        step=step,
        adaptation=inner,
        report=optimization.with_adaptation_gain,
    )


def meta_gradient(
    loss: Loss,
    weights: Weights,
    batches: Mapping[str, Batch],
    inner: Adaptation,
    product: HessianProduct,
    scale: Scale = 1.0,
) -> tuple[Weights, Measures]:
    """Returns grad F(w) times `scale`, and the losses before and after the step."""
    support, query = batches["support"], batches["query"]
    # w~ = w - a g(w; D)
    support_loss, adapted = inner.step(loss, weights, support)
    # v = g(w~; D')
    query_loss, v = optimization.loss_and_gradient(loss, adapted, query, scale)
    # v - a H(w; D'') v
    gradient = product.correct(loss, weights, v, batches, inner.learning_rate, scale)
    return gradient, {"support_loss": support_loss, "query_loss": query_loss}
