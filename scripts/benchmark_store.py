"""Measures the user store at a million users: writing, opening, reading through TFF.

Prints a table and writes it as JSON. Each part runs in a process of its own, so that
peak memory is that part's.
"""

import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

from absl import flags

from tff_perfedavg.experiments.files.run_facts import memory_mb
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.files import atomic_write

_OPENINGS = 20


def define(flag_values):
    flags.DEFINE_string(
        "store_dir",
        "results/benchmark_store",
        "Where the store is written.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output",
        "results/benchmark_store.json",
        "File of the figures.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "keep",
        False,
        "Keep the store, and use one that is there.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_users", 1_000_000, "Users.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "rows_per_user", 20, "Rows per user.", lower_bound=2, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_features", 32, "uint8 features.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "cohort", 10_000, "Users read.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_enum(
        "part",
        None,
        ["write", "open", "read"],
        "Run one part and print its JSON.",
        flag_values=flag_values,
    )


def write(path, flag_values):
    """Writes the store; seconds."""
    import numpy as np

    from tff_perfedavg.data.user_store import Description, Rows, User, UserStore

    end = max(1, flag_values.rows_per_user * 4 // 5)

    def users():
        for number in range(flag_values.num_users):
            rng = np.random.Generator(np.random.SFC64(number))
            x = rng.integers(
                0, 256, [flag_values.rows_per_user, flag_values.num_features], np.uint8
            )
            y = rng.integers(0, 10, [flag_values.rows_per_user], np.int32)
            yield User(Rows(x[:end], y[:end]), Rows(x[end:], y[end:]))

    start = time.perf_counter()
    UserStore.write(path, users(), Description("benchmark", 10, scale=1 / 255))
    return {"seconds": time.perf_counter() - start}


def open_store(path, flag_values):
    """Opens the store; median seconds."""
    from tff_perfedavg.data.user_store import UserStore

    taken = []
    for _ in range(_OPENINGS):
        start = time.perf_counter()
        UserStore.open(path).adaptation(flag_values.num_users - 1)
        taken.append(time.perf_counter() - start)
    return {"seconds": sorted(taken)[_OPENINGS // 2], "first_seconds": taken[0]}


def read(path, flag_values):
    """Reads all rows of a cohort's users in a federated computation; seconds."""
    command.load_frameworks()
    import numpy as np
    import psutil
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.federated.client_data import StoreClientData
    from tff_perfedavg.models.dense import logistic_regression
    from tff_perfedavg.optimization.batches import all_rows
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    runtime = use_local_runtime()
    store = UserStore.open(path)
    client_data = StoreClientData(
        store, logistic_regression((flag_values.num_features,), 10)
    )

    @tff.tensorflow.computation(client_data.training_type)
    def total(value):
        return client_data.sum_users(
            value, lambda _, rows: tf.reduce_sum(all_rows(rows).x), None
        )

    @tff.federated_computation(
        tff.FederatedType(client_data.training_type, tff.CLIENTS)
    )
    def total_of_all(values):
        return tff.federated_sum(tff.federated_map(total, values))

    chosen = np.random.default_rng(0).choice(
        flag_values.num_users,
        min(flag_values.cohort, flag_values.num_users),
        replace=False,
    )
    total_of_all([np.int32(chosen[0])])
    start = time.perf_counter()
    found = total_of_all([np.int32(user) for user in chosen])
    seconds = time.perf_counter() - start
    expected = sum(
        float(store.adaptation(user).x.sum(dtype=np.int64)) for user in chosen
    )
    assert np.isclose(found, expected / 255, rtol=1e-4), (found, expected / 255)
    # Kept by the kernel: the worker's largest resident size so far.
    rss = psutil.Process(runtime.worker.pid).memory_full_info()
    return {
        "seconds": seconds,
        "milliseconds_per_user": 1e3 * seconds / len(chosen),
        "worker_peak_mb": memory_mb(runtime.worker.pid, "VmHWM"),
        "worker_private_mb": rss.uss / 1e6,
    }


def main(flag_values):
    path = pathlib.Path(flag_values.store_dir)
    if flag_values.part:
        part = {"write": write, "open": open_store, "read": read}[flag_values.part]
        figures = part(path, flag_values)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({**figures, "peak_mb": peak / 1e3}))
        return
    if path.exists() and not flag_values.keep:
        shutil.rmtree(path)
    sizes = ("num_users", "rows_per_user", "num_features")
    settings = [f"--{name}={flag_values[name].value}" for name in sizes]
    settings += [f"--cohort={flag_values.cohort}", f"--store_dir={path}"]
    parts = ["open", "read"] if path.exists() else ["write", "open", "read"]
    results = {"num_users": flag_values.num_users, "cohort": flag_values.cohort}
    for part in parts:
        answer = subprocess.run(
            [sys.executable, __file__, f"--part={part}", *settings],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results[part] = json.loads(answer.stdout.splitlines()[-1])
    results["store_mb"] = sum(f.stat().st_size for f in path.iterdir()) / 1e6
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(json.dumps(results, indent=1).encode())

    print(f"{flag_values.num_users} users, {results['store_mb']:.0f} MB on disk")
    print(f"{'part':8}{'seconds':>12}{'peak MB':>10}{'worker peak MB':>16}")
    for part in parts:
        figures = results[part]
        worker = figures.get("worker_peak_mb")
        print(
            f"{part:8}{figures['seconds']:12.4f}{figures['peak_mb']:10.0f}"
            + (f"{worker:16.0f}" if worker else "")
        )
    if "read" in results:
        per_user = results["read"]["milliseconds_per_user"]
        print(f"reading: {per_user:.3f} ms per user of {flag_values.cohort}")
    print(f"Written: {flag_values.output}")
    if not flag_values.keep:
        shutil.rmtree(path)


if __name__ == "__main__":
    command.run(main, define)
