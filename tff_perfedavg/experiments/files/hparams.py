"""Hyper-parameters of a run as CSV."""

from __future__ import annotations

import pathlib
from typing import Any

import pandas as pd

from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import atomic_write
from tff_perfedavg.settings import values_of


def told(experiment: Experiment) -> dict[str, Any]:
    """Returns all settings by name, with those that its algorithm alone has.

    Checkpoints leave out those of them that are at their defaults.
    """
    return {**experiment.flat(), **values_of(experiment.local.config)}


def write(experiment: Experiment, path: pathlib.Path) -> None:
    """Writes the settings as CSV: a name and a value on each line.

    Args:
      experiment: the settings.
      path: the file.
    """
    settings = pd.Series(told(experiment))
    with atomic_write(path) as file:
        settings.to_csv(file, index_label="name", header=["value"])
