"""Settings by part: data, cohorts, aggregation, server, form of client data.

Each part is what one callee needs. Plain Python, so that a command checks its
flags before TensorFlow is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.data.config import DATASETS, PARTITIONS, DataConfig
from tff_perfedavg.federated.client_forms import AUTO, CLIENT_FORMS
from tff_perfedavg.settings import check_choices, setting, settings_of, values_of

CLIENT_WEIGHTINGS = ("uniform", "num_examples")
MEAN, CLIP, ROBUST, COMPRESSION, DP_FIXED, DP_ADAPTIVE, SECURE = (
    "mean",
    "clip",
    "robust",
    "compression",
    "dp_fixed",
    "dp_adaptive",
    "secure",
)
AGGREGATORS = (MEAN, CLIP, ROBUST, COMPRESSION, DP_FIXED, DP_ADAPTIVE, SECURE)
# With differential privacy.
PRIVATE = (DP_FIXED, DP_ADAPTIVE)
# How cohorts are drawn.
FIXED, POISSON = "fixed", "poisson"
COHORT_SAMPLINGS = (AUTO, FIXED, POISSON)
SGDM, ADAM, YOGI, ADAGRAD = "sgdm", "adam", "yogi", "adagrad"
SERVER_OPTIMIZERS = (SGDM, ADAM, YOGI, ADAGRAD)
# Rates where none is given; plain SGD's is the algorithm's own.
ADAPTIVE_RATES = {ADAM: 0.01, YOGI: 0.01, ADAGRAD: 0.1}
# Nearer to 1, float32's rounding makes it 1.
_MOST_DECAY = 0.999999
# The largest float32 is 3.4e38, and a draw of noise may be some standard deviations.
_LEAST, _MOST = 1e-30, 1e37
_DIVISION_HELP = "As in prepare_data.py."


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Data settings: a data set, partitioned with the run's seed, or a user store.

    What divides it is as in `DataConfig`; None takes what suits the data set.
    """

    dataset: str = setting("digits", "Data set.", DATASETS)
    partition: str | None = setting(
        None,
        "Partition among users, by default the data set's own; the next flags are its "
        "parameters.",
        PARTITIONS,
    )
    num_users: int | None = setting(None, _DIVISION_HELP)
    num_new_users: int | None = setting(None, _DIVISION_HELP)
    fold: str | None = setting(None, _DIVISION_HELP)
    a: int | None = setting(None, _DIVISION_HELP)
    evaluation_a: int | None = setting(None, _DIVISION_HELP)
    concentration: float | None = setting(None, _DIVISION_HELP)
    rows_per_user: int | None = setting(None, _DIVISION_HELP)
    classes_per_user: int | None = setting(None, _DIVISION_HELP)
    min_rows: int | None = setting(None, _DIVISION_HELP)
    own_labels: int | None = setting(None, _DIVISION_HELP)
    fresh_labels: bool | None = setting(None, _DIVISION_HELP)
    turned_classes: bool | None = setting(None, _DIVISION_HELP)
    features: str | None = setting(None, _DIVISION_HELP)
    image_size: int | None = setting(None, _DIVISION_HELP)
    store: str = setting("", "A store of scripts/prepare_data.py, instead.")

    def __post_init__(self):
        if self.store and self.division:
            raise errors.ConfigError(
                f"{', '.join(self.division)} given with a store, which is divided "
                "already; leave out one of the two."
            )

    @property
    def division(self) -> dict[str, Any]:
        """The settings of the partition that were given, by name."""
        values = dict(values_of(self))
        del values["dataset"], values["store"]
        return {name: value for name, value in values.items() if value is not None}

    def config(self, seed: int) -> DataConfig:
        """Returns the configuration of the data set and its partition."""
        return DataConfig.of(self.dataset, seed=seed, **self.division)

    def store_name(self, seed: int) -> str:
        """Returns the directory name of the prepared data set's store."""
        given = [
            value if name == "partition" else f"{name}{value}"
            for name, value in self.division.items()
        ]
        name = "-".join([self.dataset, *given, f"seed{seed}"])
        return name.replace("/", "_of_")


@dataclasses.dataclass(frozen=True)
class CohortSettings:
    """Cohort settings: size and sampling."""

    clients_per_round: int = setting(
        5, "Users per round; their mean number, where cohorts are Poisson samples."
    )
    cohort_sampling: str = setting(
        AUTO,
        "fixed: cohorts of one size, by the seed; poisson: by a secret of the run, as "
        "differential privacy wants it; auto: poisson with privacy, fixed without.",
        COHORT_SAMPLINGS,
    )

    def __post_init__(self):
        check_choices(self)
        if self.clients_per_round < 1:
            raise errors.ConfigError(
                f"clients_per_round is {self.clients_per_round}; it must be at least 1."
            )


@dataclasses.dataclass(frozen=True)
class AggregationSettings:
    """Aggregation settings: weighting, aggregator, clipping norm and noise.

    Aggregators are the `mean`; `clip`, each clipped to a norm before; `robust`, each
    clipped and large ones zeroed, by norms that adapt; `compression`; `dp_fixed` and
    `dp_adaptive`, central differential privacy with a fixed and an adaptive clipping
    norm; `secure`, by secure sums (in a simulation, without their security).
    """

    client_weighting: str = setting(
        "uniform", "Weight of a user in the mean.", CLIENT_WEIGHTINGS
    )
    aggregator: str = setting(MEAN, "How users' updates are aggregated.", AGGREGATORS)
    clipping_norm: float | None = setting(None, "Of clip and dp_fixed.")
    noise_multiplier: float = setting(
        0.0,
        "Of dp_fixed and dp_adaptive: the noise's standard deviation over the norm.",
    )

    def __post_init__(self):
        check_choices(self)
        self._check_norm()
        self._check_noise()

    @property
    def is_private(self) -> bool:
        """Whether it gives differential privacy."""
        return self.aggregator in PRIVATE

    @property
    def sees_users(self) -> bool:
        """Whether it must see each user's update by itself, not blocks of users."""
        return self.aggregator in (ROBUST, COMPRESSION, DP_ADAPTIVE, SECURE)

    def _check_norm(self) -> None:
        clips, norm = self.aggregator in (CLIP, DP_FIXED), self.clipping_norm
        # Smaller or larger ones are 0 or infinite in float32.
        if clips and not (norm is not None and _LEAST <= norm <= _MOST):
            raise errors.ConfigError(
                f"clipping_norm is {norm}; {self.aggregator} needs a number above 0, "
                f"from {_LEAST:g} to {_MOST:g}."
            )
        if not clips and norm is not None:
            raise errors.ConfigError(
                f"clipping_norm is {norm}, but aggregator {self.aggregator} has none."
            )

    def _check_noise(self) -> None:
        norm, noise = self.clipping_norm, self.noise_multiplier
        if self.is_private and not (math.isfinite(noise) and noise > 0):
            raise errors.ConfigError(
                f"noise_multiplier is {noise}; {self.aggregator} needs a number above "
                "0, for example 0.5."
            )
        # In float32 the noise would be infinite, and every round's update dropped.
        if self.is_private and norm is not None and norm * noise > _MOST:
            raise errors.ConfigError(
                f"clipping_norm {norm:g} times noise_multiplier {noise:g} is "
                f"{norm * noise:g}, noise that no float32 holds; take a norm near "
                "those of users' updates (update_norm in the metrics)."
            )
        if not self.is_private and noise:
            raise errors.ConfigError(
                f"noise_multiplier is {noise}, but aggregator {self.aggregator} adds "
                f"no noise; choose one of {', '.join(PRIVATE)}."
            )
        if self.is_private and self.client_weighting != "uniform":
            raise errors.ConfigError(
                f"client_weighting is {self.client_weighting}, but {self.aggregator} "
                "must count every user alike: its noise hides one user of weight 1."
            )


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Server settings: the TFF optimizer that applies the aggregated update.

    The update stands for a gradient (Reddi et al., "Adaptive federated optimization",
    2020, arXiv 2003.00295). Plain SGD with a rate of 1 makes the mean of the users'
    weights the server's.
    """

    server_optimizer: str = setting(
        SGDM, "TFF's, for the aggregated update.", SERVER_OPTIMIZERS
    )
    server_learning_rate: float | None = setting(
        None,
        f"Of the server's optimizer. By default that of the algorithm with {SGDM} (1: "
        "the mean of the users' weights); "
        f"{', '.join(f'{name} {rate:g}' for name, rate in ADAPTIVE_RATES.items())}, to "
        "be tuned.",
    )
    server_decay_rounds: int | None = setting(
        None,
        "Rounds over which the server's learning rate falls to 0, along half a cosine "
        "(Loshchilov and Hutter, 2017); by default it stays what it is.",
    )
    server_momentum: float = setting(0.0, f"Of {SGDM}.")
    server_beta_1: float | None = setting(
        None, f"Of {ADAM} and {YOGI}: decay of the mean update; by default 0.9."
    )
    server_beta_2: float | None = setting(
        None, f"Of {ADAM} and {YOGI}: decay of its square; by default 0.999."
    )
    server_epsilon: float | None = setting(
        None,
        f"Of {ADAM}, {YOGI} and {ADAGRAD}: beside the root of the squares; by default "
        "TFF's, 1e-7, of yogi 1e-3.",
    )

    def __post_init__(self):
        check_choices(self)
        self._check_has("server_momentum", (SGDM,))
        self._check_has("server_beta_1", (ADAM, YOGI))
        self._check_has("server_beta_2", (ADAM, YOGI))
        self._check_has("server_epsilon", (ADAM, YOGI, ADAGRAD))
        self._check_above_0("server_learning_rate", "for example 0.1")
        self._check_above_0("server_epsilon", "for example 0.001")
        if self.server_decay_rounds is not None and self.server_decay_rounds < 1:
            raise errors.ConfigError(
                f"server_decay_rounds is {self.server_decay_rounds}; it must be a "
                "number of rounds from 1, for example as many as total_rounds, or left "
                "out for a constant rate."
            )
        for name in ("server_momentum", "server_beta_1", "server_beta_2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= _MOST_DECAY:
                raise errors.ConfigError(
                    f"{name} is {value}; it must be from 0 to {_MOST_DECAY:g}, for "
                    "example 0.9."
                )

    def _check_has(self, name: str, optimizers: Sequence[str]) -> None:
        """Raises `ConfigError` if a setting is given that the optimizer has not."""
        value, default = getattr(self, name), settings_of(type(self))[name].default
        if value != default and self.server_optimizer not in optimizers:
            raise errors.ConfigError(
                f"{name} is {value}, but server_optimizer {self.server_optimizer} has "
                f"none; leave it out, or choose {' or '.join(optimizers)}."
            )

    def _check_above_0(self, name: str, example: str) -> None:
        value = getattr(self, name)
        # Smaller or larger ones are 0 or infinite in float32.
        if value is not None and not _LEAST <= value <= _MOST:
            raise errors.ConfigError(
                f"{name} is {value}; it must be a number above 0, from {_LEAST:g} to "
                f"{_MOST:g}, {example}."
            )


@dataclasses.dataclass(frozen=True)
class LayoutSettings:
    """Settings of the form of client data; the result differs by rounding only."""

    client_form: str = setting(AUTO, "Users per TFF client: speed only.", CLIENT_FORMS)
    block_size: int = setting(0, "The most users per TFF client; 0 to choose.")

    def __post_init__(self):
        check_choices(self)
        if self.block_size < 0:
            raise errors.ConfigError(
                f"block_size is {self.block_size}; it must be at least 0."
            )
