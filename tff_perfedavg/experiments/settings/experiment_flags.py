"""Command-line flags of an experiment, one for each of its settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import LocalSettings, options
from tff_perfedavg.experiments.settings import settings_flags
from tff_perfedavg.experiments.settings.experiment import (
    Experiment,
    setting_names,
    setting_owners,
)
from tff_perfedavg.settings import kind_of


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


def check_given(
    flag_values: flags.FlagValues,
    runs: Sequence[LocalSettings],
    axes: Collection[str] = (),
) -> None:
    """Raises `ConfigError` if a setting of some algorithms is given that no run takes.

    Args:
      flag_values: the parsed flags.
      runs: what users do in each run that the flags stand for.
      axes: names of settings that were given in another way.
    """
    for name, default in {"variant": None, **_defaults()}.items():
        given = flag_values[name]
        if not given.present and name not in axes:
            continue
        told = f"{name} is {'in the grid' if name in axes else given.value}, but"
        taking = [local for local in runs if name not in local.ignored]
        if not taking:
            reasons = dict.fromkeys(local.ignored[name] for local in runs)
            raise errors.ConfigError(f"{told} {'; '.join(reasons)}.")
        values = [{**vars(r), **r.options}.get(name, default) for r in taking]
        if name not in axes and given.value not in values:
            others = " and ".join(dict.fromkeys(map(str, values)))
            raise errors.ConfigError(
                f"{told} what is to run has {others}; leave one of the two out."
            )


def check_experiments(experiments: Sequence[Experiment]) -> None:
    """Raises `ConfigError` if settings of runs cannot do what they are given for.

    That is, if what divides the data is given and no run goes by it, or a run has
    rounds in which nothing would change.

    Args:
      experiments: of the runs.
    """
    for one in experiments:
        one.check_rounds()
    given = dict.fromkeys(name for one in experiments for name in one.data.division)
    for name in given:
        having = [one for one in experiments if name in one.data.division]
        configs = [one.data.config(one.base_random_seed) for one in having]
        if all(name in config.ignored for config in configs):
            configs[0].check_given([name])


def _defaults() -> dict[str, Any]:
    return {name: field.default for name, (_, field) in options().items()}
