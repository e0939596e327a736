"""Meta-SGD (Li, Zhou, Chen, Li, 2017, arXiv 1707.09835).

Federated, it is FedMeta (Chen, Luo, Dong, Li, He, 2018, arXiv 1802.07876): Per-FedAvg
that learns the rates of the user's steps, too, of every weight tensor or of every
weight. With factors phi = exp(rho) of the inner learning rate a,

    F(w, rho) = mean over users of f_i(w - a exp(rho) grad f_i(w))

    user i:  w, rho <- w_k, rho_k
             repeat tau times:
                 draw D, D', D''; w~ and v as in Per-FedAvg, its steps times exp(rho)
                 w   <- w - b v
                 rho <- rho + b (w - w~) v     (a tensor's common rate: summed)
             send w and rho back

Rates stay positive, and within a factor of a; see `optimization.learned_rates`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from tff_perfedavg import errors, optimization
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig, per_fed_avg
from tff_perfedavg.optimization.config import AdaptationConfig, check_positive
from tff_perfedavg.optimization.learned_rates import GRAINS, PER_TENSOR, LearnedRates
from tff_perfedavg.settings import setting

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.adaptation import Adaptation
    from tff_perfedavg.optimization.gradients import Loss, Weights
    from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm, Measures


@dataclasses.dataclass(frozen=True)
class MetaSgdConfig(PerFedAvgConfig):
    """Hyper-parameters of Meta-SGD's client update.

    Attributes:
      learned_rates: a rate of every tensor, or of every weight.
      rates_speed: the outer learning rate of rho over that of the weights.
      rates_scale: what users send for rho is this times rho: how much it counts in an
        update's norm and noise.
      rates_bound: rates stay from a / rates_bound to a rates_bound.
    """

    METHODS: ClassVar = {}
    NAME: ClassVar = "Meta-SGD"
    # Of the inner rate, a device has what the server sends.
    RATES: ClassVar = {"outer_learning_rate": "outer_learning_rate"}

    learned_rates: str = setting(PER_TENSOR, "What has a learned rate.", GRAINS)
    rates_speed: float = setting(
        1.0, "Outer learning rate of the rates' logarithms over outer_learning_rate."
    )
    rates_scale: float = setting(
        1.0, "What the rates' logarithms count for in clipping and in noise."
    )
    rates_bound: float = setting(
        100.0, "How many times inner_learning_rate a learned rate is at most."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "inner_learning_rate", "for example 0.01")
        for field in ("rates_speed", "rates_scale", "rates_bound"):
            check_positive(self, field, "for example 10")
        if self.rates_bound < 1:
            raise errors.ConfigError(
                f"MetaSgdConfig.rates_bound is {self.rates_bound}; it must be at least "
                "1, where rates stay at inner_learning_rate."
            )

    @property
    def learned(self) -> LearnedRates:
        """How the rates stand behind the weights."""
        return LearnedRates(self.learned_rates, self.rates_scale, self.rates_bound)

    @property
    def adaptation(self) -> AdaptationConfig:
        return dataclasses.replace(super().adaptation, learned=self.learned)

    def build(self, **in_graph: tf.Tensor) -> LocalAlgorithm:
        return meta_sgd(self.with_values(in_graph), self.inner(in_graph))


def meta_sgd(config: MetaSgdConfig, inner: Adaptation) -> LocalAlgorithm:
    """Returns Meta-SGD, given `MetaSgdConfig`'s fields as numbers or as tensors.

    Args:
      config: hyper-parameters; numbers, or scalar tensors where a device decides.
      inner: the user's inner steps, with the form of their learned rates.
    """
    product, rate, learned = config.product, config.outer_learning_rate, config.learned

    def init(parameters: Weights) -> list[tf.Tensor]:
        weights, held = learned.split(parameters)
        return [*weights, *learned.bounded(held)]

    def step(
        loss: Loss, parameters: Weights, batches: Mapping[str, Batch]
    ) -> tuple[Weights, Measures]:
        weights, held = learned.split(parameters)
        factors = learned.exponentials(held)
        of_user = dataclasses.replace(
            inner, learned=None, factors=learned.by_tensor(factors)
        )
        found = optimization.meta_gradient(
            loss, weights, batches, of_user, product, rate
        )
        assert found.of_factors is not None
        # Both gradients come times the outer learning rate.
        held = learned.stepped(held, factors, found.of_factors, config.rates_speed)
        moved = optimization.subtract(weights, found.of_weights)
        return [*moved, *held], found.losses

    return dataclasses.replace(
        per_fed_avg(config, inner),
        init=init,
        step=step,
        parameters=inner.parameters,
    )
