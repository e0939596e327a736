"""Per-user results as CSV."""

from __future__ import annotations

import pathlib

import pandas as pd

from tff_perfedavg.files import atomic_write


def write_rows(per_user: pd.DataFrame, path: pathlib.Path) -> pathlib.Path:
    """Writes per-user rows as CSV and returns the path.

    Args:
      per_user: one row per user and step, or per baseline and user.
      path: the file.
    """
    with atomic_write(path) as file:
        per_user.to_csv(file, index=False)
    return path
