"""Weights of short runs, as a net under changes that must not change a bit of them.

  python -m tests.weights tests/data/weights.json

writes what `tests/test_same_weights.py` compares with: run it before such a change.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import platform
import sys
import tempfile

import numpy as np

from tff_perfedavg.algorithms.registry import methods
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.settings.experiment import Experiment

_SHORT = Experiment(
    total_rounds=3, clients_per_round=4, num_local_steps=2, batch_size=5
)
DATASETS = {
    "digits": _SHORT,
    "sinusoid": dataclasses.replace(
        _SHORT, dataset="sinusoid", model="mlp_regressor", num_users=40, num_new_users=8
    ),
    "mnist": dataclasses.replace(_SHORT, dataset="mnist"),
    "uci_har": dataclasses.replace(_SHORT, dataset="uci_har", model="conv1d"),
}
METHODS = ("fed_avg", "first_order", "hessian_free", "exact")
FORMS = ("users", "blocks_loop", "blocks_vectorized")


def keys(datasets):
    """Names of all runs of some data sets."""
    return ["/".join(parts) for parts in itertools.product(datasets, METHODS, FORMS)]


def train_short(key, root):
    """Hash, sum and norm of the weights that a short run ends with."""
    from tff_perfedavg.experiments.training.training import train

    dataset, method, form = key.split("/")
    experiment = dataclasses.replace(
        DATASETS[dataset],
        **methods()[method],
        hessian_batch="own",
        client_form=form,
        block_size=2,
    )
    result = train(experiment, build_population(experiment, root))
    flat = np.concatenate([w.ravel() for w in result.weights]).astype("<f4")
    return {
        "sha256": hashlib.sha256(flat.tobytes()).hexdigest(),
        "sum": float(flat.sum(dtype=np.float64)),
        "norm": float(np.linalg.norm(flat.astype(np.float64))),
    }


def processor():
    """What rounding depends on."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    vector = sorted(w for w in flags.split() if w.startswith(("avx", "amx", "fma")))
    return f"{platform.machine()} {' '.join(vector)}"


def main():
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    with tempfile.TemporaryDirectory() as root:
        runs = {key: train_short(key, pathlib.Path(root)) for key in keys(DATASETS)}
    found = {"processor": processor(), "runs": runs}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
