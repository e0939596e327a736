"""ANIL (Raghu, Raghu, Bengio, Vinyals, ICLR 2020, arXiv 1909.09157).

Per-FedAvg whose users adapt the head alone, within training as behind it: w = (b, h),

    F(b, h) = mean over users of f_i(b, h - a grad_h f_i(b, h))

and the meta-gradient is by both. Everything else is `per_fed_avg`'s: the steps, the
ways to multiply the Hessian, here by vectors that are zero but in the head.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tff_perfedavg.algorithms import shared_settings
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.optimization.config import AdaptationConfig, check_at_least
from tff_perfedavg.optimization.moves import HEAD


@dataclasses.dataclass(frozen=True)
class AnilConfig(PerFedAvgConfig):
    """Hyper-parameters of ANIL's client update.

    Attributes:
      head_tensors: how many of the last weight tensors are the head.
    """

    METHODS: ClassVar = {}
    NAME: ClassVar = "ANIL"
    MOVES: ClassVar = HEAD

    head_tensors: int = shared_settings.head_tensors()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "head_tensors", 1)

    @property
    def adaptation(self) -> AdaptationConfig:
        return dataclasses.replace(
            super().adaptation, moves=self.MOVES, head_tensors=self.head_tensors
        )
