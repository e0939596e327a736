"""Warm start: training from given weights in the place of random ones."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.learned_rates import LearnedRates

# Of the shapes of a large model's tensors.
_MOST_TOLD = 8


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
        found = trained_model.load_weights(path)
        raise errors.ConfigError(
            f"initial is {path}, whose weights have the shapes {_told(found)}; those "
            f"of the model {model.name} are {_told(own)}. Start from weights of the "
            "same model, or train the model that they are of."
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


def rates_from(
    path: pathlib.Path, learned: LearnedRates | None
) -> tuple[list[np.ndarray] | None, str]:
    """Returns the learned rates of a file that a run goes on with.

    They are factors of the inner learning rate, as in the run that learned them.

    Args:
      path: as for `starting_from`.
      learned: how the run's rates stand behind its weights; None if it learns none.

    Returns:
      What the server holds of them, None if it begins with the algorithm's own; and
      what becomes of the file's, '' if it has none.

    Raises:
      CheckpointError: as `starting_from`.
    """
    of_file = trained_model.load_learned(path)
    if of_file is None:
        return None, ""
    theirs, held = of_file
    if learned is None or learned.grain != theirs.grain:
        why = f"its rates are {learned.grain}" if learned else "it learns no rates"
        return None, (
            f"The learned rates of {path}, {theirs.grain}, are left out of this run: "
            f"{why}."
        )
    rescaled = [h * h.dtype.type(learned.scale / theirs.scale) for h in held]
    return rescaled, f"The learned rates of {path} are taken, too."


def check_is_not_written(path: pathlib.Path, paths: RunPaths) -> None:
    """Raises `ConfigError` if a run would start from a file that it writes itself.

    Args:
      path: of the initial weights.
      paths: where the run's files are.
    """
    own = {paths.model.absolute(), paths.best_model.absolute()}
    if path.absolute() in own:
        raise errors.ConfigError(
            f"initial is {path}, which the run {paths.name} writes; choose another "
            "--experiment_name, or start from a copy."
        )


def _shapes(weights: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    return [w.shape for w in weights]


def _told(weights: Sequence[np.ndarray]) -> str:
    told = [str([*shape]) for shape in _shapes(weights)]
    if len(told) > _MOST_TOLD:
        first = ", ".join(told[: _MOST_TOLD - 1])
        return f"{first}, ..., {told[-1]} ({len(told)} tensors)"
    return ", ".join(told) or "of no array"
