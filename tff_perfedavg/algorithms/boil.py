"""BOIL (Oh, Yoo, Kim, Yun, ICLR 2021, arXiv 2008.08882).

ANIL the other way round: users adapt the body b and leave the head h, so that what is
learned is a model whose representation changes for a user,

    F(b, h) = mean over users of f_i(b - a grad_b f_i(b, h), h).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tff_perfedavg.algorithms.anil import AnilConfig
from tff_perfedavg.optimization.moves import BODY


@dataclasses.dataclass(frozen=True)
class BoilConfig(AnilConfig):
    """Hyper-parameters of BOIL's client update."""

    NAME: ClassVar = "BOIL"
    MOVES: ClassVar = BODY
