"""Registry of the algorithms by name: one line each.

Loads no framework.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.algorithms.anil import AnilConfig
from tff_perfedavg.algorithms.boil import BoilConfig
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.algorithms.fed_babu import FedBabuConfig
from tff_perfedavg.algorithms.fed_prox import FedProxConfig
from tff_perfedavg.algorithms.fed_recon import FedReconConfig
from tff_perfedavg.algorithms.fed_reptile import FedReptileConfig
from tff_perfedavg.algorithms.meta_sgd import MetaSgdConfig
from tff_perfedavg.algorithms.p_fed_me import PFedMeConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.optimization.config import (
    MOST_BATCH_ROWS,
    AdaptationConfig,
    check_at_least,
    check_positive,
)
from tff_perfedavg.optimization.hessian import EXACT, VARIANTS
from tff_perfedavg.settings import check_choices, setting, settings_of

ALGORITHMS: dict[str, type[AlgorithmConfig]] = {
    "fed_avg": FedAvgConfig,
    "per_fed_avg": PerFedAvgConfig,
    "meta_sgd": MetaSgdConfig,
    "anil": AnilConfig,
    "boil": BoilConfig,
    "fed_reptile": FedReptileConfig,
    "fed_prox": FedProxConfig,
    "p_fed_me": PFedMeConfig,
    "fed_babu": FedBabuConfig,
    "fed_recon": FedReconConfig,
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


def paper_methods() -> dict[str, dict[str, Any]]:
    """Returns those of `methods()` that the Per-FedAvg paper compares."""
    compared = (BASELINE, "per_fed_avg")
    return {m: s for m, s in methods().items() if s["algorithm"] in compared}


def options() -> dict[str, tuple[type[AlgorithmConfig], dataclasses.Field]]:
    """Returns the algorithm-specific settings, each with a configuration that has it.

    They are the fields of configurations that `setting` made.
    """
    return {
        name: (config, field)
        for config in ALGORITHMS.values()
        for name, field in settings_of(config).items()
    }


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """Settings of the client update, by names common to all algorithms.

    Attributes:
      options: values of `options()` that are not their defaults.
      config: the configuration of the algorithm, made of the settings.
    """

    algorithm: str = setting("per_fed_avg", "Algorithm.", lambda: tuple(ALGORITHMS))
    variant: str = setting(
        EXACT,
        "Form of the meta-gradient (per_fed_avg, meta_sgd, anil, boil).",
        VARIANTS,
    )
    inner_learning_rate: float = setting(
        0.01, "Inner learning rate alpha, of the adaptation."
    )
    outer_learning_rate: float = setting(
        0.01, "Outer learning rate beta, of each local step (of FedAvg, too)."
    )
    num_local_steps: int = setting(10, "Local steps per round, tau.")
    batch_size: int = setting(10, "Rows of every batch.")
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    config: AlgorithmConfig = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self):
        check_choices(self)
        # Those that the algorithm ignores, too.
        for rate in ("inner_learning_rate", "outer_learning_rate"):
            check_positive(self, rate, "for example 0.01")
        check_at_least(self, "num_local_steps", 1)
        check_at_least(self, "batch_size", 1, MOST_BATCH_ROWS)
        known = options()
        for name in self.options:
            errors.check_known("option", name, tuple(known))
        given = {n: v for n, v in self.options.items() if v != known[n][1].default}
        object.__setattr__(self, "options", given)
        # Built once, which checks what it alone knows.
        object.__setattr__(self, "config", ALGORITHMS[self.algorithm].of(self))

    def options_of(self, config: type[AlgorithmConfig]) -> dict[str, Any]:
        """Returns the options that a configuration has."""
        own = settings_of(config)
        return {name: value for name, value in self.options.items() if name in own}

    def uses(self, name: str) -> bool:
        """Whether an algorithm-specific setting has an effect on this algorithm."""
        return name in settings_of(type(self.config)) and name not in self.config.idle

    @property
    def recorded(self) -> dict[str, Any]:
        """Options to record: those used whose value a record does not imply."""
        return {
            name: getattr(self.config, name)
            for name, field in settings_of(type(self.config)).items()
            if self.uses(name)
            and (name in self.options or field.metadata["unrecorded"] is not None)
        }

    @property
    def ignored(self) -> dict[str, str]:
        """Algorithm-specific settings without effect here, by name, with the reason.

        Whatever their value: where the default does nothing, it does not, either.
        """
        found = {}
        for name in ("variant", *options()):
            having = [a for a, config in ALGORITHMS.items() if _has(config, name)]
            if self.algorithm not in having:
                found[name] = (
                    f"{self.algorithm} has no such setting; leave it out, or choose "
                    f"algorithm {' or '.join(having)}"
                )
        return found | dict(self.config.idle)

    @property
    def method(self) -> str:
        """The method's name, a key of `methods()`."""
        return next(
            name
            for name, settings in methods().items()
            if all(getattr(self, key) == value for key, value in settings.items())
        )

    @property
    def adaptation(self) -> AdaptationConfig:
        """The default adaptation of what is trained."""
        rate = self.inner_learning_rate
        return dataclasses.replace(self.config.adaptation, inner_learning_rate=rate)

    @property
    def label(self) -> str:
        """The method's name in tables and figures."""
        return self.config.label


def _has(config: Any, name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(config)}
