"""A trained initial model on disk: weights and the run that made them."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.model_file import find_trained_model
from tff_perfedavg.files import atomic_write
from tff_perfedavg.optimization.learned_rates import LearnedRates

_FORMAT_VERSION = 1


def save(
    path: pathlib.Path,
    weights: Sequence[np.ndarray],
    experiment: Experiment,
    sources: Mapping[str, str] | None = None,
) -> None:
    """Writes weights and settings as one `.npz` file, whole or not at all.

    Args:
      path: the file.
      weights: the initial model.
      experiment: the settings of the run that made it.
      sources: hashes of what else the run depended on, by name.
    """
    header = {
        "format_version": _FORMAT_VERSION,
        "num_weights": len(weights),
        "experiment": experiment.flat(),
        "sources": dict(sources or {}),
    }
    arrays = {f"weight_{i}": np.asarray(w) for i, w in enumerate(weights)}
    with atomic_write(path) as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def load(path: pathlib.Path) -> tuple[list[np.ndarray], Experiment]:
    """Reads the weights and settings that `save` wrote.

    Raises:
      CheckpointError: naming the file, if it is missing, damaged or of another
        format version.
    """
    with _opened(path) as arrays:
        header = _header(path, arrays)
        experiment = Experiment.of_record(header["experiment"])
        return _weights(arrays, header["num_weights"]), experiment


def load_weights(path: pathlib.Path, count: int | None = None) -> list[np.ndarray]:
    """Reads a model's weights: of what `save` wrote, or of arrays from elsewhere.

    Args:
      path: of a run's model, or of an `.npz` of `weight_0`, `weight_1` and so on.
      count: how many weights the model has. A run may keep more, behind them; other
        files may not. None for all arrays.

    Returns:
      The arrays, `count` of them where the file has so many.

    Raises:
      CheckpointError: as `load`, or if there are arrays of other names.
    """
    with _opened(path) as arrays:
        if "header" in arrays:
            return _weights(arrays, _header(path, arrays)["num_weights"])[:count]
        if {*arrays} != {f"weight_{i}" for i in range(len(arrays))}:
            raise errors.CheckpointError(
                f"{path} has arrays {', '.join(arrays)}; weights from elsewhere are "
                "named weight_0, weight_1 and so on, in the model's order."
            )
        return _weights(arrays, len(arrays))


def load_learned(path: pathlib.Path) -> tuple[LearnedRates, list[np.ndarray]] | None:
    """Reads learned rates, as the server held them, and their configuration.

    Returns:
      Both; None of a file that has none.

    Raises:
      CheckpointError: as `load`.
    """
    with _opened(path) as arrays:
        if "header" not in arrays:
            return None
    parameters, experiment = load(path)
    learned = experiment.local.adaptation.learned
    return None if learned is None else (learned, [*learned.split(parameters)[1]])


def load_sources(path: pathlib.Path) -> dict[str, str]:
    """Reads the hashes of the run's inputs, and no weights.

    Returns:
      Hashes by name; none of a file of version 0.1.0.

    Raises:
      CheckpointError: as `load`.
    """
    with _opened(path) as arrays:
        return _header(path, arrays).get("sources", {})


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Gives a file's arrays, read when asked for."""
    find_trained_model(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except errors.CheckpointError:
        raise
    except Exception as e:
        # A damaged archive is told in many ways: zlib's and struct's errors, demands
        # for a password or an unknown compression. Each member has its CRC-32, so that
        # no damage goes unseen.
        raise errors.CheckpointError(
            f"{path} is no readable model file ({e}); train it again."
        ) from e


def _header(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    header = json.loads(str(arrays["header"]))
    version = header["format_version"]
    if version != _FORMAT_VERSION:
        raise errors.CheckpointError(
            f"{path} has format version {version}; this version of the library reads "
            f"{_FORMAT_VERSION}."
        )
    return header


def _weights(arrays: Mapping[str, np.ndarray], count: int) -> list[np.ndarray]:
    return [arrays[f"weight_{i}"] for i in range(count)]
