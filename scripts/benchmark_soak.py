"""Trains a tiny model for thousands of rounds and watches time and memory.

Checkpoints, evaluations and logs as in any run. Prints the time of a round and the
memory of this process and of TFF's worker over the run, and their growth (slope of a
straight line through the second half). Writes them as JSON.
"""

import json
import os
import pathlib
import tempfile
import time

from absl import flags

from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.files import atomic_write

_PARTS = 10


def define(flag_values):
    flags.DEFINE_integer("total_rounds", 2000, "Rounds.", 100, flag_values=flag_values)
    flags.DEFINE_string(
        "output",
        "results/benchmark_soak.json",
        "Where the figures are written.",
        flag_values=flag_values,
    )


def main(flag_values):
    command.load_frameworks()
    import numpy as np
    import psutil

    from tff_perfedavg.experiments.files.run_paths import RunPaths
    from tff_perfedavg.experiments.training.training import train_and_save
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    runtime = use_local_runtime()
    processes = [psutil.Process(pid) for pid in (os.getpid(), runtime.worker.pid)]
    samples = []

    def sample(done):
        memory = [process.memory_info().rss / 1e6 for process in processes]
        samples.append((done, time.monotonic(), *memory))

    experiment = Experiment(
        model="logistic_regression",
        num_local_steps=5,
        clients_per_round=10,
        total_rounds=flag_values.total_rounds,
    )
    options = TrainingOptions(rounds_per_checkpoint=10, rounds_per_evaluation=100)
    with tempfile.TemporaryDirectory() as directory:
        paths = RunPaths(pathlib.Path(directory), "soak")
        train_and_save(experiment, paths, options, on_round=sample)

    rounds, times, parent, worker = np.array(samples).T
    seconds = np.diff(times)
    print(f"{'rounds':>14}{'ms/round':>10}{'this MB':>10}{'worker MB':>11}")
    parts = []
    for part in np.array_split(np.arange(1, len(rounds)), _PARTS):
        figures = {
            "from": int(rounds[part[0]]),
            "to": int(rounds[part[-1]]),
            "median_ms": float(1e3 * np.median(seconds[part - 1])),
            "mb": float(np.median(parent[part])),
            "worker_mb": float(np.median(worker[part])),
        }
        parts.append(figures)
        print(
            f"{figures['from']:7}-{figures['to']:<6}{figures['median_ms']:10.2f}"
            f"{figures['mb']:10.1f}{figures['worker_mb']:11.1f}"
        )
    late = slice(len(seconds) // 2, None)

    def slope(values):
        return float(1e3 * np.polyfit(rounds[1:][late], values[late], 1)[0])

    growth = {
        "ms": slope(1e3 * seconds),
        "this MB": slope(parent[1:]),
        "worker MB": slope(worker[1:]),
    }
    print("Growth per 1000 rounds, over the second half:")
    for name, value in growth.items():
        print(f"  {name:10}{value:+8.2f}")
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(
            json.dumps(
                {"parts": parts, "growth_per_1000_rounds": growth}, indent=1
            ).encode()
        )
    print(f"Written: {flag_values.output}")


if __name__ == "__main__":
    command.run(main, define)
