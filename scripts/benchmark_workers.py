"""What a round costs on one machine and on workers reached by address.

Starts workers on this machine's own address (`scripts/start_worker.py`), trains the
same rounds on the runtime of one machine, on one worker and on two, in turn, and prints
medians. On one machine the workers share its cores: what shows is the cost of going
through the network and of merging, not the gain of more machines.
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

from tff_perfedavg.files import atomic_write
from tff_perfedavg.programs import command
from tff_perfedavg.programs.experiment import Experiment

_TURNS = flags.DEFINE_integer("turns", 15, "Rounds timed for each.", 3)
_TAU = flags.DEFINE_integer("num_local_steps", 10, "tau.", 1)
_CLIENTS = flags.DEFINE_integer("clients_per_round", 20, "Users per round.", 2)
_OUTPUT = flags.DEFINE_string(
    "output", "results/benchmark_workers.json", "Where the figures are written."
)
_START = pathlib.Path(__file__).parent / "start_worker.py"
_NAMES = ("one machine", "one worker", "two workers")


@contextlib.contextmanager
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
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def main():
    command.load_frameworks()
    import numpy as np
    import tensorflow_federated as tff

    from tff_perfedavg.programs.build import (
        build_client_data,
        build_model,
        build_process,
    )
    from tff_perfedavg.programs.population import build_population
    from tff_perfedavg.simulation.cohort import sample_cohort
    from tff_perfedavg.simulation.local_runtime import LocalRuntime
    from tff_perfedavg.simulation.remote_runtime import RemoteContext, WorkerPool
    from tff_perfedavg.simulation.store_check import store_check

    experiment = Experiment(
        num_local_steps=_TAU.value, clients_per_round=_CLIENTS.value, block_size=5
    )
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        population = build_population(experiment, pathlib.Path(directory))
        addresses = [stack.enter_context(worker()) for _ in range(3)]
        contexts = [LocalRuntime().context]
        for chosen in (addresses[:1], addresses[1:]):
            pool = WorkerPool(chosen, store_check(population))
            stack.callback(pool.close)
            contexts.append(RemoteContext(pool))
        model = build_model(experiment, population)
        client_data = build_client_data(experiment, model, population)
        process = build_process(experiment, model, client_data)
        cohort = sample_cohort(population.training_users, _CLIENTS.value, 0, 0)
        clients = client_data.clients(cohort)
        seconds = [[] for _ in contexts]
        states = []
        for turn in range(_TURNS.value + 1):
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
    with atomic_write(pathlib.Path(_OUTPUT.value)) as file:
        file.write(json.dumps(figures, indent=1).encode())
    print(f"Written: {_OUTPUT.value}")


if __name__ == "__main__":
    command.run(main)
