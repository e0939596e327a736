"""Models of the web app, assigned to its pages by their model cards."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from tff_perfedavg import errors
from tff_perfedavg.ondevice import card

SIGNS, DIGITS = "signs", "digits"
# The sides of the images that a drawing becomes.
_SIGN_SIDES, _DIGIT_SIDES = (28,), (8, 28)
_NUM_DIGITS = 10
_REMEDY = (
    "Give a file exported from a run of users with labels of their own, 28x28, or one "
    "of the ten digits, 8x8 or 28x28"
)


class WebModel(NamedTuple):
    """An exported file that the web app has a page for.

    Attributes:
      kind: the page, `SIGNS` or `DIGITS`.
      path: where the file was.
      content: the file.
      name: of model and data, for people.
    """

    kind: str
    path: pathlib.Path
    content: bytes
    name: str


def read(paths: Sequence[pathlib.Path]) -> list[WebModel]:
    """Reads the models of a web app, in the order of its tabs.

    Args:
      paths: one file, or one of each kind.

    Raises:
      ModelError: naming the file, if it is none that the app has a page for.
      ConfigError: if there is no file, or there are two of one kind.
    """
    if not paths:
        raise errors.ConfigError(f"model names no file. {_REMEDY}.")
    found: dict[str, WebModel] = {}
    for path in paths:
        content, facts = card.read(path)
        kind = _kind(path, facts)
        if kind in found:
            raise errors.ConfigError(
                f"{found[kind].path} and {path} are both for the page of {kind}, which "
                "has one model; give one of them."
            )
        name = ", ".join(filter(None, (facts.get("model"), facts.get("dataset"))))
        found[kind] = WebModel(kind, path, content, name)
    return [found[kind] for kind in (SIGNS, DIGITS) if kind in found]


def _kind(path: pathlib.Path, facts: dict[str, Any]) -> str:
    shape, classes = facts.get("input_shape") or [0], facts.get("num_classes")
    side = math.isqrt(math.prod(shape))
    if side * side == math.prod(shape):
        if facts.get("own_labels"):
            if side in _SIGN_SIDES:
                return SIGNS
        elif side in _DIGIT_SIDES and classes == _NUM_DIGITS:
            return DIGITS
    raise errors.ModelError(
        f"{path} tells {classes} classes from inputs of shape {shape}, which the page "
        f"cannot draw for. {_REMEDY}."
    )
