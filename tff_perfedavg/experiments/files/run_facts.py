"""Facts of a run for reports: wall time, peak memory, machine and versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform

import psutil

from tff_perfedavg import __version__
from tff_perfedavg.files import atomic_write

_PACKAGES = ("tensorflow", "tensorflow-federated", "numpy")


def write(seconds: float, path: pathlib.Path) -> None:
    """Writes wall time, peak memory, machine and versions as JSON.

    Args:
      seconds: that the run took.
      path: the file.
    """
    facts = {
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "machine": machine(),
        "versions": versions(),
    }
    with atomic_write(path) as file:
        file.write(json.dumps(facts, indent=1).encode())


def versions() -> dict[str, str]:
    """Returns the versions that a result may depend on, by name."""
    return {
        "tff_perfedavg": __version__,
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
    }


def machine() -> str:
    """Returns the processor and its number of cores, for example `x86_64, 2 cores`."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def peak_memory_mb() -> float:
    """Returns the peak memory of this process and of its children now alive.

    Resident memory in MB, each process's own peak added up (Linux).
    """
    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        # It may have ended since it was listed.
        with contextlib.suppress(OSError, StopIteration):
            total += memory_mb(process.pid, "VmHWM")
    return total


def memory_mb(pid: int, field: str) -> float:
    """Returns a process's memory in MB, as the kernel counts it (Linux).

    Args:
      pid: the process's number.
      field: of /proc/PID/status: `VmRSS`, resident, or `VmHWM`, the largest so far.
    """
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1e3 for x in lines if x.startswith(field))
