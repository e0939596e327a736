"""A run's settings as a table, for those who read files by hand."""

from __future__ import annotations

import pathlib

import pandas as pd

from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import atomic_write


def write(experiment: Experiment, path: pathlib.Path) -> None:
    """Writes the settings as CSV: a name and a value on each line."""
    settings = pd.Series(experiment.flat())
    with atomic_write(path) as file:
        settings.to_csv(file, index_label="name", header=["value"])
