"""Loads TensorFlow without its start-up notices, and hides nothing else."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator

# What a CPU machine prints at every import of the GPU-capable package, and TensorFlow
# Lite at every conversion. Anything else that is printed then is passed on.
_NOTICES = (
    "Unable to register cu(DNN|FFT|BLAS) factory|Could not find TensorRT"
    "|TF-TRT Warning|Ignored (output_format|drop_control_dependency)"
    "|^INFO: Created TensorFlow Lite XNNPACK delegate"
)
_PATIENCE_SECONDS = 1.0
# Ctrl-C, which reaches it, too, is its parent's to say.
_FILTER = """
import re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
notices = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not notices.search(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


def import_module(name: str) -> types.ModuleType:
    """Imports a module that loads TensorFlow, without its start-up notices.

    Passes on all else that it prints.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    with without_notices():
        return importlib.import_module(name)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Filters TensorFlow's notices out of standard error.

    For the whole process, libraries written in C included; all else is passed on. By a
    process of its own, so that what TensorFlow says before it aborts is not lost with
    this one.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    passing = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _FILTER, _NOTICES],
        stdin=subprocess.PIPE,
        stdout=kept,
    )
    assert passing.stdin is not None
    os.dup2(passing.stdin.fileno(), 2)
    passing.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        # It ends when nobody holds its end of the pipe, but not before a process that
        # was started within does.
        with contextlib.suppress(subprocess.TimeoutExpired):
            passing.wait(_PATIENCE_SECONDS)
