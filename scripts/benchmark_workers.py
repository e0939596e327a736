"""What a round costs on one machine and on workers reached by address.

Starts workers on this machine's own address (`scripts/start_worker.py`), trains the
same rounds on the runtime of one machine, with and without the network namespace that
keeps others from its worker, on one worker and on two, in turn, and prints medians. On
one machine the workers share its cores: what shows is the cost of going through the
network and of merging, not the gain of more machines.

With --runs=N, instead: what one worker's memory grows by with every run it serves. Each
of N runs connects, trains --turns rounds and disconnects.
"""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from absl import flags

from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import atomic_write

_START = pathlib.Path(__file__).parent / "start_worker.py"
# The second's worker is reached directly, since it listens on every address.
_NAMES = ("one machine", "one, unguarded", "one worker", "two workers")


@contextlib.contextmanager
def define(flag_values):
    flags.DEFINE_integer(
        "turns", 15, "Rounds timed for each.", 3, flag_values=flag_values
    )
    flags.DEFINE_integer("num_local_steps", 10, "tau.", 1, flag_values=flag_values)
    flags.DEFINE_integer(
        "clients_per_round", 20, "Users per round.", 2, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "runs",
        0,
        "Runs that one worker serves one after another, to see it grow.",
        0,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output",
        "results/benchmark_workers.json",
        "Where the figures are written.",
        flag_values=flag_values,
    )


def worker():
    """A worker on a free port of this machine; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, _START, f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


def main(flag_values):
    command.load_frameworks()
    figures = (
        serve_runs(flag_values.runs, flag_values)
        if flag_values.runs
        else compare_places(flag_values)
    )
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(json.dumps(figures, indent=1).encode())
    print(f"Written: {flag_values.output}")


def serve_runs(num_runs, flag_values):
    """Prints a worker's memory after every run, and what a run adds."""
    import numpy as np
    import psutil
    import tensorflow_federated as tff

    from tff_perfedavg.experiments.assemble.build import (
        build_client_data,
        build_model,
        build_process,
    )
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.files.run_facts import memory_mb
    from tff_perfedavg.fleet.cohort import sample_cohort
    from tff_perfedavg.runtime.remote_runtime import RemoteContext, WorkerPool
    from tff_perfedavg.runtime.store_check import store_check

    experiment = Experiment(
        num_local_steps=flag_values.num_local_steps,
        clients_per_round=flag_values.clients_per_round,
        block_size=5,
    )
    resident = []
    with tempfile.TemporaryDirectory() as directory, worker() as (address, pid):
        population = build_population(experiment, pathlib.Path(directory))
        check = store_check(population)
        for run in range(num_runs):
            # All of a run is built anew, as by a process of its own.
            with (
                contextlib.closing(WorkerPool([address], check)) as pool,
                tff.framework.get_context_stack().install(RemoteContext(pool)),
            ):
                model = build_model(experiment, population)
                client_data = build_client_data(experiment, model, population)
                process = build_process(experiment, model, client_data)
                state = process.initialize()
                for turn in range(flag_values.turns):
                    cohort = sample_cohort(
                        population.training_users,
                        flag_values.clients_per_round,
                        run,
                        turn,
                    )
                    state = process.next(state, client_data.clients(cohort)).state
            (program,) = psutil.Process(pid).children(recursive=True)
            resident.append(memory_mb(program.pid, "VmRSS"))
            print(f"after {run + 1} runs: {resident[-1]:.1f} MB", flush=True)
    # The first runs fill caches that later ones find filled.
    settled = resident[num_runs // 3 :]
    growth = float(np.polyfit(range(len(settled)), settled, 1)[0])
    print(f"A run adds {growth:.2f} MB.")
    return {"resident_mb": resident, "mb_per_run": growth}


def compare_places(flag_values):
    """Prints what a round costs on one machine, on one worker and on two."""
    import numpy as np
    import tensorflow_federated as tff

    from tff_perfedavg.experiments.assemble.build import (
        build_client_data,
        build_model,
        build_process,
    )
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.fleet.cohort import sample_cohort
    from tff_perfedavg.runtime.local_runtime import LocalRuntime
    from tff_perfedavg.runtime.remote_runtime import RemoteContext, WorkerPool
    from tff_perfedavg.runtime.store_check import store_check

    experiment = Experiment(
        num_local_steps=flag_values.num_local_steps,
        clients_per_round=flag_values.clients_per_round,
        block_size=5,
    )
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        population = build_population(experiment, pathlib.Path(directory))
        addresses = [stack.enter_context(worker())[0] for _ in range(3)]
        contexts = [LocalRuntime().context, LocalRuntime(private=False).context]
        for chosen in (addresses[:1], addresses[1:]):
            pool = WorkerPool(chosen, store_check(population))
            stack.callback(pool.close)
            contexts.append(RemoteContext(pool))
        model = build_model(experiment, population)
        client_data = build_client_data(experiment, model, population)
        process = build_process(experiment, model, client_data)
        cohort = sample_cohort(
            population.training_users, flag_values.clients_per_round, 0, 0
        )
        clients = client_data.clients(cohort)
        seconds = [[] for _ in contexts]
        states = []
        for turn in range(flag_values.turns + 1):
            for context, times in zip(contexts, seconds, strict=True):
                with tff.framework.get_context_stack().install(context):
                    if turn == 0:
                        states.append(process.initialize())
                    state = states[contexts.index(context)]
                    start = time.monotonic()
                    output = process.next(state, clients)
                    times.append(time.monotonic() - start)
                    states[contexts.index(context)] = output.state
        weights = [
            np.concatenate([np.ravel(w) for w in s.global_model_weights.trainable])
            for s in states
        ]
    # The first of each compiles.
    medians = [float(1e3 * np.median(times[1:])) for times in seconds]
    print(f"{'':14}{'ms/round':>10}{'to one machine':>16}{'difference':>12}")
    figures = {}
    for name, median, found in zip(_NAMES, medians, weights, strict=True):
        difference = float(np.abs(found - weights[0]).max())
        figures[name] = {"median_ms": median, "largest_difference": difference}
        print(f"{name:14}{median:10.1f}{median / medians[0]:15.2f}x{difference:12.1e}")
    return figures


if __name__ == "__main__":
    command.run(main, define)
