"""Reader of Omniglot's archives of drawings, 105 x 105 pixels each.

1,623 characters of 50 alphabets, each drawn by 20 people (Lake, Salakhutdinov and
Tenenbaum, 2015, "Human-level concept learning through probabilistic program induction",
Science 350). Loads nothing heavier than Pillow.
"""

from __future__ import annotations

import io
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tff_perfedavg import errors

BACKGROUND, EVALUATION = "images_background*.zip", "images_evaluation.zip"
SIDE = 28
_DRAWN = 105
# images_background/Greek/character01/0394_07.png: the seventh person's.
_NAME = re.compile(r"([^/]+)/(character\d+)/\d+_(\d+)\.png$")


# Alphabet, character and person.
_Key = tuple[str, str, int]


class Drawings(NamedTuple):
    """Drawings of characters, with their characters and alphabets.

    Attributes:
      x: uint8 `[drawings, 28, 28]`, ink bright.
      character: int `[drawings]`, numbers of `character_names`.
      alphabet: `[drawings]` names.
      character_names: of each character, `alphabet/character`.
      new_alphabets: those of `images_evaluation.zip`, if it is there.
    """

    x: np.ndarray
    character: np.ndarray
    alphabet: np.ndarray
    character_names: Sequence[str]
    new_alphabets: Sequence[str]


def read_archives(directory: pathlib.Path) -> Drawings | None:
    """Reads the archives that are in a directory; None if there are none.

    A drawing that several archives hold, as the large and the small sets of background
    alphabets do, is there once.

    Raises:
      DataError: naming the archive, if one is damaged or holds no drawings.
    """
    paths = [*sorted(directory.glob(BACKGROUND)), *directory.glob(EVALUATION)]
    found: dict[_Key, np.ndarray] = {}
    new: set[str] = set()
    for path in paths:
        try:
            for key, image in _drawings(path):
                found.setdefault(key, image)
                if path.name == EVALUATION:
                    new.add(key[0])
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise errors.DataError(f"{path} is damaged: {e}.") from e
        if not found:
            raise errors.DataError(
                f"{path} holds no drawings (alphabet/characterNN/*.png); put "
                "Omniglot's archive there."
            )
    if not paths:
        return None
    keys = sorted(found)
    names = sorted({f"{alphabet}/{character}" for alphabet, character, _ in keys})
    number = {name: i for i, name in enumerate(names)}
    return Drawings(
        shrink(np.stack([found[key] for key in keys])),
        np.array([number[f"{a}/{c}"] for a, c, _ in keys], np.int32),
        np.array([alphabet for alphabet, _, _ in keys]),
        names,
        sorted(new),
    )


def _drawings(path: pathlib.Path) -> Iterator[tuple[_Key, np.ndarray]]:
    """Yields each drawing's key, and its ink from 0 to 1."""
    # Only where it is needed: most data sets come without pictures in files.
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            match = _NAME.search(name)
            if match is None:
                continue
            with Image.open(io.BytesIO(archive.read(name))) as image:
                pixels = np.asarray(image.convert("L"), np.float32)
            if pixels.shape != (_DRAWN, _DRAWN):
                raise ValueError(f"{name} has {pixels.shape} pixels")
            yield (match[1], match[2], int(match[3])), 1 - pixels / 255


def shrink(ink: np.ndarray) -> np.ndarray:
    """Downsamples drawings by area averaging.

    Args:
      ink: float `[drawings, side, side]` from 0 to 1.

    Returns:
      uint8 `[drawings, 28, 28]`.
    """
    side = ink.shape[1]
    edges = np.arange(SIDE + 1) * (side / SIDE)
    pixels = np.arange(side)
    # How much of every pixel lies in every part of a line.
    low = np.maximum(edges[:-1, np.newaxis], pixels)
    high = np.minimum(edges[1:, np.newaxis], pixels + 1)
    share = np.maximum(high - low, 0) * (SIDE / side)
    mean = np.einsum("ay,nyx,bx->nab", share, ink, share, optimize=True)
    return np.rint(255 * mean).astype(np.uint8)
