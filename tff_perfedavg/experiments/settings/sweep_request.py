"""Sweep configuration, parsed from flags before a framework is loaded."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import methods
from tff_perfedavg.experiments.settings import command, common_flags
from tff_perfedavg.experiments.settings.experiment import (
    FOLD,
    SEED,
    Experiment,
    check_axis,
)
from tff_perfedavg.experiments.settings.parts import DataSettings
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.optimization.config import AdaptationConfig

_METHOD = "method"
# Settings that say who the users are.
_OF_USERS = (SEED, *(f.name for f in dataclasses.fields(DataSettings)))
# Of a rehearsal: of training, and of users measured in each group.
REHEARSED_ROUNDS, REHEARSED_USERS = 2, 8


def axes(flag_values) -> dict[str, list]:
    """The grid of the flags, its values parsed as the flags they stand for."""
    found = {}
    for text in flag_values.grid:
        name, _, values = text.partition("=")
        check_axis(name)
        if name in found:
            raise errors.ConfigError(f"grid has {name} twice; give its values at once.")
        if not values:
            raise errors.ConfigError(f"grid has {text!r}; write {name}=VALUE,VALUE.")
        if name == _METHOD:
            found[name] = values.split(",")
            for method in found[name]:
                errors.check_known("method", method, methods())
        else:
            where = f"grid has {text!r}"
            found[name] = [
                _parsed(flag_values, name, value, where) for value in values.split(",")
            ]
    return found


def _parsed(flag_values, name, value, where):
    """A value as its flag parses it."""
    try:
        return flag_values[name].parser.parse(value)
    except ValueError as e:
        raise errors.ConfigError(f"{where}: {e}.") from e


class OwnSettings(NamedTuple):
    """Per-method setting overrides.

    Args:
      method: whose they are.
      at: values of axes of the grid, at which alone they hold; empty for all.
      settings: by field of `Experiment`.
    """

    method: str
    at: Mapping[str, Any]
    settings: Mapping[str, Any]

    def hold(self, values: Mapping[str, Any]) -> bool:
        """Whether they hold for a combination of the grid's values.

        Args:
          values: by axis, the method among them.
        """
        at = {_METHOD: self.method, **self.at}
        return all(values.get(name) == value for name, value in at.items())


def of_methods(flag_values, grid) -> list[OwnSettings]:
    """Returns the overrides of `--of_method`.

    Args:
      flag_values: of the command.
      grid: of `axes`.

    Raises:
      ConfigError: if a method or a value is none of the grid's, or a setting is an axis
        or says who the users are.
    """
    found: list[OwnSettings] = []
    for text in flag_values.of_method:
        where = f"of_method has {text!r}"
        runs, _, settings = text.partition(":")
        method, *values = runs.split(",")
        if method not in grid.get(_METHOD, ()):
            raise errors.ConfigError(
                f"{where}, but {method!r} is no method of the grid."
            )
        at = {}
        for setting in values:
            name, _, value = setting.partition("=")
            at[name] = _value_of_axis(flag_values, grid, name, value, where)
        own = {}
        for setting in settings.split(","):
            name, _, value = setting.partition("=")
            check_axis(name)
            if name in (_METHOD, *grid):
                raise errors.ConfigError(f"{where}, but {name} is an axis of the grid.")
            if name in _OF_USERS:
                raise errors.ConfigError(
                    f"{where}, but methods are compared on the same users; give {name} "
                    "for all of them."
                )
            own[name] = _parsed(flag_values, name, value, where)
        found.append(OwnSettings(method, at, own))
    return found


def _value_of_axis(flag_values, grid, name, value, where):
    """A value that an axis of the grid has."""
    if name == _METHOD or name not in grid:
        raise errors.ConfigError(f"{where}, but {name!r} is no other axis of the grid.")
    parsed = _parsed(flag_values, name, value, where)
    if parsed not in grid[name]:
        raise errors.ConfigError(f"{where}, but {value} is no {name} of the grid.")
    return parsed


def reported_steps(flag_values) -> list[int]:
    """The numbers of steps that are reported each; none to choose one."""
    steps = command.numbers(flag_values, "report_steps", int)
    for step in steps:
        if not 0 <= step <= flag_values.adaptation_steps:
            raise errors.ConfigError(
                f"report_steps has {step}; it must be from 0 to adaptation_steps, "
                f"{flag_values.adaptation_steps}."
            )
    return steps


def choosing_seeds(flag_values, grid) -> list[int]:
    """Returns the seeds whose runs choose; none for all.

    Args:
      flag_values: of the command.
      grid: of `axes`.

    Raises:
      ConfigError: if a seed is none of the grid's, or has nothing to choose.
    """
    seeds = command.numbers(flag_values, "choosing_seeds", int)
    for seed in seeds:
        if seed not in grid.get("base_random_seed", ()):
            raise errors.ConfigError(
                f"choosing_seeds has {seed}, which is no base_random_seed of the grid."
            )
    if seeds and {*flag_values.choose} <= {"base_random_seed"}:
        raise errors.ConfigError(
            f"choosing_seeds is {seeds}, but there is nothing for them to choose; name "
            "axes with --choose."
        )
    if seeds and "base_random_seed" in flag_values.choose:
        raise errors.ConfigError(
            "choose names base_random_seed, but choosing_seeds says whose runs choose; "
            "leave out one of the two."
        )
    return seeds


def watching(flag_values, base) -> TrainingOptions:
    """Returns the evaluation options of runs in training.

    Args:
      flag_values: of the command.
      base: settings of all runs.

    Raises:
      ConfigError: if there are targets, and nothing that would meet them.
    """
    every = flag_values.rounds_per_evaluation
    if flag_values.targets and not (every and base.fleet_of_run.is_on):
        raise errors.ConfigError(
            f"targets is {','.join(flag_values.targets)}, but nothing is told of them "
            "without a fleet and rounds_per_evaluation; give both, or leave it out."
        )
    return TrainingOptions(
        rounds_per_evaluation=every,
        adaptation_steps=flag_values.adaptation_steps,
        num_evaluation_users=flag_values.num_evaluation_users,
    )


class Asked(NamedTuple):
    """Parsed and checked configuration of a sweep."""

    root: pathlib.Path
    grid: dict[str, list]
    chosen: list[str]
    of_methods: list[OwnSettings]
    choosing: list[int]
    rates: list[float]
    rows: list[int]
    changes: dict[str, Any]
    steps: list[int]
    watched: TrainingOptions
    targets: list[float]


def read(flag_values, base) -> Asked:
    """Reads the flags, before any framework is loaded.

    Args:
      flag_values: of the command.
      base: settings of all runs.

    Raises:
      ConfigError: if a flag is out of range, or flags do not fit each other.
    """
    grid = axes(flag_values)
    root = pathlib.Path(flag_values.root_output_dir)
    for name in flag_values.choose:
        errors.check_known("choose", name, grid)
    if flag_values["compare"].present:
        # Each fold has other users.
        values = [name for name in grid if name != FOLD]
        errors.check_known("compare", flag_values.compare, values)
    asked = Asked(
        root=root,
        grid=grid,
        chosen=flag_values.choose,
        of_methods=of_methods(flag_values, grid),
        choosing=choosing_seeds(flag_values, grid),
        rates=command.numbers(flag_values, "adaptation_learning_rates", float),
        rows=command.numbers(flag_values, "adaptation_rows", int),
        changes={
            **common_flags.what_moves(flag_values),
            "rows_per_class": flag_values.adaptation_rows_per_class,
        },
        steps=reported_steps(flag_values),
        watched=watching(flag_values, base),
        targets=command.numbers(flag_values, "targets", float),
    )
    most = flag_values.adaptation_steps
    for rate in asked.rates or [base.local.inner_learning_rate]:
        for rows in asked.rows:
            AdaptationConfig(rate, most, num_rows=rows or None, **asked.changes)
    return asked


def rehearsed(asked: Asked, base: Experiment) -> tuple[Asked, Experiment]:
    """Returns what is asked for, and the settings, of the same study in small.

    Args:
      asked: what the study asks for.
      base: settings of all its runs.
    """
    grid = {
        name: values if name == _METHOD else values[:1]
        for name, values in asked.grid.items()
    }
    if asked.choosing:
        grid[SEED] = asked.choosing[:1]
    rounds = "total_rounds"
    of_methods = [
        own._replace(
            settings={
                name: REHEARSED_ROUNDS if name == rounds else value
                for name, value in own.settings.items()
            }
        )
        for own in asked.of_methods
    ]
    watched = dataclasses.replace(
        asked.watched,
        rounds_per_evaluation=min(1, asked.watched.rounds_per_evaluation),
        num_evaluation_users=REHEARSED_USERS,
    )
    asked = asked._replace(
        root=asked.root / "rehearsal",
        grid=grid,
        of_methods=of_methods,
        choosing=asked.choosing[:1],
        watched=watched,
    )
    return asked, base.replace(total_rounds=REHEARSED_ROUNDS)
