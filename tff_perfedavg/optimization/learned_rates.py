"""Learned inner learning rates: factors of alpha that the server holds as logarithms.

A step's rate is alpha exp(rho), so that it is positive whatever is learned. rho begins
at 0 and stays within bounds. Graph code, but that its settings load no framework.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tff_perfedavg.lazy import tf

if TYPE_CHECKING:
    import numpy as np

    from tff_perfedavg.optimization.gradients import Weights

PER_TENSOR, PER_WEIGHT = "per_tensor", "per_weight"
GRAINS = (PER_TENSOR, PER_WEIGHT)


@dataclasses.dataclass(frozen=True)
class LearnedRates:
    """Log-parametrized learned rates, which the server holds behind the weights.

    Attributes:
      grain: `per_tensor`, one tensor `[tensors]` of all; or `per_weight`, tensors
        shaped like the weights.
      scale: the server holds rho times this. An update's norm, and noise that is
        added to it, then concern rho as much more, or less, than a weight.
      bound: a factor is from 1 / bound to bound.
    """

    grain: str = PER_TENSOR
    scale: float = 1.0
    bound: float = 100.0

    def initial(self, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the initial rates as held: zeros, the logarithms of factors of 1."""
        # Settings are there without NumPy.
        import numpy as np

        if self.grain == PER_TENSOR:
            return [np.zeros([len(weights)], np.result_type(*weights))]
        return [np.zeros_like(w) for w in weights]

    def split(self, parameters: Sequence) -> tuple[Sequence, Sequence]:
        """Splits the server's parameters into weights and rates as held."""
        count = 1 if self.grain == PER_TENSOR else len(parameters) // 2
        return parameters[:-count], parameters[-count:]

    def factors(self, held: Weights) -> list[tf.Tensor]:
        """Returns each weight tensor's factors of alpha, scalars or shaped like it."""
        return self.by_tensor(self.exponentials(self.bounded(held)))

    def bounded(self, held: Weights) -> list[tf.Tensor]:
        """Clips rates as held to the bounds: a server's noise knows of none."""
        limit = math.log(self.bound) * self.scale
        return [tf.clip_by_value(h, -limit, limit) for h in held]

    def exponentials(self, held: Weights) -> list[tf.Tensor]:
        """Returns the factors of alpha, exp(rho), as held, given rates in bounds."""
        if self.scale != 1:
            held = [h / self.scale for h in held]
        return [tf.exp(h) for h in held]

    def by_tensor(self, exponentials: Weights) -> list[tf.Tensor]:
        """Unstacks `exponentials` into each weight tensor's factors."""
        if self.grain == PER_TENSOR:
            return tf.unstack(exponentials[0])
        return list(exponentials)

    def stepped(
        self, held: Weights, exponentials: Weights, gradient: Weights, speed: float
    ) -> list[tf.Tensor]:
        """Returns rates as held after a gradient step on rho, clipped to the bounds.

        Args:
          held: within the bounds.
          exponentials: those of it.
          gradient: by the factors: of each weight tensor, scalars or shaped like it.
          speed: the step's learning rate.
        """
        if self.grain == PER_TENSOR:
            gradient = [tf.stack(gradient)]
        steps = [f * g for f, g in zip(exponentials, gradient, strict=True)]
        speed *= self.scale
        if speed != 1:
            steps = [speed * s for s in steps]
        return self.bounded([h - s for h, s in zip(held, steps, strict=True)])
