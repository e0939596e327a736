"""Workers on hosts of their own, here network namespaces, that come and go."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from tests.helpers import relative_error
from tests.needs import needs_networks, needs_user_namespaces, slow_but
from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import ALGORITHMS
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.settings.experiment import Experiment, check_workers
from tff_perfedavg.experiments.settings.parts import AGGREGATORS
from tff_perfedavg.runtime import worker_process

ROOT = pathlib.Path(__file__).parent.parent
START = ROOT / "scripts/start_worker.py"
PORT = 8123
# Of the hosts' networks; nothing else may have addresses in it.
NETWORK = "10.231"
EXPERIMENT = Experiment(num_local_steps=3, clients_per_round=6, block_size=1)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network namespace with an address of its own, on which a worker may run."""

    def __init__(self, number):
        self._name = f"pfa-{os.getpid()}-{number}"
        self._link = f"pfa{os.getpid() % 10**7}{number}"
        self._gateway = f"{NETWORK}.{number}.1"
        self.address = f"{NETWORK}.{number}.2"
        self.target = f"{self.address}:{PORT}"
        self._worker = None

    def create(self):
        ip("netns", "add", self._name)
        ip(
            "link",
            "add",
            self._link,
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            self._name,
        )
        ip("addr", "add", f"{self._gateway}/24", "dev", self._link)
        ip("link", "set", self._link, "up")
        ip("-n", self._name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self._name, "link", "set", "lo", "up")
        self.link("up")

    def link(self, state):
        # From inside, or packets would leave by the machine's default route.
        ip("-n", self._name, "link", "set", "eth0", state)

    def start(self, *before):
        self._worker = subprocess.Popen(
            [
                *("ip", "netns", "exec", self._name, *before, sys.executable, START),
                *(f"--port={PORT}", f"--address={self.address}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert "serves on" in self._worker.stdout.readline()

    def processes(self):
        parent = psutil.Process(self._worker.pid)
        return [parent, *parent.children(recursive=True)]

    def freeze(self):
        for process in self.processes():
            process.suspend()

    def thaw(self):
        for process in self.processes():
            process.resume()

    def kill(self):
        if self._worker is not None:
            for process in self.processes():
                # The parent's end may have ended it already.
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._worker.wait()
            self._worker.stdout.close()
            self._worker = None

    def remove(self):
        self.kill()
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True)
        subprocess.run(["ip", "link", "del", self._link], capture_output=True)


@pytest.fixture(scope="module")
def hosts():
    blackhole = ("blackhole", f"{NETWORK}.0.0/16")
    with contextlib.ExitStack() as stack:
        ip("route", "add", *blackhole)
        stack.callback(ip, "route", "del", *blackhole)
        pair = [Host(1), Host(2)]
        for host in pair:
            stack.callback(host.remove)
            host.create()
            host.start()
        yield pair


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    return build_population(EXPERIMENT, tmp_path_factory.mktemp("population"))


@contextlib.contextmanager
def pool_of(tff, targets, population, **settings):
    """A pool whose context is TFF's default for the block."""
    from tff_perfedavg.runtime.remote_runtime import RemoteContext, WorkerPool
    from tff_perfedavg.runtime.store_check import store_check

    settings = {"heartbeat_seconds": 0.5, "patience_seconds": 15, **settings}
    pool = WorkerPool(targets, store_check(population), **settings)
    with tff.framework.get_context_stack().install(RemoteContext(pool)):
        yield pool
    pool.close()


@functools.cache
def built(experiment, path):
    """The client data and the learning process, which knows of no context."""
    from tff_perfedavg.experiments.assemble.build import (
        build_client_data,
        build_model,
        build_process,
    )

    population = UserStore.open(path)
    model = build_model(experiment, population)
    client_data = build_client_data(experiment, model, population)
    return client_data, build_process(experiment, model, client_data)


def rounds(population, num_rounds, before_round=None, **changes):
    """Weights and last metrics of some rounds on the context that is there."""
    from tff_perfedavg.fleet.cohort import sample_cohort

    experiment = dataclasses.replace(EXPERIMENT, **changes)
    client_data, process = built(experiment, population.path)
    state = process.initialize()
    for number in range(num_rounds):
        if before_round is not None:
            before_round(number)
        cohort = sample_cohort(population.training_users, 6, 0, number)
        state, metrics = process.next(state, client_data.clients(cohort))
    return process.get_model_weights(state).trainable, metrics["client_work"]


@contextlib.contextmanager
def killed_while_it_works(host):
    """Kills a host's worker in the midst of the next part that it is given."""
    from tff_perfedavg.runtime.remote_runtime import Connection

    run, asked = Connection.run, threading.Event()

    def given(self, *arguments):
        if self.address == host.target and not asked.is_set():
            # So that it cannot have done its part before it is killed.
            host.freeze()
            asked.set()
        return run(self, *arguments)

    def kill():
        asked.wait()
        time.sleep(0.2)
        host.kill()

    killer = threading.Thread(target=kill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "run", given)
        killer.start()
        yield
        killer.join(timeout=60)
        assert not killer.is_alive(), "it was given nothing"


@needs_networks
def test_two_hosts_give_what_one_machine_gives(tff, hosts, population):
    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
    from tff_perfedavg.optimization.config import AdaptationConfig

    weights, metrics = rounds(population, 4)
    model = build_model(EXPERIMENT, population)
    adaptation = AdaptationConfig(0.1, 2)
    by_user = evaluate_users(model, weights, population, adaptation)
    with pool_of(tff, [host.target for host in hosts], population):
        found, found_metrics = rounds(population, 4)
        found_by_user = evaluate_users(model, weights, population, adaptation)
    assert relative_error(found, weights) < 1e-6
    assert found_metrics["num_users_taken"] == metrics["num_users_taken"] == 6
    assert np.isclose(found_metrics["query_loss"], metrics["query_loss"], rtol=1e-6)
    assert (found_by_user["user"] == by_user["user"]).all()
    assert np.allclose(found_by_user["loss"], by_user["loss"], rtol=1e-5)


@needs_networks
@pytest.mark.parametrize(
    "aggregator",
    slow_but({"robust", "dp_adaptive"}, sorted({*AGGREGATORS} - {"mean", "secure"})),
)
def test_aggregators_on_two_hosts(tff, hosts, population, aggregator):
    private = aggregator.startswith("dp")
    changes = {
        "aggregator": aggregator,
        "clipping_norm": 0.05 if aggregator in ("clip", "dp_fixed") else None,
        "noise_multiplier": 1e-4 if private else 0.0,
    }
    expected, _ = rounds(population, 2, **changes)
    with pool_of(tff, [host.target for host in hosts], population):
        found, _ = rounds(population, 2, **changes)
    # Noise so small that it is told from a wrong sum.
    assert relative_error(found, expected) < (1e-3 if private else 1e-6)


@needs_networks
@pytest.mark.parametrize("algorithm", slow_but({"meta_sgd"}, ALGORITHMS))
def test_algorithms_on_two_hosts(tff, hosts, population, algorithm):
    changes = {
        "algorithm": algorithm,
        "inner_learning_rate": 0.1,
        "outer_learning_rate": 0.1,
    }
    expected, _ = rounds(population, 2, **changes)
    with pool_of(tff, [host.target for host in hosts], population):
        found, _ = rounds(population, 2, **changes)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.slow
@needs_networks
def test_an_ideal_fleet_on_two_hosts_gives_the_run_without_one(tff, hosts, tmp_path):
    from tff_perfedavg.experiments.files.run_paths import RunPaths
    from tff_perfedavg.experiments.training.training import train_and_save

    without = dataclasses.replace(EXPERIMENT, total_rounds=3)
    work = str(ROOT / "tests" / "data" / "fleet.work.json")
    ideal = dataclasses.replace(without, fleet="ideal", fleet_work=work)
    users = build_population(without, tmp_path)
    with pool_of(tff, [host.target for host in hosts], users):
        expected, found = (
            train_and_save(experiment, RunPaths(tmp_path, name)).weights
            for experiment, name in ((without, "without"), (ideal, "ideal"))
        )
    assert [w.tobytes() for w in found] == [w.tobytes() for w in expected]


@needs_networks
def test_every_worker_takes_part(tff, hosts, population, monkeypatch):
    from tff_perfedavg.runtime.remote_runtime import Connection

    run, taken = Connection.run, []

    def recorded(self, *arguments):
        taken.append(self.address)
        return run(self, *arguments)

    with pool_of(tff, [host.target for host in hosts], population):
        monkeypatch.setattr(Connection, "run", recorded)
        rounds(population, 2)
    assert set(taken) == {host.target for host in hosts}


@needs_networks
def test_a_worker_killed_in_a_round_and_back_later_changes_nothing(
    tff, hosts, population, capfd
):
    first, _ = hosts
    expected, _ = rounds(population, 6)
    dying = contextlib.ExitStack()

    def disturb(number):
        if number == 2:
            dying.enter_context(killed_while_it_works(first))
        if number == 4:
            dying.close()
            first.start()

    with dying, pool_of(tff, [host.target for host in hosts], population) as pool:
        found, metrics = rounds(population, 6, before_round=disturb)
        assert metrics["num_users_taken"] == 6
        wait_for(lambda: all(worker.alive for worker in pool.workers))
        again, _ = rounds(population, 6)
    assert relative_error(found, expected) < 1e-6
    assert relative_error(again, expected) < 1e-6
    told = capfd.readouterr().err
    assert f"Worker {first.target}" in told
    assert "Its part goes to the others" in told
    assert f"Worker {first.target} is back" in told


@needs_networks
def test_a_host_that_is_cut_off_is_lost_and_found_again(tff, hosts, population):
    first, _ = hosts
    settings = {"heartbeat_seconds": 0.5, "patience_seconds": 3}
    with pool_of(tff, [host.target for host in hosts], population, **settings) as pool:
        expected, _ = rounds(population, 3)
        first.link("down")
        try:
            found, _ = rounds(population, 3)
            assert [worker.alive for worker in pool.workers] == [False, True]
        finally:
            first.link("up")
        wait_for(lambda: pool.workers[0].alive)
    assert relative_error(found, expected) < 1e-6


@needs_networks
def test_a_frozen_worker_is_lost(tff, hosts, population):
    first, _ = hosts
    settings = {"heartbeat_seconds": 0.5, "patience_seconds": 3}
    with pool_of(tff, [host.target for host in hosts], population, **settings) as pool:
        expected, _ = rounds(population, 2)
        first.freeze()
        try:
            found, _ = rounds(population, 2)
        finally:
            first.thaw()
        wait_for(lambda: pool.workers[0].alive)
    assert relative_error(found, expected) < 1e-6


@needs_networks
def test_a_part_that_loses_every_worker_is_given_up(
    tff, hosts, population, monkeypatch
):
    from tff_perfedavg.runtime import remote_runtime

    def lost(self, *arguments):
        raise remote_runtime.WorkerLost(f"{self.address}: it is lost")

    targets = [host.target for host in hosts]
    with pool_of(tff, targets, population) as pool:
        monkeypatch.setattr(remote_runtime.Connection, "run", lost)
        # The store is not asked for again.
        monkeypatch.setattr(pool, "_check", lambda connection: None)
        with pytest.raises(errors.WorkerError, match=r"lost 5 workers one after.*memo"):
            rounds(population, 1)
    with pytest.raises(errors.WorkerError, match="pool of workers is closed"):
        pool.run(None, None)


@needs_networks
def test_a_worker_that_freezes_while_it_is_checked_is_lost(tff, hosts, population):
    from tff_perfedavg.runtime.remote_runtime import WorkerPool
    from tff_perfedavg.runtime.store_check import store_check

    first, _ = hosts
    check = store_check(population)

    def freeze(connection):
        first.freeze()
        check(connection)

    try:
        with pytest.raises(errors.WorkerError, match=r"it is lost"):
            WorkerPool(
                [first.target], freeze, heartbeat_seconds=0.5, patience_seconds=2
            )
    finally:
        first.thaw()


@needs_networks
def test_all_workers_lost_and_none_back_is_an_error(tff, hosts, population):
    first, _ = hosts
    with pool_of(tff, [first.target], population, return_seconds=2):
        rounds(population, 1)
        first.kill()
        try:
            with pytest.raises(
                errors.WorkerError, match=r"No worker is left of 10.*same"
            ):
                rounds(population, 1)
        finally:
            first.start()


@needs_networks
def test_another_store_at_a_worker_is_refused(tff, hosts, population, tmp_path):
    _, second = hosts
    other = tmp_path / "other"
    shutil.copytree(population.path, other)
    labels = bytearray((other / "labels.bin").read_bytes())
    labels[100] ^= 1
    (other / "labels.bin").write_bytes(labels)
    second.kill()
    # A host with files of its own: another store is where this one is here.
    mount = f'mount --bind {other} {population.path} && exec "$@"'
    second.start("unshare", "-m", "sh", "-c", mount, "sh")
    targets = [host.target for host in hosts]
    try:
        with (
            pytest.raises(errors.DataError, match=rf"{second.target} has another st"),
            pool_of(tff, targets, population),
        ):
            pass
        second.kill()
        hide = f'mount -t tmpfs none {population.path} && exec "$@"'
        second.start("unshare", "-m", "sh", "-c", hide, "sh")
        with (
            pytest.raises(errors.DataError, match=rf"{second.target} cannot read a"),
            pool_of(tff, targets, population),
        ):
            pass
    finally:
        second.kill()
        second.start()


@needs_networks
def test_a_computation_that_fails_is_an_error_and_no_lost_worker(
    tff, hosts, population
):
    import tensorflow as tf

    @tff.tensorflow.computation(tff.TensorType(np.int32))
    def broken(x):
        with tf.control_dependencies([tf.debugging.assert_less(x, 0)]):
            return tf.identity(x)

    with pool_of(tff, [hosts[0].target], population) as pool:
        with pytest.raises(Exception, match=r"assert|Condition"):
            broken(3)
        assert pool.workers[0].alive


def test_a_file_of_gigabytes_is_hashed_in_chunks(tff):
    import tensorflow as tf

    from tff_perfedavg.runtime.store_check import _hash

    spec = tf.TensorSpec([3_000_000_000], tf.uint8)
    graph = tf.function(_hash, input_signature=[spec]).get_concrete_function().graph
    (chunks, rest, _) = (
        op.inputs[0].shape for op in graph.get_operations() if op.type == "Fingerprint"
    )
    assert chunks[1] == 1 << 20
    assert rest[0] == 1


def test_a_worker_that_is_not_there_is_named(tff, population):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(errors.WorkerError, match=rf"answers at 127.0.0.1:{port}; start"),
        pool_of(tff, [f"127.0.0.1:{port}"], population, patience_seconds=0.5),
    ):
        pass


@pytest.mark.parametrize("address", ["host", "host:", ":80", "a b:80", "host:x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(errors.ConfigError, match="write host:port"):
        check_workers([address], EXPERIMENT.aggregation.aggregator)


def test_what_workers_cannot_do_is_refused():
    check_workers(["host:1", "[::1]:2"], EXPERIMENT.aggregation.aggregator)
    with pytest.raises(errors.ConfigError, match="twice"):
        check_workers(
            ["host:1", "[::1]:2", "host:1"], EXPERIMENT.aggregation.aggregator
        )
    secure = Experiment(aggregator="secure")
    with pytest.raises(errors.ConfigError, match="secure, which TFF cannot spread"):
        check_workers(["host:1"], secure.aggregation.aggregator)


def test_a_worker_is_reached_on_its_address_alone():
    worker, port = start_worker()
    try:
        wait_for(lambda: can_connect("127.0.0.1", port))
        # Another address of this machine.
        assert not can_connect("127.0.0.2", port)
        listening = [
            c.laddr
            for process in [psutil.Process(worker.pid)]
            for p in [process, *process.children(recursive=True)]
            for c in p.connections("inet")
            if c.status == psutil.CONN_LISTEN
        ]
        assert [tuple(address) for address in listening] == [("127.0.0.1", port)]
        taken = subprocess.run(
            [sys.executable, START, f"--port={port}"], capture_output=True, text=True
        )
        assert taken.returncode == 1
        assert re.search(
            rf"Cannot listen on 127.0.0.1:{port} .*choose another", taken.stderr
        )
        children = psutil.Process(worker.pid).children()
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    # What it started ends with it.
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_worker_keeps_nothing_of_the_runs_it_served(tff):
    from tff_perfedavg.experiments.files.run_facts import memory_mb
    from tff_perfedavg.runtime.remote_runtime import WorkerPool

    # 40 MB, so that it would show.
    values = np.ones([10**7], np.float32)

    @tff.tensorflow.computation(tff.TensorType(np.float32, values.shape))
    def last(x):
        return x[-1]

    worker, port = start_worker()
    resident = []
    try:
        for _ in range(4):
            pool = WorkerPool([f"127.0.0.1:{port}"], lambda connection: None)
            assert pool.run(last, values) == 1
            pool.close()
            (program,) = psutil.Process(worker.pid).children(recursive=True)
            resident.append(memory_mb(program.pid, "VmRSS"))
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    assert resident[-1] - resident[0] < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_told_to_stop_stops(number):
    worker, port = start_worker()
    wait_for(lambda: can_connect("127.0.0.1", port))
    children = psutil.Process(worker.pid).children()
    worker.send_signal(number)
    assert worker.wait(timeout=10) == 0
    assert "Ended." in worker.stdout.read()
    worker.stdout.close()
    assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.parametrize("address", ["", "0"])
def test_every_address_must_be_meant(address):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with pytest.raises(
            errors.WorkerError, match=r"every address.*give 0"
        ) as caught:
            worker_process.listen(address, 0)
        assert caught.value.remedies == ("address=0.0.0.0",)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_another_address_than_this_machines_own_is_warned_of():
    answer = subprocess.run(
        [sys.executable, START, "--port=9000", "--address=192.0.2.1"],
        capture_output=True,
        text=True,
    )
    assert "WARNING: anyone who reaches 192.0.2.1:9000 can run any" in answer.stderr
    assert "Cannot listen on 192.0.2.1:9000" in answer.stderr
    assert "On the command line: --port, --address." in answer.stderr


@needs_user_namespaces
def test_a_system_without_namespaces_is_told_of():
    forbid = "echo 0 > /proc/sys/user/max_net_namespaces"
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "sh", "-c"),
            f'{forbid}; exec "$0" "$1" --port=8199',
            sys.executable,
            START,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "kept to one address" in done.stderr
    assert "On the command line: --address=0.0.0.0." in done.stderr


def start_worker():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    worker = subprocess.Popen(
        [sys.executable, START, f"--port={port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert f"serves on 127.0.0.1:{port}" in worker.stdout.readline()
    return worker, port


def can_connect(address, port):
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)
