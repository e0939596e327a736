"""Baselines of a study, evaluated once for runs that share them, and kept."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.algorithms.registry import BASELINE
from tff_perfedavg.experiments.assemble.build import build_model
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.baseline_names import (
    FEATURE_CENTROID,
    FEATURE_NEIGHBOUR,
    has_classes,
    has_own_labels,
)
from tff_perfedavg.experiments.evaluation.baselines import (
    adaptation_histograms,
    evaluate_baselines,
)
from tff_perfedavg.experiments.evaluation.evaluate_users import Draws, choose_users
from tff_perfedavg.experiments.evaluation.local_training import (
    evaluate_local_training,
)
from tff_perfedavg.experiments.evaluation.nearest_rows import evaluate_nearest
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.rows import write_rows
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.study import study_time
from tff_perfedavg.experiments.study.study import Run, diverged
from tff_perfedavg.optimization.config import AdaptationConfig

_DIRECTORY = "baselines"
_OF_FEATURES = (FEATURE_NEIGHBOUR, FEATURE_CENTROID)
# Of runs that differ in what training alone does not depend on.
_MOST_KNOWN = 32


def runs_with_baselines(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs of one method: FedAvg where it is among them, or the first's."""
    methods = [run.experiment.local.method for run in runs]
    chosen = BASELINE if BASELINE in methods else methods[0]
    return [run for run, method in zip(runs, methods, strict=True) if method == chosen]


def run_baselines(
    runs: Sequence[Run],
    root: pathlib.Path,
    *,
    seed: int = 0,
    features_of_all: bool = False,
) -> None:
    """Evaluates the baselines of a study that are missing.

    Args:
      runs: the study's runs, trained; `runs_with_baselines` of them have baselines,
        those that diverged excepted.
      root: directory of the study.
      seed: of the adaptations' draws.
      features_of_all: whether the other runs have those in their models' features,
        where labels are users' own.
    """
    evaluated = {run.name: _evaluate for run in runs_with_baselines(runs)}
    for run in runs:
        evaluate = evaluated.get(run.name, _evaluate_features)
        if diverged(run, root) or (run.name not in evaluated and not features_of_all):
            continue
        paths = RunPaths(root, run.name)
        for adaptations in _alike(run):
            file = _file(paths, adaptations, run.num_users)
            if not paths.is_of_model(file):
                with study_time.counted(root):
                    found = evaluate(run, paths, adaptations, seed)
                if found is not None:
                    write_rows(found, file)


def read_baselines(root: pathlib.Path, runs: Sequence[Run]) -> pd.DataFrame | None:
    """Reads baselines of a study.

    Args:
      root: directory of the study.
      runs: its runs.

    Returns:
      The rows of `evaluate_baselines`, `evaluate_nearest` (where labels are users' own)
      and `evaluate_local_training`, behind columns
      for the runs' settings, `run`, `seed` and `num_rows`; None if there are none.
    """
    whole = {run.name for run in runs_with_baselines(runs)}
    frames = []
    for run in sorted(runs, key=lambda run: run.name not in whole):
        for adaptations in () if diverged(run, root) else _alike(run):
            file = _file(RunPaths(root, run.name), adaptations, run.num_users)
            if file.is_file():
                frame = pd.read_csv(file)
                # What another grid left there has its place with those runs alone.
                is_of_run = frame["baseline"].isin(_OF_FEATURES) | (run.name in whole)
                frames.append(frame[is_of_run])
    return pd.concat(frames, ignore_index=True) if frames else None


def _alike(run: Run) -> list[list[AdaptationConfig]]:
    """Returns a run's adaptations that differ in their rate alone."""
    sizes = dict.fromkeys((a.num_steps, a.num_rows) for a in run.adaptations)
    return [
        [a for a in run.adaptations if (a.num_steps, a.num_rows) == size]
        for size in sizes
    ]


def _evaluate(
    run: Run, paths: RunPaths, adaptations: Sequence[AdaptationConfig], seed: int
) -> pd.DataFrame:
    experiment, first = run.experiment, adaptations[0]
    population = build_population(experiment, paths.root)
    held, _ = trained_model.load(paths.model)
    weights = experiment.local.adaptation.weights(held)
    frames = []
    if has_classes(population):
        model = build_model(experiment, population)
        known = adaptation_histograms(population, first, seed)
        label = experiment.label
        of_all = evaluate_baselines(model, weights, population, label, known)
        groups = choose_users(population, run.num_users, seed)
        measured = np.concatenate(list(groups.values()))
        frames.append(of_all[of_all["user"].isin(measured)])
        if has_own_labels(population):
            draws = Draws(seed, run.num_users)
            frames.append(
                evaluate_nearest(model, weights, population, first, label, draws)
            )
    rates = tuple(a.inner_learning_rate for a in adaptations)
    start = experiment.base_random_seed
    of_users = (experiment.model, str(population.path), start, run.num_users)
    frames.append(_local_training(of_users, first, rates, seed))
    return _labelled(pd.concat(frames, ignore_index=True), run, first)


def _evaluate_features(
    run: Run, paths: RunPaths, adaptations: Sequence[AdaptationConfig], seed: int
) -> pd.DataFrame | None:
    """Returns the nearest rows in the features of a run's model, where there are."""
    experiment, first = run.experiment, adaptations[0]
    population = build_population(experiment, paths.root)
    model = build_model(experiment, population)
    if model.features is None or not has_own_labels(population):
        return None
    held, _ = trained_model.load(paths.model)
    weights = experiment.local.adaptation.weights(held)
    draws = Draws(seed, run.num_users)
    frame = evaluate_nearest(model, weights, population, first, experiment.label, draws)
    return _labelled(frame[frame["baseline"].isin(_OF_FEATURES)], run, first)


def _labelled(
    frame: pd.DataFrame, run: Run, adaptation: AdaptationConfig
) -> pd.DataFrame:
    labels = {
        **run.settings,
        "run": run.name,
        "seed": run.experiment.base_random_seed,
        "num_rows": adaptation.num_rows or 0,
    }
    return frame.assign(**labels)[[*labels, *frame.columns]]


@functools.lru_cache(_MOST_KNOWN)
def _local_training(
    of_users: tuple[str, str, int, int],
    adaptation: AdaptationConfig,
    rates: tuple[float, ...],
    seed: int,
) -> pd.DataFrame:
    name, store, start, num_users = of_users
    experiment = Experiment(model=name, store=store, base_random_seed=start)
    population = build_population(experiment, pathlib.Path())
    model = build_model(experiment, population)
    weights: Sequence[np.ndarray] = model.init(start)
    return evaluate_local_training(
        model, weights, population, adaptation, rates, Draws(seed, num_users)
    )


def _file(
    paths: RunPaths, adaptations: Sequence[AdaptationConfig], num_users: int
) -> pathlib.Path:
    first = adaptations[0]
    # Baselines do not depend on which weights move, nor on a pull.
    name = "-".join(f"rate{a.inner_learning_rate:g}" for a in adaptations)
    name += f"-steps{first.num_steps}"
    for field in ("batch_size", "num_rows"):
        value = getattr(first, field)
        if value is not None:
            name += f"-{field}{value}"
    if first.rows_per_class:
        name += "-per_class"
    # Who is measured is drawn from these.
    if num_users:
        name += f"-users{num_users}"
    return paths.results / _DIRECTORY / f"{name}.csv"
