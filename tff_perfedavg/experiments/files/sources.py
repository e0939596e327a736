"""Hashes of a run's inputs besides its settings: user store, and given files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.population import population_path
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.model_file import (
    find_model_file,
    find_trained_model,
)
from tff_perfedavg.files import sha256


def sources_of(experiment: Experiment, population: UserStore) -> dict[str, str]:
    """Returns the SHA-256 hashes of an experiment's inputs, by path.

    Args:
      experiment: its settings.
      population: the users' store.

    Raises:
      ConfigError: if its model's file is not there.
      CheckpointError: if the file of its initial weights is not there.
    """
    sources = {str(population.path): population.fingerprint}
    if experiment.has_own_model:
        path = find_model_file(experiment.model)
        sources[str(path)] = sha256(path)
    if experiment.initial:
        path = find_trained_model(experiment.initial)
        sources[str(path)] = sha256(path)
    for path in experiment.fleet_of_run.files:
        if path.is_file():
            sources[str(path)] = sha256(path)
    return sources


def check_sources(
    experiment: Experiment, model: pathlib.Path, root: pathlib.Path
) -> None:
    """Checks that the inputs of a trained model have not changed.

    One that is not there any more has not changed.

    Args:
      experiment: of the run that trained it.
      model: `model.npz`, which knows the hashes.
      root: directory of the runs.

    Raises:
      ConfigError: if another store or file is there.
      DataError: if a file of the store is not what was written.
    """
    was, found = trained_model.load_sources(model), {}
    files = [experiment.initial, *map(str, experiment.fleet_of_run.files)]
    if experiment.has_own_model:
        files.append(experiment.model.rpartition(":")[0])
    for path in map(pathlib.Path, filter(None, files)):
        if path.is_file():
            found[str(path)] = sha256(path)
    store = population_path(experiment, root)
    if store.is_dir():
        opened = UserStore.open(store)
        # Its fingerprint is of what its header says of its files.
        opened.verify()
        found[str(opened.path)] = opened.fingerprint
    check_same_sources(model, was, found)


def check_same_sources(
    path: pathlib.Path, was: Mapping[str, str], found: Mapping[str, str]
) -> None:
    """Raises `ConfigError`, naming the input, if a hash has changed.

    Args:
      path: what was written when the hashes were those of `was`.
      was: hashes by name; what has none is not compared.
      found: the same, now.
    """
    for name, digest in found.items():
        if was.get(name, digest) != digest:
            raise errors.ConfigError(
                f"{name} is not what it was when {path} was written. Put it back, or "
                "begin the run again with --noresume (a sweep, with another "
                "--root_output_dir)."
            )
