"""Loads TensorFlow without its start-up notices, and hides nothing else."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
import types
import warnings

# What a CPU machine prints at every import of the GPU-capable package. Anything
# else that is printed then is passed on.
_NOTICES = re.compile(
    rb"Unable to register cu(DNN|FFT|BLAS) factory|Could not find TensorRT"
    rb"|TF-TRT Warning"
)


def import_module(name: str) -> types.ModuleType:
    """Imports a module that loads TensorFlow; passes on all it prints but notices."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            return importlib.import_module(name)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            captured.seek(0)
            for line in captured:
                if not _NOTICES.search(line):
                    os.write(2, line)
