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

    Work that is killed is not counted from where its part began.

    Args:
      root: directory of the study.

    Raises:
      DataError: if the file of its time is unreadable.
    """
    before = seconds(root)
    start = time.monotonic()
    try:
        yield
    finally:
        total = before + time.monotonic() - start
        with atomic_write(root / _FILE) as file:
            facts = {"seconds": round(total, 1), "machine": run_facts.machine()}
            file.write(json.dumps(facts, indent=1).encode())


def seconds(root: pathlib.Path) -> float:
    """Returns the seconds that a study has taken so far.

    Args:
      root: directory of the study.

    Raises:
      DataError: if the file of its time is unreadable.
    """
    path = root / _FILE
    if not path.exists():
        return 0.0
    try:
        return float(json.loads(path.read_text())["seconds"])
    except (ValueError, TypeError, KeyError) as e:
        raise errors.DataError(f"{path} is unreadable ({e}); remove it.") from e
