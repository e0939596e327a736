"""Paths of a run's files."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from tff_perfedavg import errors
from tff_perfedavg.experiments.settings.experiment import Experiment

# Of a name, on Linux's file systems.
_MOST_NAME_BYTES = 255
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Paths of the files of one run, laid out as in google-research/federated.

    Attributes:
      root: directory of all runs (`--root_output_dir`).
      name: of the run (`--experiment_name`).
    """

    root: pathlib.Path
    name: str

    def __post_init__(self):
        size = len(os.fsencode(self.name))
        if size > _MOST_NAME_BYTES:
            raise errors.ConfigError(
                f"The name of the run {self.name[:_SHOWN]}... has {size} bytes, and a "
                f"directory's at most {_MOST_NAME_BYTES}; choose a shorter one."
            )

    @classmethod
    def of_model(cls, model: pathlib.Path) -> RunPaths:
        """Returns the run whose trained model is at a path."""
        directory = model.absolute().parent
        return cls(directory.parents[1], directory.name)

    def check_writable(self) -> None:
        """Checks, before any work, that the root can take the run's files.

        Raises:
          ConfigError: if it is a file, lies below one, or may not be written.
        """
        place = self.root.absolute()
        try:
            while not os.path.lexists(place):
                place = place.parent
        except OSError as e:
            reason = e.strerror
        else:
            if not place.is_dir():
                reason = f"{place} is no directory"
            elif not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
                reason = f"{place} may not be written"
            else:
                return
        raise errors.ConfigError(
            f"{self.root} cannot take a run's files: {reason}. Choose another "
            "--root_output_dir."
        )

    @property
    def model(self) -> pathlib.Path:
        """The trained initial model."""
        return self.checkpoints / "model.npz"

    @property
    def best_model(self) -> pathlib.Path:
        """The model of the evaluation that was best by the metric chosen."""
        return self.checkpoints / "best.npz"

    @property
    def checkpoints(self) -> pathlib.Path:
        """Directory of the run's state, for resuming."""
        return self.root / "checkpoints" / self.name

    @property
    def logdir(self) -> pathlib.Path:
        """Directory of TensorBoard's files."""
        return self.root / "logdir" / self.name

    @property
    def results(self) -> pathlib.Path:
        """Directory of the run's tables and figures."""
        return self.root / "results" / self.name

    @property
    def metrics(self) -> pathlib.Path:
        """One line per round."""
        return self.results / "experiment.metrics.csv"

    @property
    def evaluations(self) -> pathlib.Path:
        """One line per evaluation during training, group of users and step."""
        return self.results / "evaluation.metrics.csv"

    @property
    def per_user(self) -> pathlib.Path:
        """Per-user results of the trained model, one line per user and step."""
        return self.results / "evaluation.per_user.csv"

    @property
    def is_evaluated(self) -> bool:
        """Whether `per_user` is there and of the model that is there."""
        return self.is_of_model(self.per_user)

    @property
    def baselines(self) -> pathlib.Path:
        """Results of the baselines, one line per baseline and user."""
        return self.results / "evaluation.baselines.csv"

    @property
    def has_baselines(self) -> bool:
        """Whether `baselines` is there and of the model that is there."""
        return self.is_of_model(self.baselines)

    @property
    def report(self) -> pathlib.Path:
        """The HTML report of the run."""
        return self.results / "report.html"

    @property
    def events(self) -> pathlib.Path:
        """Rounds and evaluations as JSON lines."""
        return self.results / "experiment.metrics.jsonl"

    @property
    def fleet_tasks(self) -> pathlib.Path:
        """One line per task of a fleet."""
        return self.results / "fleet.tasks.csv"

    @property
    def fleet_rounds(self) -> pathlib.Path:
        """One line per round of a fleet, abandoned ones included."""
        return self.results / "fleet.rounds.csv"

    @property
    def facts(self) -> pathlib.Path:
        """Wall time, memory, machine and versions of the run, as JSON."""
        return self.results / "run.json"

    @property
    def diverged(self) -> pathlib.Path:
        """Marker of a run that diverged, as JSON: `round_num` and `experiment`."""
        return self.results / "diverged.json"

    @property
    def hparams(self) -> pathlib.Path:
        """The run's settings."""
        return self.results / "hparams.csv"

    def is_of_model(self, path: pathlib.Path) -> bool:
        """Whether a file and the model are there; an older one is another model's."""
        return (
            path.is_file()
            and self.model.is_file()
            and path.stat().st_mtime_ns >= self.model.stat().st_mtime_ns
        )


def run_labels(
    runs: Sequence[RunPaths], experiments: Sequence[Experiment]
) -> list[str]:
    """Returns the runs' algorithms where these differ, else the runs' names.

    A run that diverged says so behind it.

    Args:
      runs: where the runs are.
      experiments: their settings, in the same order.
    """
    labels = [experiment.label for experiment in experiments]
    if len(set(labels)) < len(labels):
        labels = [run.name for run in runs]
    return [
        f"{label} (diverged)" if run.diverged.is_file() else label
        for run, label in zip(runs, labels, strict=True)
    ]
