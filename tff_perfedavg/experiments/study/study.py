"""A study of many runs, trained and evaluated once each, resumable.

A study that was stopped goes on where it was: runs and evaluations that are there are
not made again. A run is a run like any other (`RunPaths`), evaluations lie beside its
metrics, so that reports and exports work on a study's runs, too.

That a run diverges is a result like any other: the study goes on, the run is neither
trained again nor evaluated, and `diverged` and `read_diverged` tell of it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import methods, options
from tff_perfedavg.experiments.assemble.build import build_model
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.evaluate_users import (
    build_evaluator,
    choose_users,
)
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.rows import write_rows
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.files.sources import check_sources
from tff_perfedavg.experiments.files.trained_runs import diverged_experiment
from tff_perfedavg.experiments.settings.experiment import Experiment, check_axis
from tff_perfedavg.experiments.settings.fleet_settings import METHOD
from tff_perfedavg.experiments.settings.sweep_request import OwnSettings
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.experiments.study import study_time
from tff_perfedavg.experiments.training.training import train_and_save
from tff_perfedavg.files import atomic_write
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.moves import ALL

# Of runs of one data set and model, which follow one another.
_MOST_EVALUATORS = 8
_EVALUATIONS = "evaluations"
# Columns of results, behind those of the runs' settings.
_LABELS = ("run", "algorithm", "seed", "adaptation_learning_rate", "num_rows")
_MEASURED = ("users", "user", "step", "loss", "accuracy")
UNWATCHED = TrainingOptions(rounds_per_evaluation=0)


class Run(NamedTuple):
    """One run of a study.

    Attributes:
      settings: what sets it apart from the study's other runs, by name, such as
        `method` and `seed`; columns of the results.
      experiment: what is trained.
      adaptations: how its users adapt.
      num_users: the most users of each group that are measured, drawn; 0 for all.
    """

    settings: Mapping[str, Any]
    experiment: Experiment
    adaptations: Sequence[AdaptationConfig]
    num_users: int = 0

    @property
    def name(self) -> str:
        """The run's name: of the settings, in their order."""
        return run_name(self.settings)


def run_name(settings: Mapping[str, Any]) -> str:
    """Returns a name made of settings: words as they are, numbers behind their name."""
    parts = [
        value if isinstance(value, str) else f"{name}{value:g}"
        for name, value in settings.items()
    ]
    return "-".join(parts).replace("/", "_")


def grid(
    base: Experiment,
    axes: Mapping[str, Sequence[Any]],
    of_methods: Sequence[OwnSettings] = (),
) -> Iterator[tuple]:
    """Returns the Cartesian product of the axes, the last one changing fastest.

    Args:
      base: settings of all runs.
      axes: values by field of `Experiment`, or by `method`, which stands for an
        algorithm with its variant (`registry.methods`).
      of_methods: what methods have in the place of settings of `base`; of two that
        hold for a run, the later one's.

    Returns:
      Pairs of a combination, a dictionary, and the experiment with it.
    """
    for name, values in axes.items():
        check_axis(name)
        if not values:
            raise errors.ConfigError(f"The grid's axis {name} has no values.")
    fleet = base.fleet_of_run
    if (
        fleet.is_on
        and len(axes.get("method", ())) > 1
        and METHOD not in fleet.fleet_work
    ):
        raise errors.ConfigError(
            f"fleet_work is {fleet.fleet_work!r} for all methods of the grid, whose "
            f"tasks do not cost the same; write {METHOD} where their files' names "
            "differ."
        )
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        changed = dict(settings)
        if "method" in changed:
            method = changed.pop("method")
            errors.check_known("method", method, tuple(methods()))
            changed |= methods()[method]
            for own in of_methods:
                if own.hold(settings):
                    changed |= own.settings
        yield settings, base.replace(**changed)


def uses(experiment: Experiment, name: str) -> bool:
    """Whether an experiment's training depends on a setting.

    Tells of settings of what a user does; all others are taken for used.

    Args:
      experiment: its settings.
      name: of the setting.
    """
    local = experiment.local
    if name in options():
        return local.uses(name)
    if name != "inner_learning_rate":
        return True
    # The training of FedAvg, for one, has none.
    other = dataclasses.replace(
        local, inner_learning_rate=2 * local.inner_learning_rate
    )
    return local.config != other.config


def option_defaults() -> dict[str, Any]:
    """Returns the defaults of settings that some algorithms have, by name."""
    return {name: field.default for name, (_, field) in options().items()}


def run_all(
    runs: Sequence[Run],
    base: Experiment,
    root: pathlib.Path,
    *,
    seed: int = 0,
    watched: TrainingOptions = UNWATCHED,
) -> None:
    """Trains and evaluates what is missing, past runs that diverge.

    Args:
      runs: the runs, with names of their own.
      base: the settings from which the runs' are made.
      root: directory of the study; its runs come from one base.
      seed: of the adaptations' draws.
      watched: how runs are watched while they train.

    Raises:
      ConfigError: if two runs have one name, the directory is of a study with another
        base, or the store or model file of a run that is there has changed since.
    """
    if len({run.name for run in runs}) < len(runs):
        raise errors.ConfigError("Two runs of the study have one name.")
    _claim(root, base)
    for number, run in enumerate(runs):
        paths = RunPaths(root, run.name)
        has_diverged = diverged(run, root)
        if paths.model.is_file():
            check_sources(run.experiment, paths.model, root)
            # A run that diverged has fewer rounds than it was to have.
            if not has_diverged:
                _check_settings(run, paths)
        missing = [
            adaptation
            for adaptation, file in _results_files(run, root)
            if not paths.is_of_model(file)
        ]
        if missing and not has_diverged:
            print(f"{number + 1} of {len(runs)}: {run.name}", flush=True)
            try:
                with study_time.counted(root):
                    _finish(run, paths, missing, seed, watched)
            except errors.Diverged as e:
                print(f"{run.name} diverged: {e}", flush=True)


def _check_settings(run: Run, paths: RunPaths) -> None:
    """Raises `ConfigError` if the run that is there was trained otherwise."""
    _, trained = trained_model.load(paths.model)
    differences = trained.differences(run.experiment)
    if differences:
        raise errors.ConfigError(
            f"The run {run.name} under {paths.root} has {differences}. Choose another "
            "--root_output_dir."
        )


def diverged(run: Run, root: pathlib.Path) -> bool:
    """Whether a run of a study was trained, and diverged.

    Args:
      run: of the study.
      root: directory of the study.
    """
    found = diverged_experiment(RunPaths(root, run.name))
    return found is not None and not found.differences(run.experiment)


def read_diverged(root: pathlib.Path) -> list[Experiment]:
    """Returns the settings of the runs of a study that diverged."""
    found = [diverged_experiment(paths) for paths in _all_runs(root)]
    return [experiment for experiment in found if experiment is not None]


def read_study(root: pathlib.Path, runs: Sequence[Run] | None = None) -> pd.DataFrame:
    """Reads evaluations of a study, finished or not.

    Args:
      root: directory of the study.
      runs: whose evaluations; by default all that are there.

    Returns:
      The rows of `evaluate_users`, behind columns for the runs' settings, `run` (the
      name), `algorithm` (the label), `seed`, `adaptation_learning_rate` and `num_rows`
      (most adaptation rows used; 0 for all). Runs that diverged have none.

    Raises:
      DataError: if there are none, and no run diverged.
    """
    if runs is None:
        evaluated = [p for p in _all_runs(root) if not p.diverged.is_file()]
        directories = [paths.results / _EVALUATIONS for paths in evaluated]
        files = [path for where in directories for path in sorted(where.glob("*.csv"))]
        any_diverged = len(evaluated) < len(_all_runs(root))
    else:
        files = [
            file
            for run in runs
            if not diverged(run, root)
            for _, file in _results_files(run, root)
        ]
        files = [file for file in files if file.is_file()]
        any_diverged = any(diverged(run, root) for run in runs)
    if not files and not any_diverged:
        raise errors.DataError(f"No evaluations under {root}; run its study first.")
    if not files:
        settings = {name: None for run in runs or () for name in run.settings}
        return pd.DataFrame(columns=[*settings, *_LABELS, *_MEASURED])
    return pd.concat([pd.read_csv(file) for file in files], ignore_index=True)


def _all_runs(root: pathlib.Path) -> list[RunPaths]:
    return [RunPaths(root, path.name) for path in sorted(root.glob("results/*/"))]


def _claim(root: pathlib.Path, base: Experiment) -> None:
    path = root / "study.json"
    if not path.exists():
        with atomic_write(path) as file:
            file.write(json.dumps(base.flat(), indent=1).encode())
    try:
        found = Experiment.of_record(json.loads(path.read_text()))
    except (ValueError, TypeError) as e:
        raise errors.DataError(f"{path} is unreadable ({e}); remove it.") from e
    differences = found.differences(base)
    if differences:
        raise errors.ConfigError(
            f"The study at {root} has {differences}. Choose another --root_output_dir."
        )


def _finish(
    run: Run, paths: RunPaths, missing, seed: int, watched: TrainingOptions
) -> None:
    weights = _weights(run, paths, watched)
    population = str(build_population(run.experiment, paths.root).path)
    for adaptation in missing:
        of_users = (run.experiment.model, population, run.num_users)
        evaluate = _evaluator(of_users, adaptation, seed)
        frame = evaluate(weights)
        labels = {
            **run.settings,
            "run": run.name,
            "algorithm": run.experiment.label,
            "seed": run.experiment.base_random_seed,
            "adaptation_learning_rate": adaptation.inner_learning_rate,
            "num_rows": adaptation.num_rows or 0,
        }
        frame = frame.assign(**labels)[[*labels, *frame.columns]]
        write_rows(frame, _results_file(paths, adaptation, run.num_users))


def _weights(run: Run, paths: RunPaths, watched: TrainingOptions):
    # Training writes even a finished run's model anew: it would be younger than the
    # evaluations that are there.
    if paths.model.is_file():
        weights, _ = trained_model.load(paths.model)
        return weights
    return train_and_save(run.experiment, paths, watched).weights


@functools.lru_cache(_MOST_EVALUATORS)
def _evaluator(of_users: tuple[str, str, int], adaptation: AdaptationConfig, seed: int):
    # Traced once for all runs on one population.
    model, store, num_users = of_users
    experiment = Experiment(model=model, store=store)
    population = build_population(experiment, pathlib.Path())
    return build_evaluator(
        build_model(experiment, population),
        population,
        adaptation,
        groups=choose_users(population, num_users, seed),
        seed=seed,
    )


def _results_files(
    run: Run, root: pathlib.Path
) -> Iterator[tuple[AdaptationConfig, pathlib.Path]]:
    paths = RunPaths(root, run.name)
    for adaptation in run.adaptations:
        yield adaptation, _results_file(paths, adaptation, run.num_users)


def _results_file(
    paths: RunPaths, adaptation: AdaptationConfig, num_users: int
) -> pathlib.Path:
    name = f"rate{adaptation.inner_learning_rate:g}-steps{adaptation.num_steps}"
    for field in ("batch_size", "num_rows"):
        value = getattr(adaptation, field)
        if value is not None:
            name += f"-{field}{value}"
    if adaptation.rows_per_class:
        name += "-per_class"
    if adaptation.moves != ALL:
        name += f"-{adaptation.moves}{adaptation.head_tensors}"
    if adaptation.pull:
        name += f"-pull{adaptation.pull:g}"
    if num_users:
        name += f"-users{num_users}"
    return paths.results / _EVALUATIONS / f"{name}.csv"
