"""The flags that say what an experiment is, one for each of its settings."""

from __future__ import annotations

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import ALGORITHMS, options
from tff_perfedavg.experiments.settings import settings_flags
from tff_perfedavg.experiments.settings.experiment import (
    Experiment,
    setting_names,
    setting_owners,
)
from tff_perfedavg.settings import kind_of, settings_of


def define(flag_values: flags.FlagValues) -> None:
    """Defines the flags on the values given, before they are parsed."""
    for owner in setting_owners():
        settings_flags.define(owner, flag_values)
    for name, (config, field) in options().items():
        kind = kind_of(config, name)
        settings_flags.define_one(field, kind, field.default, flag_values)


def experiment(flag_values: flags.FlagValues) -> Experiment:
    """Returns the experiment of the parsed flags.

    Raises:
      ConfigError: naming the field that is out of range.
    """
    return Experiment(**{name: flag_values[name].value for name in setting_names()})


def check_given(flag_values: flags.FlagValues) -> None:
    """Raises `ConfigError` if a setting is given that the algorithm has not.

    Whatever its value: the default of a setting that does nothing does nothing, too.
    """
    algorithm = flag_values["algorithm"].value
    own = settings_of(ALGORITHMS[algorithm])
    for name in options():
        if flag_values[name].present and name not in own:
            raise errors.ConfigError(
                f"{name} is {flag_values[name].value}, but {algorithm} has no such "
                "setting."
            )
