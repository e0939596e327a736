"""Custom models, named by a file and a function in it: `my_model.py:build`."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import traceback
from collections.abc import Iterator

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.experiments.settings.model_file import find_model_file
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
    """Builds a custom model by calling its function.

    Args:
      name: `FILE.py:FUNCTION`; the function takes `(input_shape, num_outputs)` and
        returns a Keras model, or a `Model`.
      input_shape: shape of one row's features.
      num_outputs: number of classes, or entries of a label.
      seed: of Keras' initial weights, so that they are the same every time.
      has_classes: whether labels are classes.

    Raises:
      ConfigError: if there is no such file or function.
      ModelError: if the file or the function fails, with its traceback from the file
        on; if the function returns something else, or a model that cannot be used (see
        `from_keras`).
    """
    path = find_model_file(name).absolute()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _told_with_traceback(path, "could not be loaded"):
        spec.loader.exec_module(module)
    function = name.rpartition(":")[2]
    build = getattr(module, function, None)
    if not callable(build):
        raise errors.ConfigError(f"model is {name!r}; {path} has no {function}().")
    tf.keras.utils.set_random_seed(seed % 2**32)
    with _told_with_traceback(path, f"failed in {function}()"):
        model = build(input_shape, num_outputs)
    if isinstance(model, tf.keras.Model):
        return from_keras(model, is_regressor=not has_classes)
    if not isinstance(model, Model):
        raise errors.ModelError(
            f"{name} returned a {type(model).__name__}; return a tf.keras.Model."
        )
    return model


@contextlib.contextmanager
def _told_with_traceback(path: pathlib.Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:
        # From the user's file on; what is above it is ours.
        place = e.__traceback__
        while place is not None and place.tb_frame.f_code.co_filename != str(path):
            place = place.tb_next
        told = "".join(traceback.format_exception(type(e), e, place))
        raise errors.ModelError(
            f"{path} {what}: {type(e).__name__}. It is for you to mend there:\n{told}"
        ) from e
