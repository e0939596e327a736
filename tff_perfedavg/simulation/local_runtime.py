"""TFF's runtime on this machine, in a worker process that never outlives us.

TFF runs computations in a C++ worker process of its own. The stock context lets
that process inherit standard output and does not end it at every exit, so that a
piped command can hang for ever. Here the worker writes to a log file, dies with
its parent whatever way that ends, and a worker that dies is an error, not an
endless retry.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import threading
import time

import grpc
import portpicker
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.simulation import worker_process
from tff_perfedavg.simulation.executors import FewExecutors, channel_options
from tff_perfedavg.simulation.exit_codes import explain

_START_TIMEOUT_SECONDS = 120
_LOG_TAIL_BYTES = 2000


class Worker:
    """A TFF worker process on this machine.

    The process ends with `stop`, at the interpreter's exit, and by the kernel's
    hand if this process is killed.
    """

    def __init__(self):
        """Starts the process; must be called from the main thread.

        Raises:
          WorkerError: off the main thread (the kernel would end the worker with
            that thread), or where this TFF package has no worker program.
        """
        if threading.current_thread() is not threading.main_thread():
            raise errors.WorkerError(
                "A TFF worker must be started from the main thread."
            )
        self.port = portpicker.pick_unused_port()
        # An unnamed file: nothing to clean up, whatever way the processes end.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this call
        self._process = worker_process.start_process(self.port, self._log)
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def check_alive(self) -> None:
        """Raises `WorkerError`, with the end of its log, if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise errors.WorkerError(
                f"The TFF worker process {self.pid} ended with {explain(code)}. The "
                f"end of its log:\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """Returns the end of what the process printed."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - _LOG_TAIL_BYTES)
        return os.pread(self._log.fileno(), size - start, start).decode(
            errors="replace"
        )

    def stop(self) -> None:
        """Ends the process; does nothing if it has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class LocalRuntime:
    """One worker and the TFF context that runs computations on it."""

    def __init__(self):
        """Starts a worker and waits until it serves; see `Worker`."""
        self.worker = Worker()
        channel = grpc.insecure_channel(
            f"localhost:{self.worker.port}",
            channel_options(),
        )
        stub = tff.framework.RemoteExecutorGrpcStub(channel)
        self._wait_until_ready(stub)

        executors = FewExecutors(stub, self.worker.check_alive)
        # Before the worker ends, or what it keeps for us would be missed at exit.
        atexit.register(executors.close)
        self.context = tff.framework.SyncExecutionContext(
            executor_fn=executors,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )

    def _wait_until_ready(self, stub) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not stub.is_ready:
            self.worker.check_alive()
            if time.monotonic() > deadline:
                raise errors.WorkerError(
                    f"The TFF worker process does not serve after "
                    f"{_START_TIMEOUT_SECONDS} s. The end of its log:\n"
                    f"{self.worker.log_tail()}"
                )
            time.sleep(0.05)


def use_local_runtime() -> LocalRuntime:
    """Starts a local runtime and makes its context TFF's default.

    Call it from the main thread, before any TFF computation runs.
    """
    if sys.platform != "linux":
        raise errors.WorkerError("TFF's worker process runs on Linux only.")
    runtime = LocalRuntime()
    tff.framework.set_default_context(runtime.context)
    return runtime
