"""Existence checks of model files, before anything is loaded."""

from __future__ import annotations

import pathlib

from tff_perfedavg import errors


def find_model_file(name: str) -> pathlib.Path:
    """Returns the file of a model named `FILE.py:FUNCTION`.

    Raises:
      ConfigError: if there is no such file.
    """
    path = pathlib.Path(name.rpartition(":")[0])
    if not path.is_file():
        raise errors.ConfigError(
            f"model is {name!r}, but there is no file {path}; write FILE.py:FUNCTION "
            "with the file's path from here."
        )
    return path


def find_trained_model(name: str | pathlib.Path) -> pathlib.Path:
    """Returns the file of a trained model.

    Raises:
      CheckpointError: if there is no such file.
    """
    path = pathlib.Path(name)
    if not path.is_file():
        raise errors.CheckpointError(
            f"No trained model at {path}; train one with scripts/train.py."
        )
    return path
