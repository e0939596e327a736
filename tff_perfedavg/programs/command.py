"""What every command shares: errors without a traceback, frameworks without noise."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable

from absl import app

from tff_perfedavg import errors

# What a CPU machine prints at every import of the GPU-capable package. Anything
# else that is printed then is passed on.
_NOTICES = re.compile(
    rb"Unable to register cu(DNN|FFT|BLAS) factory|Could not find TensorRT"
    rb"|TF-TRT Warning"
)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs a command.

    An error of ours is printed as one message, with exit code 1. Anything else is
    a defect and keeps its traceback.
    """

    def checked_main(argv):
        if len(argv) > 1:
            sys.exit(f"error: unknown argument {argv[1]!r}; flags begin with --.")
        try:
            main()
        except errors.PerFedAvgError as e:
            sys.exit(f"error: {e}")

    app.run(checked_main)


def load_frameworks() -> None:
    """Imports TensorFlow and TFF; passes on what they print but known notices.

    Commands call it once their flags are checked: `--help` and a mistyped flag
    answer at once.
    """
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
