"""What a training run is: everything that decides its result.

Plain Python, so that a command checks its flags before TensorFlow is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from tff_perfedavg import errors
from tff_perfedavg.algorithms.per_fed_avg import EXACT
from tff_perfedavg.algorithms.registry import ALGORITHMS, LocalSettings
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.federated.client_forms import AUTO, CLIENT_FORMS, USERS

MODELS = (
    "mlp",
    "logistic_regression",
    "cnn",
    "conv1d",
    "char_cnn",
    "mlp_regressor",
)
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
# Must see each user's update by itself; the others work in blocks of users, too.
_BY_USER = (ROBUST, COMPRESSION, DP_ADAPTIVE, SECURE)
# Fields of `Experiment` that say how its data set is divided; None takes what suits
# the data set.
DIVISION = (
    "partition",
    "num_users",
    "num_new_users",
    "a",
    "evaluation_a",
    "concentration",
    "rows_per_user",
    "classes_per_user",
    "min_rows",
)

# The largest float32 is 3.4e38, and a draw may be some standard deviations.
_MOST_NOISE = 1e37
_LEAST_NORM = 1e-30


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings of one training run.

    Attributes:
      dataset: of `data.config.DATASETS`, divided with the seed; ignored if there is
        a store.
      partition, num_users, num_new_users, a, evaluation_a, concentration,
        rows_per_user, classes_per_user, min_rows: how it is divided, as in
        `DataConfig`; None takes what suits the data set.
      store: directory of the user store to train on; empty to prepare the data set.
      model: one of `MODELS`, or one's own: `FILE.py:FUNCTION`, a function from
        `(input_shape, num_outputs)` to a Keras model.
      algorithm: one of `ALGORITHMS`.
      variant: Per-FedAvg's meta-gradient; FedAvg ignores it.
      inner_learning_rate: alpha; FedAvg uses it at adaptation only.
      outer_learning_rate: beta, the rate of every local step, FedAvg's too.
      num_local_steps: tau.
      batch_size: rows of every batch (support, query and Hessian alike).
      total_rounds: rounds of training.
      clients_per_round: users in a cohort; their mean number, where cohorts are Poisson
        samples.
      cohort_sampling: one of `COHORT_SAMPLINGS`. `fixed`: of a fixed size, keyed by the
        seed; `poisson`: each user by itself, keyed by a secret of the run, which alone
        lets sampling amplify differential privacy; `auto` takes `poisson` with
        differential privacy and `fixed` without.
      client_weighting: one of `CLIENT_WEIGHTINGS`.
      aggregator: what is done to users' updates, one of `AGGREGATORS`: their `mean`;
        `clip`, each clipped to a norm before; `robust`, each clipped and large ones
        zeroed, by norms that adapt; `compression`; `dp_fixed` and `dp_adaptive`,
        central differential privacy with a fixed and an adaptive clipping norm;
        `secure`, by secure sums (in a simulation, without their security).
      clipping_norm: of `clip` and `dp_fixed`.
      noise_multiplier: of `dp_fixed` and `dp_adaptive`: standard deviation of the noise
        over the clipping norm.
      client_form: how many users a TFF client stands for, one of `CLIENT_FORMS`; it
        has no influence on the result but by rounding.
      block_size: the most users per client where it stands for several; 0 to choose.
      base_random_seed: of partition, initial weights, cohorts and batches.
    """

    dataset: str = "digits"
    partition: str | None = None
    num_users: int | None = None
    num_new_users: int | None = None
    a: int | None = None
    evaluation_a: int | None = None
    concentration: float | None = None
    rows_per_user: int | None = None
    classes_per_user: int | None = None
    min_rows: int | None = None
    store: str = ""
    model: str = "mlp"
    algorithm: str = "per_fed_avg"
    variant: str = EXACT
    inner_learning_rate: float = 0.01
    outer_learning_rate: float = 0.01
    num_local_steps: int = 10
    batch_size: int = 10
    total_rounds: int = 300
    clients_per_round: int = 5
    cohort_sampling: str = AUTO
    client_weighting: str = "uniform"
    aggregator: str = MEAN
    clipping_norm: float | None = None
    noise_multiplier: float = 0.0
    client_form: str = "auto"
    block_size: int = 0
    base_random_seed: int = 0

    def __post_init__(self):
        for field, known in (
            ("algorithm", tuple(ALGORITHMS)),
            ("client_weighting", CLIENT_WEIGHTINGS),
            ("client_form", CLIENT_FORMS),
            ("cohort_sampling", COHORT_SAMPLINGS),
            ("aggregator", AGGREGATORS),
        ):
            errors.check_known(field, getattr(self, field), known)
        if not self.has_own_model and self.model not in MODELS:
            raise errors.ConfigError(
                f"model is {self.model!r}; known: {', '.join(MODELS)}, and your own "
                "as FILE.py:FUNCTION."
            )
        for field in ("total_rounds", "clients_per_round"):
            value = getattr(self, field)
            if value < 1:
                raise errors.ConfigError(f"{field} is {value}; it must be at least 1.")
        if not 0 <= self.base_random_seed < 2**62:
            raise errors.ConfigError(
                f"base_random_seed is {self.base_random_seed}; it must be a whole "
                "number from 0 to 2**62 - 1."
            )
        if self.block_size < 0:
            raise errors.ConfigError(
                f"block_size is {self.block_size}; it must be at least 0."
            )
        self._check_aggregator()
        self.local  # noqa: B018 - checks it
        if self.store and self._division():
            raise errors.ConfigError(
                f"{', '.join(self._division())} given with a store, which is divided "
                "already; leave out one of the two."
            )
        if not self.store:
            self.data_config()

    @property
    def local(self) -> LocalSettings:
        """What a user does in a round."""
        names = {field.name for field in dataclasses.fields(LocalSettings)}
        values = {name: getattr(self, name) for name in names - {"options"}}
        return LocalSettings(**values)

    def data_config(self) -> DataConfig:
        """Returns which data set the experiment prepares, divided how."""
        return DataConfig.of(
            self.dataset, seed=self.base_random_seed, **self._division()
        )

    @property
    def store_name(self) -> str:
        """What the prepared data set's store is called."""
        given = [
            value if name == "partition" else f"{name}{value}"
            for name, value in self._division().items()
        ]
        return "-".join([self.dataset, *given, f"seed{self.base_random_seed}"])

    @property
    def has_own_model(self) -> bool:
        """Whether the model is a function in a file."""
        return re.fullmatch(r".+\.py:\w+", self.model) is not None

    @property
    def label(self) -> str:
        """The algorithm's name in tables and figures."""
        return self.local.label

    def differences(self, other: Experiment) -> str:
        """Returns the fields in which another differs, with both values, else ''."""
        pairs = (
            (field.name, getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
        )
        return "; ".join(
            f"{name} {mine!r}, not {others!r}"
            for name, mine, others in pairs
            if mine != others
        )

    @property
    def effective_client_form(self) -> str:
        """The form of client data, where `auto` leaves the aggregator its choice."""
        if self.client_form == AUTO and self.aggregator in _BY_USER:
            return USERS
        return self.client_form

    def _check_aggregator(self) -> None:
        clips = self.aggregator in (CLIP, DP_FIXED)
        norm = self.clipping_norm
        # Smaller or larger ones are 0 or infinite in float32.
        if clips and not (norm is not None and _LEAST_NORM <= norm <= _MOST_NOISE):
            raise errors.ConfigError(
                f"clipping_norm is {norm}; {self.aggregator} needs a number above 0, "
                f"from {_LEAST_NORM:g} to {_MOST_NOISE:g}."
            )
        if not clips and norm is not None:
            raise errors.ConfigError(
                f"clipping_norm is {norm}, but aggregator {self.aggregator} has none."
            )
        noise, private = self.noise_multiplier, self.aggregator in PRIVATE
        if private and not (math.isfinite(noise) and noise > 0):
            raise errors.ConfigError(
                f"noise_multiplier is {noise}; {self.aggregator} needs a number above "
                "0, for example 0.5."
            )
        if not private and self.cohort_sampling == POISSON:
            raise errors.ConfigError(
                f"cohort_sampling is {POISSON}, but aggregator {self.aggregator} is "
                f"not private; leave it at {AUTO}."
            )
        # In float32 the noise would be infinite, and every round's update dropped.
        if private and norm is not None and norm * noise > _MOST_NOISE:
            raise errors.ConfigError(
                f"clipping_norm {norm:g} times noise_multiplier {noise:g} is "
                f"{norm * noise:g}, noise that no float32 holds; take a norm near "
                "those of users' updates (update_norm in the metrics)."
            )
        # Of the noise, a part goes to finding the norm (Andrew et al., 2021).
        most = 0.1 * self.clients_per_round
        if self.aggregator == DP_ADAPTIVE and noise >= most:
            raise errors.ConfigError(
                f"noise_multiplier is {noise}; dp_adaptive with clients_per_round "
                f"{self.clients_per_round} needs less than {most:g}. Take larger "
                f"cohorts, or {DP_FIXED}."
            )
        if not private and noise:
            raise errors.ConfigError(
                f"noise_multiplier is {noise}, but aggregator {self.aggregator} adds "
                f"no noise; choose one of {', '.join(PRIVATE)}."
            )
        if private and self.client_weighting != "uniform":
            raise errors.ConfigError(
                f"client_weighting is {self.client_weighting}, but {self.aggregator} "
                "must count every user alike: its noise hides one user of weight 1."
            )
        if self.aggregator in _BY_USER and self.client_form not in (AUTO, USERS):
            raise errors.ConfigError(
                f"client_form is {self.client_form}, but {self.aggregator} must see "
                f"each user's update; leave it at {AUTO}, or say {USERS}."
            )

    @property
    def samples_secretly(self) -> bool:
        """Whether cohorts are Poisson samples, keyed by a secret."""
        return self.aggregator in PRIVATE and self.cohort_sampling != FIXED

    def _division(self) -> dict:
        fields = {name: getattr(self, name) for name in DIVISION}
        return {name: value for name, value in fields.items() if value is not None}


def check_experiment_name(name: str) -> None:
    """Raises `ConfigError` unless the name is fit to be a directory's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise errors.ConfigError(
            f"experiment_name is {name!r}; use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )


def check_run_names(names: Sequence[str]) -> None:
    """Raises `ConfigError` unless all are fit to be runs' names, each given once."""
    for name in names:
        check_experiment_name(name)
    if len(set(names)) < len(names):
        raise errors.ConfigError(f"A run is named twice in {', '.join(names)}.")


def check_workers(addresses: Sequence[str], experiment: Experiment) -> None:
    """Raises `ConfigError` unless an experiment can run on workers so named."""
    for address in addresses:
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", address):
            raise errors.ConfigError(
                f"workers has {address!r}; write host:port, as in 10.0.0.7:8000."
            )
    if len(set(addresses)) < len(addresses):
        raise errors.ConfigError("workers names an address twice.")
    if addresses and experiment.aggregator == SECURE:
        raise errors.ConfigError(
            f"aggregator is {SECURE}, which TFF cannot spread over workers; leave "
            "out --workers."
        )
