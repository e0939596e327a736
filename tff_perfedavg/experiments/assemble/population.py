"""The user store of an experiment, opened or prepared."""

from __future__ import annotations

import os
import pathlib

from tff_perfedavg.data.config import REGRESSION
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.prepare import prepare_once
from tff_perfedavg.experiments.settings.experiment import Experiment


def build_population(
    experiment: Experiment,
    root: pathlib.Path,
    data_dir: str | os.PathLike | None = None,
) -> UserStore:
    """Opens the experiment's store, or prepares its data set under `root`/stores.

    Args:
      experiment: names the store, or the data set and how it is divided.
      root: directory of the runs.
      data_dir: where the data set's files may be; by default
        `TFF_PERFEDAVG_DATA_DIR`. It has no influence on the result.

    Raises:
      ConfigError: if the experiment's model does not suit the data set's labels.
      DataError: as `UserStore.open` and `prepare_once`.
    """
    path = population_path(experiment, root)
    if experiment.data.store:
        return UserStore.open(path)
    config = experiment.data.config(experiment.base_random_seed)
    experiment.check_model_suits(config.dataset, config.dataset not in REGRESSION)
    return prepare_once(config, path, data_dir)


def population_path(experiment: Experiment, root: pathlib.Path) -> pathlib.Path:
    """Returns the path of the experiment's store, whether it is prepared or not.

    Args:
      experiment: names the store, or the data set and how it is divided.
      root: directory of the runs.
    """
    if experiment.data.store:
        return pathlib.Path(experiment.data.store)
    return root / "stores" / experiment.data.store_name(experiment.base_random_seed)
