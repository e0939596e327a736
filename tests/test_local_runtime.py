"""The worker process: it serves, and it never outlives whoever started it."""

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref

import numpy as np
import portpicker
import psutil
import pytest

from tests.needs import needs_networks, needs_user_namespaces

START = (
    "import warnings; warnings.simplefilter('ignore')\n"
    "from tff_perfedavg.runtime.local_runtime import use_local_runtime\n"
    "runtime = use_local_runtime()\n"
    "print(runtime.worker.pid, flush=True)\n"
)


def run_python(program):
    return subprocess.Popen(
        [sys.executable, "-c", START + program], stdout=subprocess.PIPE, text=True
    )


def wait_until_gone(pid):
    for _ in range(100):
        if not psutil.pid_exists(pid) or (
            psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        ):
            return True
        time.sleep(0.1)
    return False


def ports_of_network(pid):
    """TCP ports on which anything listens in a process's network."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in pathlib.Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {int(words[1].rpartition(":")[2], 16) for words in lines if words[3] == "0A"}


def network_of(pid):
    return os.readlink(f"/proc/{pid}/ns/net")


@needs_networks
def test_nobody_reaches_the_worker_from_another_network(tff, worker):
    """Tried from a namespace that has an address of ours for neighbour.

    TFF's own worker answers there, as the second half shows.
    """
    from tff_perfedavg.runtime import worker_process

    assert worker.is_private
    assert network_of(worker.pid) != network_of("self")
    ports = ports_of_network(worker.pid)
    assert ports
    port = portpicker.pick_unused_port()
    with neighbour() as (address, run), tempfile.TemporaryFile() as log:
        assert not run(CONNECT, address, *map(str, ports))
        stock = worker_process.start_process(port, log)
        try:
            for _ in range(100):
                if port in ports_of_network("self"):
                    break
                time.sleep(0.1)
            assert run(CONNECT, address, str(port)).split() == [str(port)]
        finally:
            stock.kill()
            stock.wait()


# Prints the ports that take a connection.
CONNECT = """
import socket, sys
address, *ports = sys.argv[1:]
for port in ports:
    try:
        socket.create_connection((address, int(port)), timeout=2).close()
        print(port)
    except OSError:
        pass
"""


@contextlib.contextmanager
def neighbour():
    """A network beside this one: our address there, and what runs Python in it."""
    name = f"pfa{os.getpid()}"

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def run(program, *arguments):
        return subprocess.run(
            ["ip", "netns", "exec", name, sys.executable, "-c", program, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", "10.203.7.1/30", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "address", "add", "10.203.7.2/30", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield "10.203.7.1", run
    finally:
        subprocess.run(["ip", "link", "delete", name], capture_output=True)
        ip("netns", "delete", name)


def test_nobody_else_on_this_machine_reaches_the_worker(tff, worker):
    name = "\0" + worker.target.removeprefix("unix-abstract:")
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect('\\0' + sys.argv[1])\n"
        "s.settimeout(10)\n"
        "s.sendall(b'PRI * HTTP/2.0')\n"
        "print(s.recv(100))\n"
    )
    with socket.socket(socket.AF_UNIX) as ours:
        # We do: HTTP/2's server speaks first.
        ours.connect(name)
        ours.settimeout(10)
        assert len(ours.recv(100)) > 8
    other = subprocess.run(
        [sys.executable, "-c", program, name[1:]], capture_output=True, text=True
    )
    # The relay hangs up on it.
    hung_up = ("BrokenPipeError", "ConnectionResetError")
    assert other.stdout.strip() == "b''" or any(e in other.stderr for e in hung_up)


def test_what_stands_where_a_command_is_given_is_not_run(tmp_path):
    """Neither a module of a name that the relay imports, nor another version of us."""
    mark, script, here = (tmp_path / n for n in ("was_run", "mine/main.py", "here"))
    for directory in (script.parent, here, here / "tff_perfedavg"):
        directory.mkdir()
    for name in ("struct.py", "contextlib.py", "tff_perfedavg/__init__.py"):
        (here / name).write_text(f"open({str(mark)!r}, 'w').close()\n")
    # A script looks beside itself, not where it is called from, and so must we.
    script.write_text(START + "print(runtime.worker.is_private)\n")
    done = subprocess.run(
        [sys.executable, script], cwd=here, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split()[1:] == ["True"]
    assert not mark.exists()


def test_a_library_call_leaves_its_callers_network_alone(tff, worker):
    assert network_of("self") == network_of(os.getppid())


@needs_user_namespaces
def test_where_the_system_allows_no_network_of_its_own_a_warning_says_so_once(tff):
    program = START + "use_local_runtime()\nprint(runtime.worker.is_private)\n"
    forbid = "echo 0 > /proc/sys/user/max_net_namespaces"
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "sh", "-c"),
            f'{forbid}; exec "$0" -c "$1"',
            sys.executable,
            program,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split()[-1] == "False"
    assert done.stderr.count("WARNING: this system does not let TFF's worker") == 1
    assert "keep a firewall before it" in done.stderr


def test_the_worker_ends_with_a_normal_exit_and_leaves_the_pipe_closed():
    process = run_python("")
    # Returns only when nobody holds the pipe's other end.
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert wait_until_gone(int(output))


def test_the_worker_ends_when_its_parent_is_killed():
    process = run_python("import time; time.sleep(600)")
    worker = int(process.stdout.readline())
    assert psutil.pid_exists(worker)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert wait_until_gone(worker)


def test_signals_that_stop_a_job_leave_the_worker_to_its_parent(tff, worker):
    @tff.tensorflow.computation(tff.TensorType(np.int32))
    def add_three(x):
        return x + 3

    # The worker's, and the relay's before it.
    for pid in {worker.pid, worker._process.pid}:
        # Not of our group, which `timeout` signals.
        assert os.getpgid(pid) != os.getpgid(0)
        # systemd and SLURM signal every process.
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
    time.sleep(0.2)
    assert add_three(1) == 4
    worker.check_alive()


def test_a_lost_worker_is_an_error_that_shows_its_log():
    process = run_python(
        "import os, signal\n"
        "import numpy as np, tensorflow_federated as tff\n"
        "@tff.tensorflow.computation(tff.TensorType(np.int32))\n"
        "def add_one(x):\n"
        "    return x + 1\n"
        "assert add_one(1) == 2\n"
        "os.kill(runtime.worker.pid, signal.SIGKILL); runtime.worker._process.wait()\n"
        "try:\n"
        "    add_one(1)\n"
        "except Exception as e:\n"
        "    print(type(e).__name__, e)\n"
    )
    output, _ = process.communicate(timeout=120)
    assert "WorkerError The TFF worker process" in output
    assert "ended with code -9" in output


class Stub:
    """Counts what the worker is asked to keep."""

    def __init__(self):
        self.kept = set()

    def get_executor(self, request):
        from tensorflow_federated.proto.v0 import executor_pb2

        (count,) = (c.cardinality for c in request.cardinalities)
        self.kept.add(str(count))
        executor = executor_pb2.ExecutorId(id=str(count))
        return executor_pb2.GetExecutorResponse(executor=executor)

    def dispose_executor(self, request):
        self.kept.remove(request.executor.id)

    def create_value(self, request):
        from tensorflow_federated.proto.v0 import executor_pb2

        return executor_pb2.CreateValueResponse()


def test_executors_of_numbers_of_clients_no_longer_seen_are_closed(tff):
    from tff_perfedavg.runtime.executors import _MOST_EXECUTORS, FewExecutors

    stub = Stub()
    factory = FewExecutors(stub)
    for count in [*range(1, 30), 28, 29]:
        factory.create_executor({tff.CLIENTS: count})
    wanted = {str(count) for count in range(30 - _MOST_EXECUTORS, 30)}
    assert stub.kept == wanted
    again = factory.create_executor({tff.CLIENTS: 25})
    assert again is factory.create_executor({tff.CLIENTS: 25})
    factory.clean_up_executor({tff.CLIENTS: 25})
    assert stub.kept == wanted - {"25"}


def test_a_worker_is_started_from_the_main_thread_only(tff):
    from tff_perfedavg.errors import WorkerError
    from tff_perfedavg.runtime.local_runtime import Worker

    caught = []

    def start():
        with pytest.raises(WorkerError, match="from the main thread") as error:
            Worker()
        caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert caught


def test_more_computations_than_are_kept_at_the_worker_all_answer(tff):
    from tff_perfedavg.runtime.executors import _MOST_COMPUTATIONS

    def adding(number):
        @tff.tensorflow.computation(tff.TensorType(np.int32))
        def add(x):
            return x + number

        return add

    added = [adding(number) for number in range(2 * _MOST_COMPUTATIONS)]
    for _ in range(2):
        assert [add(1) for add in added] == [1 + n for n in range(len(added))]


def test_a_computation_is_sent_to_the_worker_once(tff, monkeypatch):
    stub = tff.framework.RemoteExecutorGrpcStub
    send, sizes = stub.create_value, []

    def counted(self, request):
        sizes.append(request.ByteSize())
        return send(self, request)

    monkeypatch.setattr(stub, "create_value", counted)

    @tff.tensorflow.computation(tff.TensorType(np.int32))
    def double(x):
        return 2 * x

    assert [double(x) for x in (1, 2, 3)] == [2, 4, 6]
    # Three arguments, and one computation.
    assert len(sizes) == 4


def test_closing_leaves_nothing_to_be_told_to_a_worker_that_has_ended(tff):
    from tff_perfedavg.runtime.executors import FewExecutors

    number = tff.TensorType(np.int32)
    double = tff.tensorflow.computation(lambda x: 2 * x, number)
    stub = Stub()
    factory = FewExecutors(stub)
    executor = factory.create_executor({tff.CLIENTS: 1})
    value = asyncio.run(executor.create_value(double, double.type_signature))
    gone = weakref.ref(value)
    factory.close()
    assert not stub.kept
    del value
    # Its finalizer ran, and asked for nothing: the stub knows no disposal of values.
    assert gone() is None
    assert not len(executor._sent)
