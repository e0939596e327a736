"""TFF's runtime on this machine: a worker process that is killed with its parent.

TFF runs computations in a C++ worker process of its own. The stock context lets
that process inherit standard output and does not end it at every exit, so that a
piped command can hang for ever. Here the worker writes to a log file, is killed with
its parent whatever way that ends (PR_SET_PDEATHSIG), and a worker that dies is an
error, not an endless retry.

TFF's worker listens on every address of its network and asks nobody who they are. Here
that network is a namespace of its own, and nobody but this process reaches it.
"""

from __future__ import annotations

import atexit
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

import grpc
import portpicker
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.runtime import private_worker, worker_process
from tff_perfedavg.runtime.executors import FewExecutors, channel_options
from tff_perfedavg.runtime.exit_codes import explain, remedies

_START_TIMEOUT_SECONDS = 120
_LOG_TAIL_BYTES = 2000
_OPEN = """\
WARNING: this system does not let TFF's worker have a network of its own ({reason}), so
it listens on a port of every address of this machine, without a password, as long as
this process runs: whoever reaches it can run any computation as you. Allow network
namespaces (sysctl: user.max_net_namespaces and, for users other than root,
kernel.apparmor_restrict_unprivileged_userns), or keep a firewall before it."""


# Isolated (-I): what stands in the directory where a command is given is no code of
# ours. Behind everything else, this very package.
_RUN_PRIVATE = f"""
import sys
sys.path.append({str(pathlib.Path(__file__).parents[2])!r})
from tff_perfedavg.runtime.private_worker import main
main()
"""
_told: set[str] = set()


def _warn_once(reason: str) -> None:
    if reason not in _told:
        _told.add(reason)
        print(_OPEN.format(reason=reason), file=sys.stderr)


class Worker:
    """A TFF worker process on this machine that serves this process alone.

    The process ends with `stop`, at the interpreter's exit, and is killed by the kernel
    if this process is.

    Attributes:
      target: where gRPC reaches it.
      is_private: whether nobody else does; the system may not allow that.
      pid: the worker's process number.
    """

    def __init__(self, *, private: bool = True):
        """Starts the process; must be called from the main thread.

        Args:
          private: keep everybody else from it. Without, it listens on every address,
            as TFF's own does: to measure what that is worth.

        Raises:
          WorkerError: off the main thread (the kernel would end the worker with
            that thread), or where this TFF package has no worker program.
        """
        if threading.current_thread() is not threading.main_thread():
            raise errors.WorkerError(
                "A TFF worker must be started from the main thread."
            )
        # An unnamed file: nothing to clean up, whatever way the processes end.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this call
        self._program = worker_process.find_program()
        self.is_private = private and self._start_private()
        if not self.is_private:
            self._start_open()
        atexit.register(self.stop)

    def _start_private(self) -> bool:
        """Starts it in a network of its own; False where the system refuses one.

        Whatever else fails is an error: nothing but that refusal opens the worker.
        """
        with socket.socket(socket.AF_UNIX) as listening:
            # In the abstract namespace, so that no file is left; the kernel finds a
            # name. What it is relayed to only the relay knows, which asks who connects.
            listening.bind("")
            listening.listen()
            self.target = f"unix-abstract:{listening.getsockname()[1:].decode()}"
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-c", _RUN_PRIVATE),
                    str(listening.fileno()),
                    str(os.getpid()),
                    str(self._program),
                ],
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                # No signal to our group ends it.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        answer, _, rest = self._process.stdout.readline().strip().partition(" ")
        if answer == private_worker.STARTED:
            self.pid = int(rest)
            return True
        self._process.wait()
        if answer == private_worker.REFUSED:
            _warn_once(rest)
            return False
        raise errors.WorkerError(
            f"The TFF worker process could not be started. The end of its log:\n"
            f"{self.log_tail()}"
        )

    def _start_open(self) -> None:
        """Starts it as TFF does, on a port of every address."""
        port = portpicker.pick_unused_port()
        self.target = f"localhost:{port}"
        self._process = worker_process.start_process(port, self._log, self._program)
        self.pid = self._process.pid

    def check_alive(self) -> None:
        """Raises `WorkerError`, with the end of its log, if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise errors.WorkerError(
                f"The TFF worker process {self.pid} ended with {explain(code)}. The "
                f"end of its log:\n{self.log_tail()}",
                remedies=remedies(code),
            )

    def log_tail(self) -> str:
        """Returns the tail of the worker's log."""
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
    """One worker and the TFF execution context that runs computations on it."""

    def __init__(self, *, private: bool = True):
        """Starts a worker and waits until it serves; see `Worker`."""
        self.worker = Worker(private=private)
        channel = grpc.insecure_channel(self.worker.target, channel_options())
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

    def _wait_until_ready(self, stub: tff.framework.RemoteExecutorGrpcStub) -> None:
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
