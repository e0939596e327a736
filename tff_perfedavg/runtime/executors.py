"""A bounded LRU pool of remote executors."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import tensorflow_federated as tff

from tff_perfedavg.runtime.compiler import compile_computation

_MAX_MESSAGE_BYTES = 2**31 - 1
_MOST_EXECUTORS = 8
_MOST_COMPUTATIONS = 8


def channel_options() -> list[tuple[str, int]]:
    """Returns gRPC channel options of a worker: message sizes, reconnection backoff."""
    return [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        # A worker that comes back is found at once.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


class _LastUsed:
    """An LRU cache by identity of the key.

    Not by hash: hashing a computation serializes it.
    """

    def __init__(self, most: int):
        self._most = most
        self._found: collections.OrderedDict[int, tuple] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Any) -> Any:
        """Returns what belongs to an object, or None."""
        if id(key) not in self._found:
            return None
        self._found.move_to_end(id(key))
        return self._found[id(key)][1]

    def put(self, key: Any, value: Any) -> None:
        """Keeps it, and the object, and drops what was not asked for longest."""
        self._found[id(key)] = (key, value)
        if len(self._found) > self._most:
            self._found.popitem(last=False)

    def clear(self) -> None:
        """Drops all."""
        self._found.clear()


class _Executor(tff.framework.RemoteExecutor):
    """A remote executor that caches compiled and sent computations.

    TFF's own sends them at every call.
    """

    def __init__(self, stub: tff.framework.RemoteExecutorStub, compiled: _LastUsed):
        super().__init__(stub)
        self._compiled = compiled
        self._sent = _LastUsed(_MOST_COMPUTATIONS)

    async def create_value(self, value, type_spec=None):
        if not isinstance(type_spec, tff.FunctionType):
            return await super().create_value(value, type_spec)
        sent = self._sent.get(value)
        if sent is None:
            compiled = self._compiled.get(value)
            if compiled is None:
                compiled = compile_computation(value)
                self._compiled.put(value, compiled)
            sent = await super().create_value(compiled, compiled.type_signature)
            self._sent.put(value, sent)
        return sent

    def close(self):
        # First, so that what is sent is forgotten here and not at the worker, too.
        super().close()
        self._sent.clear()


class FewExecutors(tff.framework.ExecutorFactory):
    """A bounded LRU pool of remote executors, by number of clients.

    They compile what they run; a context on them needs no compiler.

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
        # For all numbers of clients.
        self._compiled = _LastUsed(_MOST_EXECUTORS * _MOST_COMPUTATIONS)
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
            executor = _Executor(self._stub, self._compiled)
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
