"""From an experiment's settings to its users."""

from __future__ import annotations

import pathlib

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.programs.experiment import Experiment
from tff_perfedavg.programs.prepare import prepare_once


def build_population(experiment: Experiment, root: pathlib.Path) -> UserStore:
    """Opens the experiment's store, or prepares its data set under `root`/stores."""
    if experiment.store:
        return UserStore.open(experiment.store)
    path = root / "stores" / experiment.store_name
    return prepare_once(experiment.data_config(), path)
