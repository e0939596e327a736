"""Loads TensorFlow without its start-up notices, and hides nothing else."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator

# What a CPU machine prints at every import of the GPU-capable package, and TensorFlow
# Lite at every conversion. Anything else that is printed then is passed on.
_NOTICES = re.compile(
    rb"Unable to register cu(DNN|FFT|BLAS) factory|Could not find TensorRT"
    rb"|TF-TRT Warning|Ignored (output_format|drop_control_dependency)"
    rb"|^INFO: Created TensorFlow Lite XNNPACK delegate"
)


def import_module(name: str) -> types.ModuleType:
    """Imports a module that loads TensorFlow; passes on all it prints but notices."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    with without_notices():
        return importlib.import_module(name)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Keeps back what is printed to standard error until the end, then without notices.

    Of the whole process, libraries written in C included.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            captured.seek(0)
            for line in captured:
                if not _NOTICES.search(line):
                    os.write(2, line)
