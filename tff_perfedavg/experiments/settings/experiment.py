"""Experiment configuration: all settings that decide a training run's result.

Plain Python, so that a command checks its flags before TensorFlow is loaded.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import LocalSettings, methods, options
from tff_perfedavg.experiments.settings.fleet_settings import FleetSettings
from tff_perfedavg.experiments.settings.parts import (
    COMPRESSION,
    DP_ADAPTIVE,
    DP_FIXED,
    FIXED,
    POISSON,
    SECURE,
    AggregationSettings,
    CohortSettings,
    DataSettings,
    LayoutSettings,
    ServerSettings,
)
from tff_perfedavg.federated.client_forms import AUTO, USERS
from tff_perfedavg.settings import setting, settings_of, values_of

MODELS = (
    "mlp",
    "logistic_regression",
    "cnn",
    "conv4",
    "conv1d",
    "char_cnn",
    "mlp_regressor",
)
# Those that predict numbers; all others tell classes apart.
_REGRESSORS = ("mlp_regressor",)
_PARTS = {
    "data": DataSettings,
    "local": LocalSettings,
    "cohorts": CohortSettings,
    "aggregation": AggregationSettings,
    "server": ServerSettings,
    "fleet_of_run": FleetSettings,
    "layout": LayoutSettings,
}


@dataclasses.dataclass(frozen=True, init=False)
class Experiment:
    """The settings of one training run, in parts.

    `Experiment(dataset="mnist", algorithm="fed_avg")` takes settings by name, whatever
    part they are of, and so does `dataclasses.replace`.

    Attributes:
      data: whose rows.
      model: one of `MODELS`, or one's own: `FILE.py:FUNCTION`, a function from
        `(input_shape, num_outputs)` to a Keras model.
      initial: a file of the weights that training starts from, in the place of the
        model's own: `model.npz` of a run, or arrays `weight_0`, `weight_1` and so on.
      local: what a user does in a round.
      total_rounds: rounds of training.
      cohorts: who takes part in a round.
      aggregation: what is done to users' updates.
      server: how the server applies what they are aggregated to.
      fleet_of_run: whose phones take part, and how the server waits for them.
      layout: the form of client data.
      base_random_seed: of partition, initial weights, cohorts and batches.
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: str = setting(
        "mlp",
        f"{', '.join(MODELS)}, or your own: FILE.py:FUNCTION, from (input_shape, "
        "num_outputs) to a Keras model.",
    )
    initial: str = setting(
        "",
        "Weights that training starts from, in the place of the model's own: model.npz "
        "of a run, or an .npz of arrays weight_0, weight_1, ...",
    )
    local: LocalSettings = field(default_factory=LocalSettings)
    total_rounds: int = setting(300, "Rounds of training.")
    cohorts: CohortSettings = field(default_factory=CohortSettings)
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    fleet_of_run: FleetSettings = field(default_factory=FleetSettings)
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    base_random_seed: int = setting(
        0, "Seed of the partition, the initial weights, cohorts and batches."
    )

    def __init__(self, **settings: Any):
        """Takes parts, settings by name, or both.

        Args:
          **settings: a part by its name; any setting by its own, in the place of what
            its part says.

        Raises:
          ConfigError: naming the setting that is out of range.
          TypeError: if there is no setting of a name.
        """
        for own in dataclasses.fields(self):
            if own.name in _PARTS:
                names = _names_of(_PARTS[own.name])
                given = {name: settings.pop(name) for name in names if name in settings}
                value = _built(_PARTS[own.name], settings.pop(own.name, None), given)
            else:
                value = settings.pop(own.name, own.default)
            object.__setattr__(self, own.name, value)
        if settings:
            raise TypeError(f"Experiment has no setting {', '.join(settings)}.")
        self._check()

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Experiment:
        """Returns the experiment of a record of `flat`, of this or an earlier version.

        Raises:
          ConfigError, TypeError: as the constructor.
        """
        found = cls(**record)
        lacking = {
            name: setting.metadata["unrecorded"]
            for name, (_, setting) in options().items()
            if name not in record and found.local.uses(name)
        }
        given = {name: value for name, value in lacking.items() if value is not None}
        return found.replace(**given)

    def replace(self, **settings: Any) -> Experiment:
        """Returns an experiment with other settings, or parts, in their place."""
        return dataclasses.replace(self, **settings)

    def flat(self) -> dict[str, Any]:
        """Returns every setting by name, as checkpoints and tables keep them."""
        found: dict[str, Any] = {}
        for own in dataclasses.fields(self):
            value = getattr(self, own.name)
            if own.name in _PARTS:
                found |= {**values_of(value), **getattr(value, "recorded", {})}
            else:
                found[own.name] = value
        return found

    @property
    def label(self) -> str:
        """The method's name in tables and figures."""
        return self.local.label

    @property
    def has_own_model(self) -> bool:
        """Whether the model is a function in a file."""
        return re.fullmatch(r".+\.py:\w+", self.model) is not None

    @property
    def client_form(self) -> str:
        """The form of client data, where `auto` leaves the aggregator its choice."""
        if self.layout.client_form == AUTO and self.aggregation.sees_users:
            return USERS
        return self.layout.client_form

    @property
    def samples_secretly(self) -> bool:
        """Whether cohorts are Poisson samples, keyed by a secret.

        That alone lets sampling amplify differential privacy.
        """
        is_fixed = self.cohorts.cohort_sampling == FIXED
        return self.aggregation.is_private and not is_fixed

    def check_model_suits(self, whose: str, has_classes: bool) -> None:
        """Raises `ConfigError` unless the model predicts labels of the kind there is.

        Args:
          whose: labels, in words.
          has_classes: whether they are classes; else they are numbers.
        """
        suited = [m for m in MODELS if (m not in _REGRESSORS) == has_classes]
        if self.has_own_model or self.model in suited:
            return
        kinds = ["numbers", "classes"]
        raise errors.ConfigError(
            f"model is {self.model!r}, which predicts {kinds[not has_classes]}, but "
            f"the labels of {whose} are {kinds[has_classes]}; choose "
            f"{', '.join(suited)} or your own as FILE.py:FUNCTION."
        )

    def check_rounds(self) -> None:
        """Raises `ConfigError` if there are rounds in which nothing would change."""
        decay_rounds = self.server.server_decay_rounds
        if decay_rounds is not None and self.total_rounds > decay_rounds:
            raise errors.ConfigError(
                f"total_rounds is {self.total_rounds}, but after server_decay_rounds, "
                f"{decay_rounds}, the server's learning rate is 0 and nothing changes; "
                "set them alike."
            )

    def differences(self, other: Experiment) -> str:
        """Returns the settings in which another differs, with both values, else ''.

        Those that do nothing in either are no difference.
        """
        mine, others = self.flat(), other.flat()
        for name in {*self.local.ignored} & {*other.local.ignored}:
            mine.pop(name, None)
            others.pop(name, None)
        return "; ".join(
            f"{name} {mine.get(name)!r}, not {others.get(name)!r}"
            for name in {**mine, **others}
            if mine.get(name) != others.get(name)
        )

    def _check(self) -> None:
        if not self.has_own_model and self.model not in MODELS:
            raise errors.ConfigError(
                f"model is {self.model!r}; known: {', '.join(MODELS)}, and your own "
                "as FILE.py:FUNCTION."
            )
        if self.total_rounds < 1:
            raise errors.ConfigError(
                f"total_rounds is {self.total_rounds}; it must be at least 1."
            )
        if not 0 <= self.base_random_seed < 2**62:
            raise errors.ConfigError(
                f"base_random_seed is {self.base_random_seed}; it must be a whole "
                "number from 0 to 2**62 - 1."
            )
        self._check_private_cohorts()
        self._check_fleet()
        if self.aggregation.sees_users and self.layout.client_form not in (AUTO, USERS):
            raise errors.ConfigError(
                f"client_form is {self.layout.client_form}, but "
                f"{self.aggregation.aggregator} must see each user's update; leave it "
                f"at {AUTO}, or say {USERS}."
            )
        if not self.data.store:
            self.data.config(self.base_random_seed)

    def _check_fleet(self) -> None:
        fleet = self.fleet_of_run
        if not fleet.is_on:
            return
        if self.aggregation.is_private:
            raise errors.ConfigError(
                f"fleet is {fleet.fleet}, and aggregator {self.aggregation.aggregator} "
                "is private: who is on and who comes first is no random sample of the "
                "users, so no epsilon would be right. Leave out one of the two."
            )
        if self.aggregation.aggregator == COMPRESSION and fleet.upload_bits is None:
            raise errors.ConfigError(
                f"fleet is {fleet.fleet}, and aggregator {COMPRESSION}, whose updates "
                "are as long as what is in them; say by upload_bits how many bits a "
                "weight takes."
            )

    def _check_private_cohorts(self) -> None:
        aggregator = self.aggregation.aggregator
        if not self.aggregation.is_private and self.cohorts.cohort_sampling == POISSON:
            raise errors.ConfigError(
                f"cohort_sampling is {POISSON}, but aggregator {aggregator} is "
                f"not private; leave it at {AUTO}."
            )
        # Of the noise, a part goes to finding the norm (Andrew et al., 2021).
        size, noise = self.cohorts.clients_per_round, self.aggregation.noise_multiplier
        most = 0.1 * size
        if aggregator == DP_ADAPTIVE and noise >= most:
            raise errors.ConfigError(
                f"noise_multiplier is {noise}; dp_adaptive with clients_per_round "
                f"{size} needs less than {most:g}. Take larger cohorts, or {DP_FIXED}."
            )


def setting_names() -> list[str]:
    """Returns the names of all settings, in the order of the parts."""
    return [
        name
        for own in dataclasses.fields(Experiment)
        for name in _names_of(_PARTS.get(own.name)) or [own.name]
    ]


# Settings over which runs are repeated: averaged over, not compared.
SEED, FOLD = "base_random_seed", "fold"
REPEATED = (SEED, FOLD)


def check_axis(name: str) -> None:
    """Raises `ConfigError` unless a name is an axis that runs of a grid may differ in.

    Axes are settings by their names, and `method`, an algorithm with its variant.
    """
    if name in ("algorithm", "variant"):
        raise errors.ConfigError(
            f"axis of the grid is {name!r}; name methods instead, each an algorithm "
            f"with its variant: method={','.join(methods())}."
        )
    errors.check_known("axis of the grid", name, ("method", *setting_names()))


def setting_owners() -> list[type]:
    """Returns the classes whose fields are the settings of an experiment."""
    return [Experiment, *_PARTS.values()]


def _names_of(part: type | None) -> list[str]:
    """Names of the settings that a part has, those of single algorithms included."""
    if part is None:
        return []
    extra = options() if part is LocalSettings else ()
    return [*settings_of(part), *extra]


def _built(kind: type, part: Any, given: dict[str, Any]) -> Any:
    """A part, or the default one if None, with the settings given in their place."""
    known = settings_of(kind)
    own = {name: value for name, value in given.items() if name in known}
    others = {name: value for name, value in given.items() if name not in known}
    if others:
        own["options"] = {**getattr(part, "options", {}), **others}
    if part is None:
        return kind(**own)
    # Not where nothing changes: a part is checked when it is built.
    return dataclasses.replace(part, **own) if own else part


def check_experiment_name(name: str) -> None:
    """Raises `ConfigError` unless a name is valid as a directory's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise errors.ConfigError(
            f"experiment_name is {name!r}; use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )


def check_run_names(names: Sequence[str]) -> None:
    """Raises `ConfigError` unless all names are valid as runs' and different."""
    for name in names:
        check_experiment_name(name)
    if len(set(names)) < len(names):
        raise errors.ConfigError(f"A run is named twice in {', '.join(names)}.")


def check_workers(addresses: Sequence[str], aggregator: str) -> None:
    """Raises `ConfigError` unless workers' addresses are valid and suit an aggregator.

    Args:
      addresses: `host:port` of each; none for this machine.
      aggregator: one of `AGGREGATORS`.
    """
    for address in addresses:
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", address):
            raise errors.ConfigError(
                f"workers has {address!r}; write host:port, as in 10.0.0.7:8000."
            )
    if len(set(addresses)) < len(addresses):
        raise errors.ConfigError("workers names an address twice.")
    if addresses and aggregator == SECURE:
        raise errors.ConfigError(
            f"aggregator is {SECURE}, which TFF cannot spread over workers; leave "
            "out --workers."
        )
