"""What a run took and what it ran on, for reports."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform

import psutil

from tff_perfedavg import __version__

_PACKAGES = ("tensorflow", "tensorflow-federated", "numpy")


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
    """Returns the most memory this process and its children now alive ever had.

    Resident memory in MB, each process's own peak added up (Linux).
    """
    this = psutil.Process()
    return sum(_peak_mb(p.pid) for p in [this, *this.children(recursive=True)])


def _peak_mb(pid: int) -> float:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        # Ended since it was listed.
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return sum(int(line.split()[1]) / 1e3 for line in lines)
