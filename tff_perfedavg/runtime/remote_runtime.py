"""Distributed, fault-tolerant TFF runtime: a cohort spread over remote workers.

Each worker is a TFF worker process that `worker_process.serve` runs. A cohort is
cut into as many parts as there are workers; a part whose worker is lost is done
again by one that is left, so that a loss costs that part's time and not the run, and
the result is the same. A worker that answers again is used again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import tensorflow_federated as tff
import tqdm

from tff_perfedavg import errors
from tff_perfedavg.runtime.executors import FewExecutors, channel_options

_SERVICE = "/tensorflow_federated.v0.ExecutorGroup/"
# Unimplemented on purpose: an UNIMPLEMENTED reply proves liveness.
_HEARTBEAT = _SERVICE + "Heartbeat"
_DISPOSE_EXECUTOR = _SERVICE + "DisposeExecutor"
# For a worker to forget a run; one that does not answer keeps nobody waiting.
_DISPOSAL_SECONDS = 5.0
_LOST_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    # What it says when it was started anew and knows nothing of us.
    grpc.StatusCode.FAILED_PRECONDITION,
}


# Of each worker, over one shard of a cohort, before it is given up.
_MOST_LOSSES = 2


class WorkerLost(errors.WorkerError):
    """A worker stopped answering in the middle of its work."""


class Connection:
    """A gRPC connection to a remote worker."""

    def __init__(self, address: str):
        """Opens the connection; the worker need not be there yet.

        Args:
          address: `host:port`.
        """
        self.address = address
        self._channel = grpc.insecure_channel(address, channel_options())
        self._executors = FewExecutors(_Stub(self._channel, address))
        self._context = tff.framework.AsyncExecutionContext(
            executor_fn=self._executors,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )

    def answers(self, within_seconds: float) -> bool:
        """Sends a heartbeat: whether the worker answers it within a time limit.

        It goes over the connection of its work.
        """
        try:
            self._channel.unary_unary(_HEARTBEAT)(b"", timeout=within_seconds)
        except grpc.RpcError as e:
            return e.code() == grpc.StatusCode.UNIMPLEMENTED
        except ValueError:
            # The connection was ended meanwhile.
            return False
        return True

    def run(self, computation, argument) -> Any:
        """Runs a computation on the worker.

        Args:
          computation: a TFF computation, which its first call compiles.
          argument: its argument; None if it takes none.

        Returns:
          The computation's result.

        Raises:
          WorkerLost: if it stops answering, or the connection is ended.
        """
        return asyncio.run(self._context.invoke(computation, argument))

    def close(self, *, lost: bool = False) -> None:
        """Ends the connection; work under way raises `WorkerLost`.

        Args:
          lost: the worker does not answer. One that does is told to forget the
            executors: it would keep their graphs and values, some 10 MB for a small
            model, for as long as it serves.
        """
        if not lost:
            self._executors.close()
        self._channel.close()


@dataclasses.dataclass(eq=False)
class RemoteWorker:
    """A remote worker of a pool.

    Attributes:
      address: `host:port`.
      connection: None while it is lost.
    """

    address: str
    connection: Connection | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be given work."""
        return self.connection is not None


class _Stub(tff.framework.RemoteExecutorStub):
    """A gRPC stub that tells a lost worker from a computation that fails."""

    def __init__(self, channel: grpc.Channel, address: str):
        self._inner = tff.framework.RemoteExecutorGrpcStub(channel)
        # Not the inner one's, which waits without end.
        self._dispose_executor = channel.unary_unary(
            _DISPOSE_EXECUTOR, request_serializer=lambda r: r.SerializeToString()
        )
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
            return self._call(
                lambda r: self._dispose_executor(r, timeout=_DISPOSAL_SECONDS), request
            )
        except WorkerLost:
            return None

    @property
    def is_ready(self):
        return self._inner.is_ready


class WorkerPool:
    """A pool of remote workers with heartbeats, failover and reconnection."""

    def __init__(
        self,
        addresses: Sequence[str],
        check: Callable[[Connection], None],
        *,
        heartbeat_seconds: float = 2.0,
        patience_seconds: float = 20.0,
        return_seconds: float = 120.0,
    ):
        """Reaches all workers; from then on any may come and go.

        Args:
          addresses: `host:port` of each.
          check: called whenever a worker was reached, before it gets work; raises if
            it is not fit for it. Several are checked side by side.
          heartbeat_seconds: between two heartbeats.
          patience_seconds: without an answer, after which a worker counts as lost.
          return_seconds: how long to wait for any worker once all are lost.

        Raises:
          WorkerError: naming the first that does not answer.
        """
        self._check = check
        self._heartbeat_seconds = heartbeat_seconds
        self._patience_seconds = patience_seconds
        self._return_seconds = return_seconds
        self._change = threading.Condition()
        self._closed = threading.Event()
        self._busy: set[RemoteWorker] = set()
        self.workers = [RemoteWorker(address) for address in addresses]
        with concurrent.futures.ThreadPoolExecutor(len(addresses)) as threads:
            reached = [threads.submit(self._reach, a) for a in addresses]
        try:
            for worker, connection in zip(self.workers, reached, strict=True):
                worker.connection = connection.result()
        except BaseException:
            self.close()
            for future in reached:
                if future.exception() is None:
                    future.result().close()
            raise
        for worker in self.workers:
            threading.Thread(target=self._keep, args=[worker], daemon=True).start()

    def close(self) -> None:
        """Ends all connections; work under way and to come raises `WorkerError`."""
        self._closed.set()
        for worker in self.workers:
            if worker.connection is not None:
                worker.connection.close()

    def run(self, computation, argument) -> Any:
        """Runs a computation on a free worker, with failover to another.

        Args:
          computation: a TFF computation.
          argument: its argument; None if it takes none.

        Returns:
          The computation's result.

        Raises:
          WorkerError: if all are lost and none comes back in time, if one after another
            is lost over this computation, or if the pool is closed.
        """
        losses = 0
        while True:
            worker, connection = self._take()
            try:
                return connection.run(computation, argument)
            except WorkerLost as e:
                self._lose(worker, connection, str(e))
                losses += 1
                if losses > _MOST_LOSSES * len(self.workers):
                    raise errors.WorkerError(
                        f"One shard of a cohort lost {losses} workers one after "
                        f"another (the last: {e}). It may need more memory than they "
                        "have; take a smaller block_size.",
                        remedies=("block_size",),
                    ) from e
            finally:
                with self._change:
                    self._busy.discard(worker)
                    self._change.notify_all()

    def _take(self) -> tuple[RemoteWorker, Connection]:
        deadline = time.monotonic() + self._return_seconds
        with self._change:
            while not self._closed.is_set():
                for worker in self.workers:
                    if worker.connection is not None and worker not in self._busy:
                        self._busy.add(worker)
                        return worker, worker.connection
                if any(worker.alive for worker in self.workers):
                    # Busy ones will be free, however long it takes.
                    deadline = time.monotonic() + self._return_seconds
                elif time.monotonic() > deadline:
                    names = ", ".join(worker.address for worker in self.workers)
                    raise errors.WorkerError(
                        f"No worker is left of {names}, and none came back in "
                        f"{self._return_seconds:g} s. Start one and run the same "
                        "command again."
                    )
                self._change.wait(timeout=1.0)
        raise errors.WorkerError("The pool of workers is closed.")

    def _lose(self, worker: RemoteWorker, connection: Connection, reason: str) -> None:
        with self._change:
            # A new connection may be there already.
            if worker.connection is not connection or self._closed.is_set():
                return
            worker.connection = None
            self._change.notify_all()
        connection.close(lost=True)
        _tell(f"Worker {reason}. Its part goes to the others.")

    def _reach(self, address: str) -> Connection:
        """Waits for a worker to answer, as long as patience lasts, and checks it."""
        connection = Connection(address)
        deadline = time.monotonic() + self._patience_seconds
        while not connection.answers(self._heartbeat_seconds):
            if time.monotonic() > deadline:
                connection.close(lost=True)
                raise errors.WorkerError(
                    f"No worker answers at {address}; start it there with "
                    "worker_process.serve, and see that the address can be "
                    "reached from here.",
                    remedies=("worker_process.serve",),
                )
            time.sleep(0.2)
        # A worker that freezes while it is checked is lost, too.
        done = threading.Event()

        def guard():
            if not self._watch(connection, done.is_set):
                connection.close(lost=True)

        threading.Thread(target=guard, daemon=True).start()
        try:
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        finally:
            done.set()
        return connection

    def _watch(self, connection: Connection, is_over: Callable[[], bool]) -> bool:
        """Returns True when it is over, False after too long without a heartbeat."""
        last = time.monotonic()
        while not (is_over() or self._closed.is_set()):
            if connection.answers(self._heartbeat_seconds):
                last = time.monotonic()
            elif time.monotonic() - last > self._patience_seconds:
                return False
            self._closed.wait(self._heartbeat_seconds)
        return True

    def _keep(self, worker: RemoteWorker) -> None:
        """Watches a worker, and reaches it again, until the pool is closed."""
        while not self._closed.wait(self._heartbeat_seconds):
            connection = worker.connection
            if connection is not None:

                def is_replaced(was: Connection | None = connection) -> bool:
                    return worker.connection is not was

                if not self._watch(connection, is_replaced):
                    self._lose(worker, connection, f"{worker.address}: no heartbeat")
                continue
            try:
                connection = self._reach(worker.address)
            except errors.DataError as e:
                _tell(f"Worker {worker.address} is back but cannot be used: {e}")
                continue
            except errors.WorkerError:
                continue
            with self._change:
                if self._closed.is_set():
                    connection.close()
                    return
                worker.connection = connection
                self._change.notify_all()
            _tell(f"Worker {worker.address} is back.")


class _PartContext(tff.framework.AsyncContext):
    """Runs one shard of a cohort on whichever worker is free."""

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
    """TFF context on a pool: what has clients runs in parts, the rest on one worker."""

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
    addresses: Sequence[str], check: Callable[[Connection], None]
) -> WorkerPool:
    """Connects to remote workers and makes a context on them TFF's default.

    Args:
      addresses: `host:port` of each.
      check: as for `WorkerPool`, whose other settings are the usual ones.

    Raises:
      WorkerError: naming the first worker that does not answer.
    """
    pool = WorkerPool(addresses, check)
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
