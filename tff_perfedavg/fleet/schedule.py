"""Schedules: logs of simulated rounds, task by task, and their files.

A schedule depends on sizes, not on weights, so it can be made before training, saved,
and replayed in training as often as one likes (`replay.Replay`).
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write

# What became of a task.
OUTCOMES = ("taken", "late", "dropped", "abandoned")
TAKEN, LATE, DROPPED, ABANDONED = range(4)
# Why it was not taken.
CAUSES = ("", "after the goal", "after the deadline", "went off", "dropped out")
NO_CAUSE, AFTER_GOAL, AFTER_DEADLINE, WENT_OFF, DROPPED_OUT = range(5)

# A user's task: where it stands (server step, attempt), the user and its class, seconds
# since the start of the simulation, seconds spent in each phase, what became of it, the
# local steps done, bytes and joules (low, middle, high). `lag` is how many versions of
# the model came between download and use, `draw` which of a user's tasks on one version
# it is: 0 in synchronous rounds.
TASK = np.dtype(
    [
        ("step", "<i4"),
        ("attempt", "<i4"),
        ("user", "<i8"),
        ("device", "<u2"),
        ("begin_s", "<f8"),
        ("down_s", "<f8"),
        ("compute_s", "<f8"),
        ("up_s", "<f8"),
        ("end_s", "<f8"),
        ("outcome", "<u1"),
        ("cause", "<u1"),
        ("lag", "<i4"),
        ("draw", "<i4"),
        ("steps", "<i4"),
        ("bytes_down", "<i8"),
        ("bytes_up", "<i8"),
        ("joules", "<f8", (3,)),
    ]
)

_VERSION = 1


class ServerStep(NamedTuple):
    """One attempt at a round, taken or abandoned, with its tasks.

    Attributes:
      number: of the round, from 0; rounds that are abandoned are tried again.
      attempt: how often it was tried before.
      waited_s: seconds until enough devices were on.
      begin_s: when tasks were sent, in seconds since the start of the simulation.
      end_s: when the server stopped waiting.
      is_taken: whether the model changed.
      tasks: `TASK` `[n]`, in the order in which devices were chosen.
    """

    number: int
    attempt: int
    waited_s: float
    begin_s: float
    end_s: float
    is_taken: bool
    tasks: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        """Tasks whose reports were taken, in the order in which devices were chosen."""
        return self.tasks[self.tasks["outcome"] == TAKEN]


class Schedule(NamedTuple):
    """A sequence of server steps.

    Attributes:
      classes: names of the fleet's device classes.
      steps: in their order.
    """

    classes: tuple[str, ...]
    steps: tuple[ServerStep, ...]

    @property
    def tasks(self) -> np.ndarray:
        """All tasks, `TASK` `[n]`."""
        return np.concatenate(
            [np.empty([0], TASK), *(step.tasks for step in self.steps)]
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the schedule atomically as .npz."""
        head = {"version": _VERSION, "classes": [*self.classes]}
        rows = [(*step[:-1], len(step.tasks)) for step in self.steps]
        with atomic_write(pathlib.Path(path)) as file:
            np.savez_compressed(
                file,
                head=np.frombuffer(json.dumps(head).encode(), np.uint8),
                steps=np.array(rows, np.float64).reshape(-1, len(ServerStep._fields)),
                tasks=self.tasks,
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> Schedule:
        """Reads what `save` wrote.

        Raises:
          DataError: if it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                head = json.loads(found["head"].tobytes())
                rows, tasks = found["steps"], found["tasks"]
            if head["version"] != _VERSION or tasks.dtype != TASK:
                raise ValueError("it is of another version")
            ends = np.cumsum(rows[:, -1]).astype(np.int64)
            steps = tuple(
                ServerStep(
                    number=int(row[0]),
                    attempt=int(row[1]),
                    waited_s=float(row[2]),
                    begin_s=float(row[3]),
                    end_s=float(row[4]),
                    is_taken=bool(row[5]),
                    tasks=tasks[end - int(row[6]) : end],
                )
                for row, end in zip(rows, ends, strict=True)
            )
            return cls(tuple(head["classes"]), steps)
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as e:
            raise errors.DataError(
                f"{path} could not be read as a schedule: {e}. Simulate it again."
            ) from e


class Summary(NamedTuple):
    """Summary statistics of server steps.

    Attributes:
      rounds: taken.
      abandoned: rounds that were abandoned.
      hours: from the start of the simulation to the last step's end.
      round_s: median seconds from the end of a round to that of the next.
      bytes_down: the server sent.
      bytes_up: the server received.
      joules: `[3]`, spent by devices: low, middle, high.
      tasks: by outcome, `[len(OUTCOMES)]`.
      wasted: shares of training seconds and of (middle) joules that went into tasks
        that were not taken.
      share_by_class: of the reports taken, `[classes]`.
    """

    rounds: int
    abandoned: int
    hours: float
    round_s: float
    bytes_down: int
    bytes_up: int
    joules: np.ndarray
    tasks: np.ndarray
    wasted: tuple[float, float]
    share_by_class: np.ndarray


def summarize(steps: Sequence[ServerStep], num_classes: int) -> Summary:
    """Computes summary statistics of server steps.

    Args:
      steps: at least one.
      num_classes: device classes of the fleet.
    """
    tasks = np.concatenate([step.tasks for step in steps])
    taken = tasks["outcome"] == TAKEN
    ends = [step.end_s for step in steps if step.is_taken]
    joules = tasks["joules"].sum(0)
    by_class = np.bincount(tasks["device"][taken], minlength=num_classes)
    return Summary(
        rounds=len(ends),
        abandoned=len(steps) - len(ends),
        hours=steps[-1].end_s / 3600,
        round_s=float(np.median(np.diff([0.0, *ends]))) if ends else np.nan,
        bytes_down=int(tasks["bytes_down"].sum()),
        bytes_up=int(tasks["bytes_up"].sum()),
        joules=joules,
        tasks=np.bincount(tasks["outcome"], minlength=len(OUTCOMES)),
        wasted=(
            _share(tasks["compute_s"][~taken].sum(), tasks["compute_s"].sum()),
            _share(tasks["joules"][~taken, 1].sum(), joules[1]),
        ),
        share_by_class=by_class / max(by_class.sum(), 1),
    )


def gini(counts: Iterable[float]) -> float:
    """Returns the Gini coefficient: 0 where all take part alike, near 1 where one does.

    Args:
      counts: how often each user took part.
    """
    ordered = np.sort(np.asarray([*counts], np.float64))
    total, n = ordered.sum(), len(ordered)
    if not total:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
