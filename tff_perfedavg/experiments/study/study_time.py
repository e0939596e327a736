"""Wall time of a study, over all processes that worked on it."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator

from tff_perfedavg import errors
from tff_perfedavg.experiments.files import run_facts
from tff_perfedavg.files import atomic_write

_FILE = "study.time.json"


@contextlib.contextmanager
def counted(root: pathlib.Path) -> Iterator[None]:
    """Adds the time of a part of the work, also of one that fails, to the study's.

    Work that is killed is not counted from where its part began. A disk without room
    is for the work itself to tell of.

    Args:
      root: directory of the study.

    Raises:
      DataError: if the file of its time is unreadable.
    """
    # A file that is unreadable is told of before the work.
    seconds(root)
    start = time.monotonic()
    try:
        yield
    finally:
        # Read anew: another process may be at work on the study.
        facts = {
            "seconds": round(seconds(root) + time.monotonic() - start, 1),
            "machine": run_facts.machine(),
        }
        with contextlib.suppress(OSError), atomic_write(root / _FILE) as file:
            file.write(json.dumps(facts, indent=1).encode())


def seconds(root: pathlib.Path) -> float:
    """Returns the seconds counted for a study so far.

    Args:
      root: directory of the study.

    Raises:
      DataError: if the file of its time is unreadable.
    """
    return _read(root)[0]


def told(root: pathlib.Path) -> str:
    """Returns a sentence of how long a study took; empty if nothing was counted.

    Args:
      root: directory of the study.

    Raises:
      DataError: if the file of its time is unreadable.
    """
    counted_so_far, machine = _read(root)
    if not counted_so_far:
        return ""
    return (
        f"Training and evaluation took {counted_so_far / 60:.1f} minutes, as far as "
        f"counted ({machine})."
    )


def _read(root: pathlib.Path) -> tuple[float, str]:
    path = root / _FILE
    if not path.exists():
        return 0.0, ""
    try:
        facts = json.loads(path.read_text())
        return float(facts["seconds"]), str(facts["machine"])
    except (ValueError, TypeError, KeyError) as e:
        raise errors.DataError(f"{path} is unreadable ({e}); remove it.") from e
