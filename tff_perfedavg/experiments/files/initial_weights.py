"""Given weights that training starts from, in the place of a model's random ones."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.models.model import Model


def starting_from(model: Model, path: pathlib.Path) -> Model:
    """Returns a model whose `init` gives the weights of a file, whatever the seed.

    Args:
      model: whose weights they are to be.
      path: `model.npz` of a run, or an `.npz` of arrays `weight_0`, `weight_1` and so
        on, which are taken in the model's dtype.

    Raises:
      CheckpointError: if the file is missing, damaged or no file of weights.
      ConfigError: if its arrays do not fit the model, or are not finite.
    """
    own = model.init(0)
    given = trained_model.load_weights(path, len(own))
    if _shapes(given) != _shapes(own):
        raise errors.ConfigError(
            f"initial is {path}, whose weights have the shapes {_told(given)}; those "
            f"of the model {model.name} are {_told(own)}. Start from weights of the "
            "same model."
        )
    pairs = [*zip(given, own, strict=True)]
    if not all(np.can_cast(g.dtype, o.dtype, "same_kind") for g, o in pairs):
        raise errors.ConfigError(
            f"initial is {path}, whose weights are "
            f"{', '.join(dict.fromkeys(str(g.dtype) for g in given))}; write float32."
        )
    weights = [np.asarray(g, o.dtype) for g, o in pairs]
    if not all(np.isfinite(w).all() for w in weights):
        raise errors.ConfigError(
            f"initial is {path}, whose weights are not finite; take another model."
        )
    return dataclasses.replace(model, init=lambda seed: [w.copy() for w in weights])


def check_is_not_written(path: pathlib.Path, paths: RunPaths) -> None:
    """Raises `ConfigError` if a run would start from a file that it writes itself."""
    own = {paths.model.absolute(), paths.best_model.absolute()}
    if path.absolute() in own:
        raise errors.ConfigError(
            f"initial is {path}, which the run {paths.name} writes; choose another "
            "--experiment_name, or start from a copy."
        )


def _shapes(weights: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    return [w.shape for w in weights]


def _told(weights: Sequence[np.ndarray]) -> str:
    return ", ".join(str([*shape]) for shape in _shapes(weights)) or "of no array"
