"""Resuming a run: its newest checkpoint, its identity, and room on the disk."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import numpy as np
import tree

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.checkpoints import CheckpointManager, Saved
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.files.sources import (
    check_same_sources,
    check_sources,
    sources_of,
)
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.training.cohorts import secret_of
from tff_perfedavg.experiments.training.rounds import Start
from tff_perfedavg.experiments.training.run_identity import RunIdentity
from tff_perfedavg.progress import tell

# Beside what a run's checkpoints take: its metrics and its models.
_SPARE_BYTES = 20_000_000


def latest_saved(experiment: Experiment, manager: CheckpointManager) -> Saved | None:
    """Returns the newest whole checkpoint of a run; None if there is none.

    Args:
      experiment: what is to be run.
      manager: of the run's checkpoints.

    Raises:
      ConfigError: if it is of a run with other settings. More rounds than it has are
        no other settings.
      CheckpointError: if none of those there is whole.
    """
    saved = manager.latest_whole()
    if saved is not None:
        found = Experiment.of_record(saved.notes["experiment"])
        if found.total_rounds < experiment.total_rounds:
            found = found.replace(total_rounds=experiment.total_rounds)
        _check_same(saved.path, found, experiment)
    return saved


def finished_weights(
    experiment: Experiment, paths: RunPaths, saved: Saved | None
) -> list[np.ndarray] | None:
    """Returns the model of a run that is finished; None if there is more to do.

    Args:
      experiment: what is to be run.
      paths: where the run's files are.
      saved: its newest checkpoint.

    Raises:
      ConfigError: if the model is of a run with other settings, or its store or model
        file has changed.
      CheckpointError: if the model is damaged and there is no checkpoint to make it
        from.
    """
    if saved is not None and saved.version != experiment.total_rounds:
        return None
    if not paths.model.is_file():
        return None
    try:
        weights, trained = trained_model.load(paths.model)
    except errors.CheckpointError:
        # It is made again from the state, if that is there.
        if saved is None:
            raise
        return None
    if saved is None:
        _check_same(paths.model, trained, experiment)
    if trained.differences(experiment):
        return None
    check_sources(experiment, paths.model, paths.root)
    return weights


def identify(
    experiment: Experiment, population: UserStore, saved: Saved | None
) -> RunIdentity:
    """Returns the identity of a run, new or resumed.

    Args:
      experiment: what is to be run.
      population: its data.
      saved: the checkpoint that it goes on from; None for a new run.

    Raises:
      ConfigError: if what it depends on has changed since it was saved, or its model's
        file is not there.
      CheckpointError: if the file of its initial weights is not there.
    """
    sources = sources_of(experiment, population)
    if saved is not None:
        check_same_sources(saved.path, saved.notes["sources"], sources)
    secret = secret_of(experiment.samples_secretly, saved)
    return RunIdentity(experiment, sources, secret)


def go_on(saved: Saved, initial_state: Any, name: str) -> Start:
    """Returns the start of a resumed run, and tells the user.

    Args:
      saved: the checkpoint.
      initial_state: a state like the one saved.
      name: of the run.

    Raises:
      CheckpointError: if it is the state of another program.
    """
    state = saved.state(initial_state)
    tell(f"{name}: {saved.version} rounds are done.")
    return Start(saved.version, state, saved.notes)


def check_room(state: Any, paths: RunPaths, checkpoints_kept: int) -> None:
    """Raises `CheckpointError` unless a new run's files have room on the disk.

    Args:
      state: what checkpoints hold, a structure of arrays.
      paths: where the run's files are; the directory of its checkpoints is there.
      checkpoints_kept: how many are on disk at once.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in tree.flatten(state))
    # One more than are kept, while it is written, and two models.
    needed = size * (checkpoints_kept + 3) + _SPARE_BYTES
    free = shutil.disk_usage(paths.checkpoints).free
    if free < needed:
        raise errors.CheckpointError(
            f"{paths.root} has {free / 1e6:.0f} MB free; the run needs "
            f"{needed / 1e6:.0f} MB for checkpoints and metrics. Free some space, or "
            "choose another --root_output_dir."
        )


def remove(paths: RunPaths, manager: CheckpointManager) -> None:
    """Removes the files of a run that is begun anew.

    Args:
      paths: where they are.
      manager: of the run's checkpoints.
    """
    manager.clear()
    for path in (paths.model, paths.best_model):
        path.unlink(missing_ok=True)
    shutil.rmtree(paths.results, ignore_errors=True)
    shutil.rmtree(paths.logdir, ignore_errors=True)


def _check_same(path: pathlib.Path, found: Experiment, wanted: Experiment) -> None:
    differences = found.differences(wanted)
    if differences:
        raise errors.ConfigError(
            f"{path} is of a run with {differences}. Give the run's own settings, "
            "choose another --experiment_name, or begin it again with --noresume."
        )
