"""FedReptile (Jiang, Konecny, Rush, Kannan, 2019, arXiv 1909.12488).

Reptile (Nichol, Achiam, Schulman, 2018, arXiv 1803.02999) over users: FedAvg whose
server takes a part of the way towards the mean of what users send back,

    server, round k:  w_{k+1} <- w_k + e (mean over the cohort - w_k),

by another optimizer if one is chosen. Users' part is FedAvg's: the expected update of
two and more local steps has the gradients' inner products in it that first-order
meta-learning follows, which a smaller e averages over more cohorts.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tff_perfedavg.algorithms.fed_avg import FedAvgConfig


@dataclasses.dataclass(frozen=True)
class FedReptileConfig(FedAvgConfig):
    """Hyper-parameters of FedReptile's client update."""

    # e, where the server's settings do not say another.
    server_learning_rate: ClassVar[float] = 0.5

    @property
    def label(self) -> str:
        return "FedReptile"
