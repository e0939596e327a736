"""Executors on TFF's workers, as few as will do."""

from __future__ import annotations

import collections
from collections.abc import Callable

import tensorflow_federated as tff

_MAX_MESSAGE_BYTES = 2**31 - 1
_MOST_EXECUTORS = 8
_MOST_COMPUTATIONS = 8


def channel_options() -> list[tuple[str, int]]:
    """Returns gRPC's settings for a worker: messages as large as weights may be."""
    return [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        # A worker that comes back is found at once.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def compile_computation(computation):
    """Compiles for a worker; secure sums become plain sums, as in TFF's test context.

    TFF's runtime has no secure sum. What users would send is that of one, its value
    types and its modular arithmetic included, but nothing is hidden.
    """
    plain = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    return tff.backends.native.desugar_and_transform_to_native(plain)


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


class FewExecutors(tff.framework.ExecutorFactory):
    """Keeps an executor for each of the numbers of clients last seen.

    The worker holds compiled graphs, some 25 MB for a small model, for every executor.
    TFF's own factory forgets to close those it drops, so that cohorts of changing size
    let the worker grow without end.
    """

    def __init__(
        self,
        stub: tff.framework.RemoteExecutorStub,
        check_alive: Callable[[], None] = lambda: None,
    ):
        """Takes a worker.

        Args:
          stub: reaches it.
          check_alive: raises if it is not there any more.
        """
        self._check_alive = check_alive
        self._stub = stub
        self._executors: collections.OrderedDict[tuple, _Executor] = (
            collections.OrderedDict()
        )

    def create_executor(self, cardinalities):
        self._check_alive()
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
