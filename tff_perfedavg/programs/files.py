"""Where a run's files are, and how they are written so that none is ever half there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """The files of one run, laid out as in google-research/federated.

    Attributes:
      root: directory of all runs (`--root_output_dir`).
      name: of the run (`--experiment_name`).
    """

    root: pathlib.Path
    name: str

    @property
    def model(self) -> pathlib.Path:
        """The trained initial model."""
        return self.root / "checkpoints" / self.name / "model.npz"

    @property
    def results(self) -> pathlib.Path:
        """Directory of the run's tables and figures."""
        return self.root / "results" / self.name

    @property
    def metrics(self) -> pathlib.Path:
        """One line per round."""
        return self.results / "experiment.metrics.csv"

    @property
    def hparams(self) -> pathlib.Path:
        """The run's settings."""
        return self.results / "hparams.csv"


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file that appears at `path`, whole, when the block ends well.

    A block that fails, or a process killed inside it, leaves what was at `path`
    before. Missing directories are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are as public as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    # The rename is durable once the directory is.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
