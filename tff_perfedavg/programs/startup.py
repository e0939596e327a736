"""Loads TensorFlow and TFF without their start-up notices.

Commands call `load_frameworks` once their flags are checked: `--help` and a
mistyped flag answer at once, and what a user reads is ours.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings

# What a CPU machine prints at every import of the GPU-capable package. Anything
# else that is printed then is passed on.
_NOTICES = re.compile(
    rb"Unable to register cu(DNN|FFT|BLAS) factory|Could not find TensorRT"
    rb"|TF-TRT Warning"
)


def load_frameworks() -> None:
    """Imports TensorFlow and TFF; passes on what they print but known notices."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            import tensorflow_federated  # noqa: F401 - slow, hence only here
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            captured.seek(0)
            for line in captured:
                if not _NOTICES.search(line):
                    os.write(2, line)
