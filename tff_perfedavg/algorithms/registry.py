"""The algorithms there are, by name: one line each. Loads no framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.algorithms.per_fed_avg import EXACT, PerFedAvgConfig

ALGORITHMS: dict[str, type[AlgorithmConfig]] = {
    "fed_avg": FedAvgConfig,
    "per_fed_avg": PerFedAvgConfig,
}
# What the others are compared with.
BASELINE = "fed_avg"


def methods() -> dict[str, dict[str, Any]]:
    """Returns the settings of every method, an algorithm with its variant, by name."""
    return {
        method: {"algorithm": name, **settings}
        for name, config in ALGORITHMS.items()
        for method, settings in (config.METHODS or {name: {}}).items()
    }


def options() -> dict[str, dataclasses.Field]:
    """Returns the fields that an algorithm alone has settings for, by name.

    They are those of its configuration whose metadata has a `help`.
    """
    return {
        field.name: field
        for config in ALGORITHMS.values()
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if "help" in field.metadata
    }


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """What a user does in a round, said in the same words for every algorithm.

    Attributes:
      algorithm: of `ALGORITHMS`.
      variant: the meta-gradient of Per-FedAvg; others ignore it.
      inner_learning_rate: alpha; FedAvg uses it at adaptation only.
      outer_learning_rate: beta, the rate of every local step, FedAvg's too.
      num_local_steps: tau.
      batch_size: rows of every batch (support, query and Hessian alike).
      options: values of `options()` that are not their defaults.
    """

    algorithm: str = "per_fed_avg"
    variant: str = EXACT
    inner_learning_rate: float = 0.01
    outer_learning_rate: float = 0.01
    num_local_steps: int = 10
    batch_size: int = 10
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        errors.check_known("algorithm", self.algorithm, tuple(ALGORITHMS))
        # Settings that the algorithm ignores are checked nevertheless.
        PerFedAvgConfig.of(self)
        self.config()

    def config(self) -> AlgorithmConfig:
        """Returns the configuration of the algorithm."""
        return ALGORITHMS[self.algorithm].of(self)

    @property
    def method(self) -> str:
        """The name of `methods()` that the algorithm with its variant has."""
        return next(
            name
            for name, settings in methods().items()
            if all(getattr(self, key) == value for key, value in settings.items())
        )

    @property
    def label(self) -> str:
        """The method's name in tables and figures."""
        return self.config().label
