"""TFF's runtime on this machine, in a worker process that never outlives us.

TFF runs computations in a C++ worker process of its own. The stock context lets
that process inherit standard output and does not end it at every exit, so that a
piped command can hang for ever. Here the worker writes to a log file, dies with
its parent whatever way that ends, and a worker that dies is an error, not an
endless retry.
"""

from __future__ import annotations

import atexit
import collections
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grpc
import portpicker
import tensorflow_federated as tff

from tff_perfedavg import errors

_START_TIMEOUT_SECONDS = 120
_MAX_MESSAGE_BYTES = 2**31 - 1
_PR_SET_PDEATHSIG = 1
_LOG_TAIL_BYTES = 2000
_MOST_EXECUTORS = 8
_MOST_COMPUTATIONS = 8


class WorkerError(errors.PerFedAvgError, RuntimeError):
    """A TFF worker process could not be started or has ended."""


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
            raise WorkerError("A TFF worker must be started from the main thread.")
        program = pathlib.Path(tff.__file__).parent / "data" / "worker_binary"
        if not program.is_file():
            raise WorkerError(
                f"No worker program at {program}; reinstall tensorflow-federated."
            )
        self.port = portpicker.pick_unused_port()
        environment = {
            # Warnings and errors only; the start-up notices concern nobody.
            "TF_CPP_MIN_LOG_LEVEL": "1",
            # Clients run side by side; the threads of their operations would contend
            # for the same cores.
            "TF_NUM_INTRAOP_THREADS": "1",
            **os.environ,
        }
        # An unnamed file: nothing to clean up, whatever way the processes end.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this call
        libc = ctypes.CDLL(None)

        def prepare():
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # Ctrl-C reaches every process of the terminal; it is our parent's to say.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        self._process = subprocess.Popen(
            [program, f"--port={self.port}"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=prepare,
        )
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def check_alive(self) -> None:
        """Raises `WorkerError`, with the end of its log, if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise WorkerError(
                f"The TFF worker process {self.pid} ended with code {code}. The end "
                f"of its log:\n{self.log_tail()}"
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


class _Executor(tff.framework.RemoteExecutor):
    """Sends a computation to the worker once, where TFF's sends it at every call."""

    def __init__(self, stub: tff.framework.RemoteExecutorStub):
        super().__init__(stub)
        self._sent: collections.OrderedDict[int, tuple] = collections.OrderedDict()

    async def create_value(self, value, type_spec=None):
        if not isinstance(type_spec, tff.FunctionType):
            return await super().create_value(value, type_spec)
        # By identity, since hashing a computation serializes it.
        if id(value) not in self._sent:
            sent = await super().create_value(value, type_spec)
            self._sent[id(value)] = (value, sent)
            if len(self._sent) > _MOST_COMPUTATIONS:
                self._sent.popitem(last=False)
        self._sent.move_to_end(id(value))
        return self._sent[id(value)][1]

    def close(self):
        # First, so that what is sent is forgotten here and not at the worker, too.
        super().close()
        self._sent.clear()


class _FewExecutors(tff.framework.ExecutorFactory):
    """Keeps an executor for each of the numbers of clients last seen.

    The worker holds compiled graphs, some 25 MB for a small model, for every executor.
    TFF's own factory forgets to close those it drops, so that cohorts of changing size
    let the worker grow without end.
    """

    def __init__(self, worker: Worker, stub: tff.framework.RemoteExecutorStub):
        self._worker = worker
        self._stub = stub
        self._executors: collections.OrderedDict[tuple, _Executor] = (
            collections.OrderedDict()
        )

    def create_executor(self, cardinalities):
        self._worker.check_alive()
        key = _key(cardinalities)
        if key not in self._executors:
            if len(self._executors) >= _MOST_EXECUTORS:
                _, oldest = self._executors.popitem(last=False)
                oldest.close()
            executor = _Executor(self._stub)
            executor.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
            self._executors[key] = executor
        self._executors.move_to_end(key)
        return self._executors[key]

    def close(self):
        """Closes all executors."""
        while self._executors:
            self._executors.popitem()[1].close()

    def clean_up_executor(self, cardinalities):
        executor = self._executors.pop(_key(cardinalities), None)
        if executor is not None:
            executor.close()


def _key(cardinalities) -> tuple:
    return tuple(sorted((str(place), count) for place, count in cardinalities.items()))


class LocalRuntime:
    """One worker and the TFF context that runs computations on it."""

    def __init__(self):
        """Starts a worker and waits until it serves; see `Worker`."""
        self.worker = Worker()
        channel = grpc.insecure_channel(
            f"localhost:{self.worker.port}",
            [
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ],
        )
        stub = tff.framework.RemoteExecutorGrpcStub(channel)
        self._wait_until_ready(stub)

        executors = _FewExecutors(self.worker, stub)
        # Before the worker ends, or what it keeps for us would be missed at exit.
        atexit.register(executors.close)
        self.context = tff.framework.SyncExecutionContext(
            executor_fn=executors,
            compiler_fn=tff.backends.native.desugar_and_transform_to_native,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )

    def _wait_until_ready(self, stub) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not stub.is_ready:
            self.worker.check_alive()
            if time.monotonic() > deadline:
                raise WorkerError(
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
        raise WorkerError("TFF's worker process runs on Linux only.")
    runtime = LocalRuntime()
    tff.framework.set_default_context(runtime.context)
    return runtime
