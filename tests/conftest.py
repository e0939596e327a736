import os

# Before TensorFlow is loaded: its start-up notices are no test output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import pytest


@pytest.fixture(scope="session")
def tff():
    """TFF on one worker process that all tests share."""
    from tff_perfedavg.simulation.local_runtime import use_local_runtime

    use_local_runtime()
    import tensorflow_federated as tff

    return tff
