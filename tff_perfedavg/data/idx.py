"""IDX files, the format in which MNIST and Fashion-MNIST are given out."""

from __future__ import annotations

import gzip
import math
import pathlib
import zlib

import numpy as np

from tff_perfedavg import errors

# Of either data set, by the array each holds.
MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_UBYTE = 0x08


def find(path: pathlib.Path) -> pathlib.Path | None:
    """Returns a file's path, or the path of its gzip file, or None."""
    for found in (path, path.with_name(path.name + ".gz")):
        if found.is_file():
            return found
    return None


def read(path: pathlib.Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzip-compressed if its name ends in .gz.

    Returns:
      uint8 array of the shape the file tells.

    Raises:
      DataError: naming the file, if it cannot be read, is cut short, or is no such
        file.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as e:
        raise errors.DataError(f"{path} is damaged: {e}.") from e
    # Two zeros, the type, the number of axes, then each axis as big-endian uint32.
    rank = content[3] if len(content) > 3 else 0
    start = 4 + 4 * rank
    if content[:3] != bytes([0, 0, _UBYTE]) or not rank or len(content) < start:
        raise errors.DataError(f"{path} is no IDX file of unsigned bytes.")
    shape = [int(size) for size in np.frombuffer(content, ">u4", rank, 4)]
    if math.prod(shape) != len(content) - start:
        raise errors.DataError(
            f"{path} is damaged: it has {len(content) - start} bytes where shape "
            f"{shape} needs {math.prod(shape)}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
