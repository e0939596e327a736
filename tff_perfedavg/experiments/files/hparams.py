"""A run's settings as a table, for those who read files by hand."""

from __future__ import annotations

import pathlib
from typing import Any

import pandas as pd

from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import atomic_write
from tff_perfedavg.settings import values_of


def told(experiment: Experiment) -> dict[str, Any]:
    """Returns the settings by name, with all that its algorithm alone has.

    Checkpoints leave out those of them that are at their defaults.
    """
    return {**experiment.flat(), **values_of(experiment.local.config)}


def write(experiment: Experiment, path: pathlib.Path) -> None:
    """Writes the settings as CSV: a name and a value on each line."""
    settings = pd.Series(told(experiment))
    with atomic_write(path) as file:
        settings.to_csv(file, index_label="name", header=["value"])
