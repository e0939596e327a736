"""A trained initial model on disk: weights and the run that made them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from zipfile import BadZipFile

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write
from tff_perfedavg.programs.experiment import Experiment

_FORMAT_VERSION = 1


def save(
    path: pathlib.Path, weights: Sequence[np.ndarray], experiment: Experiment
) -> None:
    """Writes weights and settings as one `.npz` file, whole or not at all."""
    header = {
        "format_version": _FORMAT_VERSION,
        "num_weights": len(weights),
        "experiment": dataclasses.asdict(experiment),
    }
    arrays = {f"weight_{i}": np.asarray(w) for i, w in enumerate(weights)}
    with atomic_write(path) as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def load(path: pathlib.Path) -> tuple[list[np.ndarray], Experiment]:
    """Reads what `save` wrote.

    Raises:
      CheckpointError: naming the file, if it is missing, damaged or of another
        format version.
    """
    if not path.is_file():
        raise errors.CheckpointError(
            f"No trained model at {path}; train one with scripts/train.py."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            version = header["format_version"]
            if version != _FORMAT_VERSION:
                raise errors.CheckpointError(
                    f"{path} has format version {version}; this version of the "
                    f"library reads {_FORMAT_VERSION}."
                )
            weights = [arrays[f"weight_{i}"] for i in range(header["num_weights"])]
        return weights, Experiment(**header["experiment"])
    except errors.PerFedAvgError:
        raise
    except (OSError, EOFError, LookupError, TypeError, ValueError, BadZipFile) as e:
        raise errors.CheckpointError(
            f"{path} is no readable model file ({e}); train it again."
        ) from e
