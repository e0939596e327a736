"""Selection of runs that have a model, with warnings of the others."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tff_perfedavg import errors
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment


def with_model(runs: Sequence[RunPaths]) -> tuple[list[RunPaths], list[str]]:
    """Returns the runs that have a model, and warnings of what is amiss.

    Raises:
      CheckpointError: if none has one, of the first.
    """
    found, missing, warnings = [], [], []
    for run in runs:
        try:
            trained_model.load(run.model)
        except errors.CheckpointError as e:
            missing.append(e)
            continue
        found.append(run)
        warnings += diverged_warnings(run)
    if not found:
        raise missing[0]
    return found, [*warnings, *(f"left out: {e}" for e in missing)]


def diverged_warnings(run: RunPaths) -> list[str]:
    """Returns warnings of a run that diverged, none of one that did not."""
    if not run.diverged.is_file():
        return []
    return [
        f"{run.name} diverged; its model is that of the last round whose weights are "
        "finite, which need not make it a good one."
    ]


def diverged_experiment(paths: RunPaths) -> Experiment | None:
    """Returns the settings of a run that diverged; None if it did not.

    Raises:
      CheckpointError: if the run's word of it cannot be read.
    """
    if not paths.diverged.is_file():
        return None
    try:
        record = json.loads(paths.diverged.read_text())["experiment"]
        return Experiment.of_record(record)
    except (ValueError, TypeError, LookupError) as e:
        raise errors.CheckpointError(
            f"{paths.diverged} is unreadable ({e}); remove it and train the run again."
        ) from e
