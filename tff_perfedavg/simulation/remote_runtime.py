"""TFF's runtime on several machines: a cohort spread over workers that may fail.

Each worker is a TFF worker process that `scripts/start_worker.py` started. A cohort is
cut into as many parts as there are workers; a part whose worker is lost is done
again by one that is left, so that a loss costs that part's time and not the run, and
the result is the same. A worker that answers again is used again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import tensorflow_federated as tff
import tqdm

from tff_perfedavg import errors
from tff_perfedavg.simulation.executors import (
    FewExecutors,
    channel_options,
    compile_computation,
)

# Not a method it has: that it says so is the heartbeat.
_HEARTBEAT = "/tensorflow_federated.v0.ExecutorGroup/Heartbeat"
_LOST_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    # What it says when it was started anew and knows nothing of us.
    grpc.StatusCode.FAILED_PRECONDITION,
}


class WorkerLost(errors.WorkerError):
    """A worker stopped answering in the middle of its work."""


class RemoteWorker:
    """A worker elsewhere, and whether it answers."""

    def __init__(self, address: str, heartbeat_seconds: float, patience_seconds: float):
        """Takes a worker's address; `connect` reaches it.

        Args:
          address: `host:port`.
          heartbeat_seconds: between two heartbeats.
          patience_seconds: without an answer, after which it counts as lost.
        """
        self.address = address
        self.alive = False
        self._heartbeat_seconds = heartbeat_seconds
        self._patience_seconds = patience_seconds
        self._channel: grpc.Channel | None = None
        self._executors: FewExecutors | None = None
        self._context: tff.framework.AsyncExecutionContext | None = None

    def answers(self) -> bool:
        """Whether it answers at all; on a connection of its own."""
        with grpc.insecure_channel(self.address, channel_options()) as channel:
            beat = channel.unary_unary(_HEARTBEAT)
            try:
                beat(b"", timeout=self._heartbeat_seconds)
            except grpc.RpcError as e:
                return e.code() == grpc.StatusCode.UNIMPLEMENTED
        return True

    def connect(self) -> None:
        """Makes a new connection, forgetting what was on the one before."""
        self.disconnect()
        self._channel = grpc.insecure_channel(self.address, channel_options())
        self._executors = FewExecutors(_Stub(self._channel, self.address))
        self._context = tff.framework.AsyncExecutionContext(
            executor_fn=self._executors,
            compiler_fn=compile_computation,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )

    def disconnect(self) -> None:
        """Ends the connection; work under way raises `WorkerLost`."""
        self.alive = False
        if self._channel is not None:
            self._channel.close()

    def run(self, computation, argument) -> Any:
        """Runs a computation on it.

        Raises:
          WorkerLost: if it stops answering.
        """
        assert self._context is not None
        return asyncio.run(self._context.invoke(computation, argument))

    def watch(self) -> None:
        """Returns when it has not answered for as long as patience lasts."""
        last = time.monotonic()
        while self.alive and time.monotonic() - last < self._patience_seconds:
            if self.answers():
                last = time.monotonic()
            time.sleep(self._heartbeat_seconds)


class _Stub(tff.framework.RemoteExecutorStub):
    """Tells a lost worker from a computation that fails."""

    def __init__(self, channel: grpc.Channel, address: str):
        self._inner = tff.framework.RemoteExecutorGrpcStub(channel)
        self._address = address

    def _call(self, function: Callable, request):
        try:
            return function(request)
        except tff.framework.RetryableError as e:
            # As it is, it would be tried again on the same worker, for ever.
            raise WorkerLost(f"{self._address}: {_reason(e)}") from e
        except grpc.RpcError as e:
            if e.code() in _LOST_CODES:
                raise WorkerLost(f"{self._address}: {_reason(e)}") from e
            raise
        except ValueError as e:
            # A call on a connection that was ended meanwhile.
            raise WorkerLost(f"{self._address}: {e}") from e

    def get_executor(self, request):
        return self._call(self._inner.get_executor, request)

    def create_value(self, request):
        return self._call(self._inner.create_value, request)

    def create_struct(self, request):
        return self._call(self._inner.create_struct, request)

    def create_call(self, request):
        return self._call(self._inner.create_call, request)

    def create_selection(self, request):
        return self._call(self._inner.create_selection, request)

    def compute(self, request):
        return self._call(self._inner.compute, request)

    def dispose(self, request):
        # Comes from the garbage collector; a lost worker has nothing to forget.
        try:
            return self._call(self._inner.dispose, request)
        except WorkerLost:
            return None

    def dispose_executor(self, request):
        try:
            return self._call(self._inner.dispose_executor, request)
        except WorkerLost:
            return None

    @property
    def is_ready(self):
        return self._inner.is_ready


class WorkerPool:
    """Workers that take each other's place."""

    def __init__(
        self,
        addresses: Sequence[str],
        check: Callable[[RemoteWorker], None],
        *,
        heartbeat_seconds: float = 2.0,
        patience_seconds: float = 20.0,
        return_seconds: float = 120.0,
    ):
        """Reaches all workers; from then on any may come and go.

        Args:
          addresses: `host:port` of each.
          check: called whenever a worker was reached, before it gets work; raises if
            it is not fit for it.
          heartbeat_seconds: between two heartbeats.
          patience_seconds: without an answer, after which a worker counts as lost.
          return_seconds: how long to wait for any worker once all are lost.

        Raises:
          WorkerError: naming the first that does not answer.
        """
        self._check = check
        self._return_seconds = return_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._change = threading.Condition()
        self._closed = threading.Event()
        self._busy: set[RemoteWorker] = set()
        self.workers = [
            RemoteWorker(a, heartbeat_seconds, patience_seconds) for a in addresses
        ]
        deadline = time.monotonic() + patience_seconds
        for worker in self.workers:
            while not worker.answers():
                if time.monotonic() > deadline:
                    raise errors.WorkerError(
                        f"No worker answers at {worker.address}; start it there with "
                        "scripts/start_worker.py, and see that the address can be "
                        "reached from here."
                    )
                time.sleep(0.2)
            worker.connect()
            check(worker)
            worker.alive = True
        for worker in self.workers:
            threading.Thread(target=self._keep, args=[worker], daemon=True).start()

    def close(self) -> None:
        """Stops watching and ends all connections."""
        self._closed.set()
        for worker in self.workers:
            worker.disconnect()

    def run(self, computation, argument) -> Any:
        """Runs a computation on a worker that is free, on another if that is lost.

        Raises:
          WorkerError: if all are lost and none comes back in time.
        """
        while True:
            worker = self._take()
            try:
                return worker.run(computation, argument)
            except WorkerLost as e:
                self._lose(worker, str(e))
            finally:
                with self._change:
                    self._busy.discard(worker)
                    self._change.notify_all()

    def _take(self) -> RemoteWorker:
        deadline = time.monotonic() + self._return_seconds
        with self._change:
            while True:
                free = [w for w in self.workers if w.alive and w not in self._busy]
                if free:
                    self._busy.add(free[0])
                    return free[0]
                if any(w.alive for w in self.workers):
                    # Busy ones will be free, however long it takes.
                    deadline = time.monotonic() + self._return_seconds
                elif time.monotonic() > deadline:
                    raise errors.WorkerError(
                        f"No worker is left of {self._names()}, and none came back in "
                        f"{self._return_seconds:g} s. Start one and run the same "
                        "command again."
                    )
                self._change.wait(timeout=1.0)

    def _lose(self, worker: RemoteWorker, reason: str) -> None:
        with self._change:
            was_alive = worker.alive
            worker.disconnect()
            self._change.notify_all()
        if was_alive:
            _tell(f"Worker {reason}. Its part goes to the others.")

    def _keep(self, worker: RemoteWorker) -> None:
        """Watches a worker until the pool is closed."""
        while not self._closed.is_set():
            if worker.alive:
                worker.watch()
                if not self._closed.is_set():
                    self._lose(worker, f"{worker.address}: no heartbeat")
            if self._closed.wait(self._heartbeat_seconds) or not worker.answers():
                continue
            try:
                worker.connect()
                self._check(worker)
            except errors.PerFedAvgError as e:
                _tell(f"Worker {worker.address} is back but cannot be used: {e}")
                worker.disconnect()
                continue
            with self._change:
                worker.alive = True
                self._change.notify_all()
            _tell(f"Worker {worker.address} is back.")

    def _names(self) -> str:
        return ", ".join(worker.address for worker in self.workers)


class _PartContext(tff.framework.AsyncContext):
    """Runs one part of a round on whichever worker is free."""

    def __init__(self, pool: WorkerPool, threads: concurrent.futures.Executor):
        self._pool = pool
        self._threads = threads

    async def invoke(self, comp, arg):
        if asyncio.iscoroutine(arg):
            arg = await arg
        # In a thread: a worker's answer is waited for without letting others run.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._pool.run, comp, arg)


class RemoteContext(tff.framework.SyncContext):
    """Runs what has clients in parts on a pool, and the rest on one worker."""

    def __init__(self, pool: WorkerPool):
        threads = concurrent.futures.ThreadPoolExecutor(len(pool.workers))
        parts = [_PartContext(pool, threads) for _ in pool.workers]
        self._pool = pool
        self._in_parts = tff.backends.native.create_mergeable_comp_execution_context(
            parts
        )

    def invoke(self, comp, arg):
        if not tff.types.contains(comp.type_signature, _is_at_clients):
            return self._pool.run(comp, arg)
        return self._in_parts.invoke(comp, arg)


def use_remote_runtime(
    addresses: Sequence[str], check: Callable[[RemoteWorker], None], **settings
) -> WorkerPool:
    """Reaches workers and makes a context on them TFF's default.

    Args:
      addresses: `host:port` of each.
      check: as for `WorkerPool`.
      **settings: other arguments of `WorkerPool`.

    Raises:
      WorkerError: naming the first worker that does not answer.
    """
    pool = WorkerPool(addresses, check, **settings)
    tff.framework.set_default_context(RemoteContext(pool))
    return pool


def _is_at_clients(type_spec: tff.Type) -> bool:
    return (
        isinstance(type_spec, tff.FederatedType) and type_spec.placement is tff.CLIENTS
    )


def _reason(error: Exception) -> str:
    inner = error.args[0] if error.args else error
    code = getattr(inner, "code", None)
    return f"it is lost ({code().name if callable(code) else error})"


def _tell(text: str) -> None:
    tqdm.tqdm.write(text, file=sys.stderr)
