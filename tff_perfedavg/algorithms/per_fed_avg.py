"""Per-FedAvg (Fallah, Mokhtari, Ozdaglar, NeurIPS 2020, arXiv 2002.07948).

Learns a model w that users with losses f_i adapt by a gradient step of their own, or
by m of them (arXiv 2504.21327):

    F(w) = mean over users of f_i(w - a grad f_i(w))
    grad F_i(w) = (I - a Hessian f_i(w)) grad f_i(w - a grad f_i(w))

Algorithm 1, each part estimated on a batch of its own (equations 7 and 8):

    server, round k:  w_{k+1} <- mean over the cohort of what its users send back
    user i:           w <- w_k
                      repeat tau times:
                          draw batches D, D', D''
                          w~ <- w, then m times: w~ <- w~ - a g(w~; D)
                          v  <- g(w~; D'), then back along the m points:
                                v <- v - a H(point; D'') v
                          w  <- w - b v
                      send w back

The Hessian-vector product is differentiated (exact), left out (first-order) or taken
from the difference of two gradients (Hessian-free), section 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from tff_perfedavg import errors, optimization
from tff_perfedavg.algorithms import shared_settings
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.optimization import hessian
from tff_perfedavg.optimization.config import (
    MOST_BATCH_ROWS,
    AdaptationConfig,
    check_at_least,
    check_positive,
    check_pull,
    check_rows,
)
from tff_perfedavg.optimization.hessian import EXACT, VARIANTS
from tff_perfedavg.settings import check_choices, setting

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.algorithms.registry import LocalSettings
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.adaptation import Adaptation
    from tff_perfedavg.optimization.gradients import Loss, Weights
    from tff_perfedavg.optimization.hessian import HessianProduct
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures


@dataclasses.dataclass(frozen=True)
class PerFedAvgConfig(AlgorithmConfig):
    """Hyper-parameters of Per-FedAvg's client update.

    Attributes:
      inner_learning_rate: a (alpha in the paper), the step a user adapts with.
      outer_learning_rate: b (beta), the step along the meta-gradient.
      num_local_steps: tau, meta-gradient steps a user takes per round.
      support_batch_size, query_batch_size, hessian_batch_size: rows of D, D' and D''.
      variant: how the Hessian-vector product is formed, one of `VARIANTS`.
      hessian_free_delta, hessian_free_normalized: of `optimization.hessian_free`.
      inner_steps, inner_pull: the user's steps, as in `AdaptationConfig`.
      hessian_batch: D'' of its own, or D: see `optimization.hessian`.
      random_support: D has a random number of rows in every step.
    """

    METHODS: ClassVar = {v: {"variant": v} for v in (*VARIANTS[1:], EXACT)}
    RATES: ClassVar = {r: r for r in ("inner_learning_rate", "outer_learning_rate")}
    NAME: ClassVar = "Per-FedAvg"

    inner_learning_rate: float
    outer_learning_rate: float
    num_local_steps: int = 10
    support_batch_size: int = 20
    query_batch_size: int = 20
    hessian_batch_size: int = 20
    variant: str = EXACT
    hessian_free_delta: float = 1e-2
    hessian_free_normalized: bool = True
    inner_steps: int = shared_settings.inner_steps()
    inner_pull: float = setting(0.0, "Of adaptation within training, to its start.")
    hessian_batch: str = shared_settings.hessian_batch()
    random_support: bool = shared_settings.random_support()

    def __post_init__(self) -> None:
        for field in (*self.RATES, "hessian_free_delta"):
            check_positive(self, field, "for example 0.01")
        for field in ("num_local_steps", "inner_steps"):
            check_at_least(self, field, 1)
        check_pull(self, "inner_learning_rate", "inner_pull")
        for role in ("support", "query", "hessian"):
            check_at_least(self, f"{role}_batch_size", 1, MOST_BATCH_ROWS)
        errors.check_known("PerFedAvgConfig.variant", self.variant, VARIANTS)
        check_choices(self)
        check_rows(self)

    @classmethod
    def of(cls, settings: LocalSettings) -> PerFedAvgConfig:
        s, rows = settings, settings.batch_size
        rates = s.inner_learning_rate, s.outer_learning_rate
        own = s.options_of(cls)
        return cls(*rates, s.num_local_steps, rows, rows, rows, s.variant, **own)

    @property
    def label(self) -> str:
        variant = self.variant.replace("_", "-").replace("hess", "Hess")
        steps = f", {self.inner_steps} steps" if self.inner_steps > 1 else ""
        return f"{self.NAME} {variant}{steps}"

    @property
    def adaptation(self) -> AdaptationConfig:
        rate, steps = self.inner_learning_rate, self.inner_steps
        return AdaptationConfig(rate, steps, pull=self.inner_pull)

    @property
    def product(self) -> HessianProduct:
        """The Hessian-vector product of the variant."""
        free = self.hessian_free_delta, self.hessian_free_normalized
        return hessian.hessian_product(self.variant, self.hessian_batch, *free)

    @property
    def roles(self) -> Mapping[str, int]:
        roles = (hessian.SUPPORT, "query", *self.product.roles)
        return {role: getattr(self, f"{role}_batch_size") for role in roles}

    @property
    def idle(self) -> Mapping[str, str]:
        if self.product.role is not None:
            return {}
        others = [v for v in VARIANTS if v != self.variant]
        return {
            "hessian_batch": f"variant {self.variant} takes no Hessian-vector product; "
            f"leave it out, or choose variant {' or '.join(others)}"
        }

    @property
    def remarks(self) -> Sequence[str]:
        if not self.inner_pull or self.inner_steps > 1:
            return ()
        return (
            f"inner_pull is {self.inner_pull}, but inner_steps is 1: the only step of "
            "training starts where it is pulled to, so that the pull changes nothing "
            "before users adapt by more steps; take more inner_steps to train with it.",
        )

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        return per_fed_avg(self.with_values(in_graph), self.inner(in_graph))


def per_fed_avg(config: PerFedAvgConfig, inner: Adaptation) -> LocalAlgorithm:
    """Returns Per-FedAvg, given `PerFedAvgConfig`'s fields as numbers or as tensors.

    Args:
      config: hyper-parameters; numbers, or scalar tensors where a device decides.
      inner: the user's inner steps.
    """
    product, rate = config.product, config.outer_learning_rate

    def step(
        loss: Loss, weights: Weights, batches: Mapping[str, Batch]
    ) -> tuple[Weights, Measures]:
        found = optimization.meta_gradient(loss, weights, batches, inner, product, rate)
        return optimization.subtract(weights, found.of_weights), found.losses

    return optimization.LocalAlgorithm(
        name=config.label,
        roles=config.roles,
        num_steps=config.num_local_steps,
        measures=("support_loss", "query_loss"),
        step=step,
        adaptation=inner,
        random_sizes=(hessian.SUPPORT,) if config.random_support else (),
        report=optimization.with_adaptation_gain,
    )
