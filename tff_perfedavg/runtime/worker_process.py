"""TFF's worker process in a network namespace, behind a relay at one address.

TFF's worker listens on every address and asks nobody who they are. So it is started in
a network of its own (a Linux network namespace), where nothing but this process reaches
it, and this process passes on what comes to the one address it listens on. Imports
neither TensorFlow nor TFF.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import importlib.util
import os
import pathlib
import signal
import socket
import struct
import subprocess

from tff_perfedavg import errors
from tff_perfedavg.runtime.exit_codes import explain, remedies

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
# Where the worker listens in its own network.
INNER_PORT = 8000
_RELAYED_BYTES = 1 << 16
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def find_program() -> pathlib.Path:
    """Returns the path of TFF's worker program.

    Raises:
      WorkerError: if this TFF package has none.
    """
    spec = importlib.util.find_spec("tensorflow_federated")
    if spec is None or spec.origin is None:
        raise errors.WorkerError("TensorFlow Federated is not installed.")
    program = pathlib.Path(spec.origin).parent / "data" / "worker_binary"
    if not program.is_file():
        raise errors.WorkerError(
            f"No worker program at {program}; reinstall tensorflow-federated."
        )
    return program


def start_process(
    port: int, output, program: pathlib.Path | None = None
) -> subprocess.Popen:
    """Starts TFF's worker program; it is killed with this process (PR_SET_PDEATHSIG).

    It is of a session of its own, so that no signal to this process's group ends it.

    Args:
      port: it listens on this port of every address of this process's network.
      output: a file for what it prints.
      program: from `find_program`, by default.

    Raises:
      WorkerError: if this TFF package has no worker program.
    """
    program = program or find_program()
    environment = {
        # Warnings and errors only; the start-up notices concern nobody.
        "TF_CPP_MIN_LOG_LEVEL": "1",
        # Clients run side by side; the threads of their operations would contend for
        # the same cores.
        "TF_NUM_INTRAOP_THREADS": "1",
        # A client's operations run in its own thread, not handed from one to another.
        "TF_NUM_INTEROP_THREADS": "-1",
        # What operations hold for a moment is kept for the next one; glibc by itself
        # gives it back to the system, and every page of it costs again. Some versions
        # refuse a first figure above 32 MB.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        **os.environ,
    }
    # All at once would contend, too, and hold all their memory.
    at_once = len(os.sched_getaffinity(0))
    us = os.getpid()

    def prepare():
        end_with_parent(us)
        leave_stopping_to_parent()

    return subprocess.Popen(
        [
            program,
            f"--port={port}",
            f"--max_concurrent_computation_calls={at_once}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        preexec_fn=prepare,
        start_new_session=True,
    )


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends (PR_SET_PDEATHSIG).

    Args:
      parent: the parent's process number; if it has ended already, so do we.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def leave_stopping_to_parent() -> None:
    """Ignores Ctrl-C and SIGTERM in this process and in those it starts.

    Terminals, `timeout`, systemd and SLURM send them to every process of a job; a
    parent that saves its work first still needs its worker for it.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def listen(address: str, port: int) -> socket.socket:
    """Opens the socket on which a worker will be reached, for `serve`.

    Ctrl-C and SIGTERM wait for `serve`.

    Args:
      address: of this machine; `EVERY_ADDRESS` for all.
      port: on that address.

    Raises:
      WorkerError: if the address is not this machine's, the port is in use, or every
        address is meant and not said.
    """
    # Held back until `serve` waits for them; in between they might be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        listening = socket.create_server((address, port))
    except OSError as e:
        raise errors.WorkerError(
            f"Cannot listen on {address}:{port} ({e.strerror}); choose another port, "
            "or an address of this machine.",
            remedies=("port", "address"),
        ) from e
    if listening.getsockname()[0] == EVERY_ADDRESS != address:
        listening.close()
        raise errors.WorkerError(
            f"address is {address!r}, which is every address of this machine; give "
            f"{EVERY_ADDRESS} if that is meant.",
            remedies=(f"address={EVERY_ADDRESS}",),
        )
    return listening


def serve(listening: socket.socket) -> None:
    """Runs a worker for other processes, until Ctrl-C or SIGTERM.

    Call it in a process that has started no thread.

    Args:
      listening: from `listen`.

    Raises:
      WorkerError: if the worker cannot be kept to the address, or ends by itself.
      KeyboardInterrupt: at Ctrl-C or SIGTERM.
    """
    address, port = listening.getsockname()
    with listening:
        if address == EVERY_ADDRESS:
            # Nothing to keep it to.
            listening.close()
            process, relayed = start_process(port, None), None
        else:
            try:
                enter_own_network()
            except OSError as e:
                raise errors.WorkerError(
                    "The worker cannot be kept to one address: TFF's worker listens on "
                    "all, and this system does not let it have a network of its own "
                    f"({e.strerror}). In a private network give the address "
                    f"{EVERY_ADDRESS}.",
                    remedies=(f"address={EVERY_ADDRESS}",),
                ) from e
            process, relayed = start_process(INNER_PORT, None), listening
        with _running(process) as worker:
            code = asyncio.run(_wait_for_end(worker, relayed))
    raise errors.WorkerError(
        f"The TFF worker process ended with {explain(code)}.", remedies=remedies(code)
    )


@contextlib.contextmanager
def _running(worker: subprocess.Popen):
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def enter_own_network() -> None:
    """Enters a new network namespace, which has a loopback and nothing else.

    Call it in a process that has started no thread.

    Raises:
      OSError: if the system does not let this process have one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Root may; others may where users may have namespaces.
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            break
    else:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sH14s", b"lo", _IFF_UP, b"")
        fcntl.ioctl(control, _SIOCSIFFLAGS, up)


async def _wait_for_end(worker: subprocess.Popen, relayed: socket.socket | None) -> int:
    """Relays what comes to a socket, if there is one, until the worker ends.

    Returns:
      Its exit code.

    Raises:
      KeyboardInterrupt: at Ctrl-C or SIGTERM.
    """
    stopped = False

    def stop():
        nonlocal stopped
        stopped = True
        # Ends the wait below; an interrupt would leave its thread waiting.
        worker.kill()

    for number in _STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    async with contextlib.AsyncExitStack() as stack:
        if relayed is not None:
            server = await asyncio.start_server(_serve_client, sock=relayed)
            await stack.enter_async_context(server)
        code = await asyncio.to_thread(worker.wait)
    if stopped:
        raise KeyboardInterrupt
    return code


async def _serve_client(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, INNER_PORT)
    except OSError:
        # Not serving yet; whoever asked asks again.
        writer.close()
        return
    await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # A connection that breaks on one side ends on the other.
    with contextlib.suppress(OSError):
        while data := await reader.read(_RELAYED_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
