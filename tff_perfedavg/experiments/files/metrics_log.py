"""Metrics log as CSV, JSON lines and TensorBoard summaries, truncated on resuming."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import tensorflow as tf

from tff_perfedavg import errors


class LinesFile:
    """An append-only text file that can be truncated to an earlier position."""

    def __init__(self, path: pathlib.Path, position: int):
        """Opens the file at `position`, which becomes its end; 0 begins it anew.

        Raises:
          CheckpointError: if the file is shorter than that.
        """
        size = path.stat().st_size if path.exists() else 0
        if size < position:
            raise errors.CheckpointError(
                f"{path} has {size} bytes where the checkpoint knows of {position}; "
                "put it back, or begin again with --noresume."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115 - open as long as the run
        self._file.truncate(position)

    def write(self, line: str) -> None:
        """Adds a line; it is on disk at the next `sync`.

        This and the other methods raise `CheckpointError` if the disk does not take it.
        """
        with _refusals(self._path):
            self._file.write(line.encode() + b"\n")

    def sync(self) -> int:
        """Flushes all lines to disk (fsync) and returns the position behind them."""
        with _refusals(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        with _refusals(self._path):
            self._file.close()


class MetricsLog:
    """Rounds and evaluations as CSV, as JSON lines and for TensorBoard.

    Attributes:
      ROUNDS, EVALUATIONS, EVENTS: names of the three text files, keys of `positions`.
    """

    ROUNDS, EVALUATIONS, EVENTS = "rounds", "evaluations", "events"

    def __init__(
        self,
        files: Mapping[str, pathlib.Path],
        tensorboard: pathlib.Path,
        positions: Mapping[str, int],
    ):
        """Opens the files where a checkpoint left them.

        Args:
          files: path of each of the three text files.
          tensorboard: directory of TensorBoard's event files.
          positions: from `sync`; empty to begin anew. TensorBoard's files are not
            cut back: it is told the same values again.

        Raises:
          CheckpointError: if a file is shorter than where it was left. This and the
            methods raise it, too, if the disk does not take what they write.
        """
        self._files = {
            name: LinesFile(path, positions.get(name, 0))
            for name, path in files.items()
        }
        self._has_header = {name: bool(positions.get(name)) for name in files}
        self._tensorboard = tensorboard
        with _refusals(tensorboard):
            self._summaries = tf.summary.create_file_writer(str(tensorboard))

    def add_round(self, round_number: int, metrics: Mapping[str, Any]) -> None:
        """Adds a round's metrics.

        Args:
          round_number: the round, from 0.
          metrics: numbers by name.
        """
        row = {"round_num": round_number, **metrics}
        self._add_csv(self.ROUNDS, row)
        self._add_event({"round_num": round_number, "training": metrics})
        values = {f"training/{name}": value for name, value in metrics.items()}
        self._summarize(round_number, values)

    def add_evaluation(
        self, round_number: int, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Adds an evaluation of the weights after so many rounds.

        Args:
          round_number: rounds done.
          rows: one per group of `users` and adaptation `step`.
        """
        for row in rows:
            self._add_csv(self.EVALUATIONS, {"round_num": round_number, **row})
        self._add_event({"round_num": round_number, "evaluation": list(rows)})
        values = {
            "evaluation/" + metric_name(row["users"], name, row["step"]): row[name]
            for row in rows
            for name in ("accuracy", "loss")
        }
        self._summarize(round_number, values)

    def sync(self) -> dict[str, int]:
        """Flushes all files to disk (fsync) and returns their positions."""
        with _refusals(self._tensorboard):
            self._summaries.flush()
        return {name: file.sync() for name, file in self._files.items()}

    def close(self) -> None:
        """Closes all files."""
        with contextlib.ExitStack() as all_of_them:
            for file in self._files.values():
                all_of_them.callback(file.close)
            with _refusals(self._tensorboard):
                self._summaries.close()

    def _summarize(self, round_number: int, values: Mapping[str, float]) -> None:
        # In one event: every call leaves a kilobyte or two in memory.
        summary = tf.compat.v1.Summary(
            value=[
                tf.compat.v1.Summary.Value(tag=tag, simple_value=value)
                for tag, value in values.items()
            ]
        )
        with _refusals(self._tensorboard), self._summaries.as_default():
            tf.summary.experimental.write_raw_pb(
                summary.SerializeToString(), step=round_number
            )

    def _add_csv(self, name: str, row: Mapping[str, Any]) -> None:
        if not self._has_header[name]:
            self._files[name].write(_csv_line(row.keys()))
            self._has_header[name] = True
        self._files[name].write(_csv_line(row.values()))

    def _add_event(self, event: Mapping[str, Any]) -> None:
        self._files[self.EVENTS].write(json.dumps(_without_nan(event)))


def read_rounds(path: pathlib.Path) -> pd.DataFrame:
    """Reads the metrics of a run's rounds.

    Returns:
      One row per round, indexed by `round_num`.

    Raises:
      CheckpointError: if the file is not there.
    """
    if not path.is_file():
        raise errors.CheckpointError(
            f"{path} is missing; put it back, or begin again with --noresume."
        )
    return pd.read_csv(path, index_col="round_num")


def metric_name(users: str, quantity: str, step: int) -> str:
    """Returns an evaluation metric's name, for example `new/accuracy/1`.

    Args:
      users: the group, `seen` or `new`.
      quantity: `accuracy` or `loss`, or another column of the evaluation.
      step: of the adaptation.
    """
    return f"{users}/{quantity}/{step}"


@contextlib.contextmanager
def _refusals(path: pathlib.Path) -> Iterator[None]:
    # TensorFlow tells of a full disk in its own way.
    try:
        yield
    except (OSError, tf.errors.OpError) as e:
        reason = e.strerror if isinstance(e, OSError) else e.message.splitlines()[0]
        raise errors.CheckpointError(
            f"{path} could not be written ({reason or e}). Free some space and run the "
            "same command again: it goes on from the last checkpoint."
        ) from e


def _csv_line(values) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def _without_nan(value):
    # JSON has no word for it.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nan(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return value
