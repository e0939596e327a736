import os

# Before TensorFlow is loaded: its start-up notices are no test output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import pytest


@pytest.fixture(scope="session")
def worker():
    """TFF's worker process on this machine that all tests share."""
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    return use_local_runtime().worker


@pytest.fixture(scope="session")
def tff(worker):
    """TFF on that process."""
    import tensorflow_federated as tff

    return tff
