"""A user's own model, named by a file and a function in it: `my_model.py:build`."""

from __future__ import annotations

import importlib.util
import pathlib

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.keras_model import from_keras
from tff_perfedavg.models.model import Model


def build_own_model(
    name: str,
    input_shape: tuple[int, ...],
    num_outputs: int,
    seed: int,
    *,
    has_classes: bool = True,
) -> Model:
    """Runs the user's function and returns the model it gives.

    Args:
      name: `FILE.py:FUNCTION`; the function takes `(input_shape, num_outputs)` and
        returns a Keras model, or a `Model`.
      input_shape: shape of one row's features.
      num_outputs: number of classes, or entries of a label.
      seed: of Keras' initial weights, so that they are the same every time.
      has_classes: whether labels are classes.

    Raises:
      ConfigError: if there is no such file or function.
      ModelError: if the function returns something else, or a model that cannot be
        used (see `from_keras`).
    """
    file, _, function = name.rpartition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise errors.ConfigError(f"model is {name!r}; there is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        raise errors.ConfigError(f"model is {name!r}; {path} has no {function}().")
    tf.keras.utils.set_random_seed(seed % 2**32)
    model = build(input_shape, num_outputs)
    if isinstance(model, tf.keras.Model):
        if not has_classes:
            raise errors.ModelError(
                f"{name} returned a Keras model, which is taken for a classifier, but "
                "the labels are no classes; use the model mlp_regressor, or return a "
                "Model of your own."
            )
        return from_keras(model)
    if not isinstance(model, Model):
        raise errors.ModelError(
            f"{name} returned a {type(model).__name__}; return a tf.keras.Model."
        )
    return model
