"""A worker in its own network namespace, relayed to one process alone.

Run by `local_runtime.Worker` as a program: TFF's worker listens on every address and
asks nobody who they are. Here it is started in a Linux network namespace that has a
loopback and nothing else, and what comes to a Unix socket is relayed to it, if it comes
from the process that started us. Imports neither TensorFlow nor TFF.

Its arguments: the number of the listening descriptor, its parent's process number, and
TFF's worker program. It prints one line, `STARTED` and the worker's process number, or
`REFUSED` and why there can be no such network, and ends with the worker's own end.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import struct
import sys
import threading
import time

from tff_perfedavg.runtime import worker_process

STARTED, REFUSED = "started", "refused"
_CONNECT_SECONDS = 120
_RELAYED_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")


def main() -> None:
    """Runs the worker until it ends or our parent does."""
    descriptor, parent, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    listening = socket.socket(fileno=descriptor)
    worker_process.leave_stopping_to_parent()
    try:
        worker_process.enter_own_network()
    except OSError as e:
        print(REFUSED, e.strerror, flush=True)
        return
    # The change of rights that this may have been makes the kernel forget it.
    worker_process.end_with_parent(parent)
    worker = worker_process.start_process(
        worker_process.INNER_PORT, sys.stderr.fileno(), pathlib.Path(program)
    )
    threading.Thread(target=_accept, args=[listening, parent], daemon=True).start()
    print(STARTED, worker.pid, flush=True)
    code = worker.wait()
    if code < 0:
        # As it ended, so that whoever waits for us learns it.
        os.kill(os.getpid(), -code)
    os._exit(code)


def _accept(listening: socket.socket, parent: int) -> None:
    while True:
        outer, _ = listening.accept()
        peer, _, _ = _CREDENTIALS.unpack(
            outer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if peer != parent:
            outer.close()
            continue
        threading.Thread(target=_relay, args=[outer], daemon=True).start()


def _relay(outer: socket.socket) -> None:
    inner = _connect()
    threading.Thread(target=_pass_on, args=[inner, outer], daemon=True).start()
    _pass_on(outer, inner)


def _connect() -> socket.socket:
    """Connects to the worker, which may not serve yet."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            inner = socket.create_connection(
                (worker_process.LOOPBACK, worker_process.INNER_PORT)
            )
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return inner


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    buffer = memoryview(bytearray(_RELAYED_BYTES))
    # A connection that breaks on one side ends on the other.
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
