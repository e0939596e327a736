"""Measures how the cost of a round grows with the cohort, from a million users.

For each cohort size, in a process of its own: time per user of a round and peak memory
of this process and of TFF's worker. Then many rounds of changing cohort size in one
process: the slope of memory over rounds. Prints a table and writes JSON.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

from absl import flags

from tff_perfedavg.experiments.files.run_facts import memory_mb
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.files import atomic_write
from tff_perfedavg.optimization.hessian import VARIANTS


def define(flag_values):
    flags.DEFINE_string(
        "store_dir",
        "results/benchmark_store",
        "The store, as scripts/benchmark_store.py writes it; written if it is not "
        "there.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output",
        "results/benchmark_scale.json",
        "File of the figures.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "cohorts", ["100", "1000", "10000", "100000"], "Sizes.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "rounds", 9, "Rounds timed per size.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "slope_rounds", 200, "Rounds of changing size.", flag_values=flag_values
    )
    flags.DEFINE_enum(
        "variant", "exact", VARIANTS, "Per-FedAvg's variant.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "part",
        None,
        "A cohort size or 'slope': that part alone.",
        flag_values=flag_values,
    )


def build(flag_values):
    """The runtime, the process and the client data of the tiny model."""
    command.load_frameworks()
    import tff_perfedavg as pfa

    runtime = pfa.use_local_runtime()
    store = pfa.UserStore.open(flag_values.store_dir)
    model = pfa.models.logistic_regression(
        store.input_shape, store.description.num_classes
    )
    client_data = pfa.federated.choose_client_data(store, model, cohort_size=100_000)
    config = pfa.PerFedAvgConfig(
        0.01,
        0.01,
        num_local_steps=5,
        support_batch_size=5,
        query_batch_size=5,
        hessian_batch_size=5,
        variant=flag_values.variant,
    )
    process = pfa.build_per_fed_avg(model, config, client_data=client_data)
    return runtime, store, process, client_data


def one_size(size, flag_values):
    """Time and peak memory of rounds of one cohort size."""
    import os

    from tff_perfedavg.fleet.cohort import sample_cohort

    runtime, store, process, client_data = build(flag_values)
    users = range(store.num_users)
    state = process.initialize()
    taken = []
    for round_number in range(flag_values.rounds + 1):
        cohort = sample_cohort(users, size, 0, round_number)
        start = time.perf_counter()
        state, metrics = process.next(state, client_data.clients(cohort))
        taken.append(time.perf_counter() - start)
        assert metrics["client_work"]["num_users_taken"] == size
    return {
        "cohort": size,
        # The first round compiles.
        "milliseconds_per_user": 1e3 * statistics.median(taken[1:]) / size,
        "first_round_seconds": taken[0],
        "peak_mb": memory_mb(os.getpid(), "VmHWM"),
        "worker_peak_mb": memory_mb(runtime.worker.pid, "VmHWM"),
    }


def slope(flag_values):
    """Memory over rounds of changing cohort size: MB per round, by least squares."""
    import os

    import numpy as np

    from tff_perfedavg.fleet.cohort import sample_cohort

    runtime, store, process, client_data = build(flag_values)
    users = range(store.num_users)
    rng = np.random.default_rng(0)
    state = process.initialize()
    memory, taken = [], []
    for round_number in range(flag_values.slope_rounds):
        size = int(rng.integers(100, 3000))
        cohort = sample_cohort(users, size, 0, round_number)
        start = time.perf_counter()
        state = process.next(state, client_data.clients(cohort)).state
        taken.append(1e3 * (time.perf_counter() - start) / size)
        pids = (os.getpid(), runtime.worker.pid)
        memory.append([memory_mb(pid, "VmRSS") for pid in pids])
    # The first quarter fills caches.
    tail = np.array(memory[len(memory) // 4 :])
    slopes = np.polyfit(np.arange(len(tail)), tail, 1)[0]
    return {
        "rounds": flag_values.slope_rounds,
        "mb_per_round": slopes[0],
        "worker_mb_per_round": slopes[1],
        "mb_first_and_last": [memory[0], memory[-1]],
        "milliseconds_per_user_first_and_last_quarter": [
            statistics.median(taken[1 : len(taken) // 4]),
            statistics.median(taken[-len(taken) // 4 :]),
        ],
    }


def main(flag_values):
    if flag_values.part:
        part = (
            slope(flag_values)
            if flag_values.part == "slope"
            else one_size(int(flag_values.part), flag_values)
        )
        print(json.dumps(part))
        return
    here = pathlib.Path(__file__).parent
    if not pathlib.Path(flag_values.store_dir).exists():
        subprocess.run(
            [
                sys.executable,
                here / "benchmark_store.py",
                "--part=write",
                f"--store_dir={flag_values.store_dir}",
            ],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    results = {"variant": flag_values.variant, "cohorts": []}
    print(f"{'cohort':>8}{'ms/user':>10}{'peak MB':>10}{'worker peak MB':>16}")
    for part in [*flag_values.cohorts, "slope"]:
        answer = subprocess.run(
            [
                sys.executable,
                __file__,
                f"--part={part}",
                f"--store_dir={flag_values.store_dir}",
                f"--variant={flag_values.variant}",
                f"--rounds={flag_values.rounds}",
                f"--slope_rounds={flag_values.slope_rounds}",
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(answer.stdout.splitlines()[-1])
        if part == "slope":
            results["slope"] = found
            first, last = found["milliseconds_per_user_first_and_last_quarter"]
            print(
                f"{found['rounds']} rounds of 100 to 3000 users: "
                f"{found['mb_per_round']:+.3f} MB a round here, "
                f"{found['worker_mb_per_round']:+.3f} in the worker; "
                f"{first:.3f} ms/user at first, {last:.3f} at last"
            )
        else:
            results["cohorts"].append(found)
            print(
                f"{found['cohort']:8}{found['milliseconds_per_user']:10.3f}"
                f"{found['peak_mb']:10.0f}{found['worker_peak_mb']:16.0f}",
                flush=True,
            )
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(json.dumps(results, indent=1).encode())
    print(f"Written: {flag_values.output}")


if __name__ == "__main__":
    command.run(main, define)
