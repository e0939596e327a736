"""Measures the simulator of fleets: drawing users, and rounds of over-selected phones.

Each size of fleet, and each set of conditions, runs in a process of its own, so that
peak memory is its own. Then trains with a fleet and without, in turn, and compares the
time of a round, and measures how many updates a worker adds up in a second. Prints
tables and writes them as JSON.
"""

import itertools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from absl import flags

from tff_perfedavg.experiments.settings import command
from tff_perfedavg.files import atomic_write

# A task of the paper's MLP on MNIST: 68,000 float32 weights each way.
_WORK = {
    "steps": 10,
    "fixed_s": 0.05,
    "step_s": 0.02,
    "bytes_down": 273_000,
    "bytes_up": 273_000,
}
_CONDITIONS = ("", "idle", "idle,charging,unmetered")
# What is trained: users of a round, and the rest of the experiment.
_TRAINED = (
    ("10 users, logistic regression, 5 steps", 10, "logistic_regression", 5),
    ("10 users, MLP, 10 steps", 10, "mlp", 10),
    ("100 users, MLP, 10 steps", 100, "mlp", 10),
)
_FLEETS = {
    "none": {},
    "mixed": {"fleet": "mixed", "over_selection": 1.3, "round_deadline": 600.0},
}
_TURNS = 3


def define(flag_values):
    flags.DEFINE_multi_integer(
        "num_users",
        [1_000_000, 10_000_000],
        "Users of the fleets.",
        lower_bound=1,
        flag_values=flag_values,
    )
    for name, default, least, text in (
        (
            "clients_per_round",
            1000,
            1,
            "Reports of a round; 1.3 times as many are chosen.",
        ),
        ("total_rounds", 1000, 1, "Rounds."),
        ("trained_rounds", 60, 0, "Rounds of each trained run; 0 to train nothing."),
        ("added_updates", 200, 0, "Updates added up at once; 0 to add up none."),
    ):
        flags.DEFINE_integer(
            name, default, text, lower_bound=least, flag_values=flag_values
        )
    flags.DEFINE_string(
        "output",
        "results/benchmark_fleet.json",
        "File of the figures.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "part",
        None,
        "Conditions of one part, whose JSON is printed.",
        flag_values=flag_values,
    )


def measure(conditions, flag_values):
    """Draws the fleet and runs its rounds; seconds of both, and megabytes."""
    import numpy as np

    from tff_perfedavg.experiments.assemble.fleet import build_fleet, build_protocol
    from tff_perfedavg.experiments.settings.fleet_settings import FleetSettings
    from tff_perfedavg.fleet.cost import Work
    from tff_perfedavg.fleet.simulator import Simulator

    (num_users,) = flag_values.num_users
    before = peak_mb()
    settings = FleetSettings(
        fleet="mixed",
        over_selection=1.3,
        round_deadline=600.0,
        min_reports=max(1, flag_values.clients_per_round * 4 // 5),
        device_conditions=conditions,
    )
    start = time.perf_counter()
    fleet = build_fleet(settings, num_users, 0)
    drawn = time.perf_counter()
    protocol = build_protocol(settings, flag_values.clients_per_round)
    simulator = Simulator(fleet, protocol, Work(**_WORK), np.arange(num_users))
    # Not the first round: its arrays are the first of their size.
    simulator.next_round(0)
    began = time.perf_counter()
    for number in range(1, flag_values.total_rounds + 1):
        simulator.next_round(number)
    ended = time.perf_counter()
    return {
        "num_users": num_users,
        "conditions": conditions,
        "draw_s": drawn - start,
        "rounds_s": ended - began,
        "ms_a_round": 1000 * (ended - began) / flag_values.total_rounds,
        "simulated_hours": simulator.clock_s / 3600,
        "fleet_mb": fleet.records.nbytes / 1e6,
        "imports_mb": before,
        "peak_mb": peak_mb(),
    }


def peak_mb():
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def train(flag_values):
    """Trains with a fleet and without, in turn; milliseconds of a round of each."""
    command.load_frameworks()
    import numpy as np

    from tff_perfedavg.experiments.files.run_paths import RunPaths
    from tff_perfedavg.experiments.settings.experiment import Experiment
    from tff_perfedavg.experiments.settings.training_options import TrainingOptions
    from tff_perfedavg.experiments.training.training import train_and_save
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    found = []
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        work = root / "work.json"
        work.write_text(json.dumps(_WORK))

        def rounds(name, turn, **settings):
            """Seconds of the rounds of a run."""
            times = []
            experiment = Experiment(
                dataset="synthetic",
                num_new_users=0,
                total_rounds=flag_values.trained_rounds,
                **settings,
            )
            train_and_save(
                experiment,
                RunPaths(root, f"{experiment.model}{name}{turn}"),
                TrainingOptions(rounds_per_evaluation=0),
                on_round=lambda done: times.append(time.perf_counter()),
            )
            # Not the first rounds, which trace and load.
            return np.diff(times)[5:].tolist()

        for label, num_users, model, num_steps in _TRAINED:
            seconds = {fleet: [] for fleet in _FLEETS}
            trained = {
                "model": model,
                "num_local_steps": num_steps,
                "clients_per_round": num_users,
                "num_users": 10 * num_users,
            }
            for turn, (fleet, given) in itertools.product(
                range(_TURNS), _FLEETS.items()
            ):
                on = {"fleet_work": str(work), **given} if given else {}
                name = f"{num_users}{fleet}"
                seconds[fleet] += rounds(name, turn, **trained, **on)
            without, with_fleet = (1e3 * np.median(seconds[f]) for f in _FLEETS)
            found.append(
                {
                    "trained": label,
                    "ms_without": without,
                    "ms_with": with_fleet,
                    "ratio": with_fleet / without,
                }
            )
    return found


def add_up(flag_values):
    """Adds updates up in TFF's worker and in NumPy, in turn; updates a second."""
    command.load_frameworks()
    import numpy as np
    import tensorflow_federated as tff

    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    size = _WORK["bytes_up"] // 4
    kind = tff.FederatedType(tff.TensorType(np.float32, [size]), tff.CLIENTS)

    @tff.federated_computation(kind)
    def worker(updates):
        return tff.federated_sum(updates)

    def alone(updates):
        total = np.zeros([size], np.float32)
        for update in updates:
            # As a server must: an update that is not finite is left out.
            if np.isfinite(update @ update):
                total += update
        return total

    rng = np.random.default_rng(0)
    updates = [*rng.normal(size=[flag_values.added_updates, size]).astype(np.float32)]
    seconds = {"TFF worker": [], "NumPy": []}
    for _ in range(7):
        for name, add in zip(seconds, (worker, alone), strict=True):
            start = time.perf_counter()
            add(updates)
            seconds[name].append(time.perf_counter() - start)
    return [
        {"what": name, "updates_a_second": len(updates) / float(np.median(found))}
        for name, found in seconds.items()
    ]


def main(flag_values):
    if flag_values.part is not None:
        print(json.dumps(measure(flag_values.part, flag_values)))
        return
    results = {"fleets": simulate(flag_values), "training": [], "adding_up": []}
    if flag_values.added_updates:
        results["adding_up"] = add_up(flag_values)
    if flag_values.trained_rounds:
        results["training"] = train(flag_values)
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(json.dumps(results, indent=1).encode())
    print(
        f"{'users':>12}  {'conditions':25}{'draw s':>8}{'ms a round':>12}"
        f"{'simulated h':>13}{'peak MB':>9}"
    )
    for found in results["fleets"]:
        print(
            f"{found['num_users']:12,}  {found['conditions'] or 'always on':25}"
            f"{found['draw_s']:8.2f}{found['ms_a_round']:12.1f}"
            f"{found['simulated_hours']:13.1f}{found['peak_mb']:9.0f}"
        )
    if results["training"]:
        print(f"\n{'trained':40}{'ms without':>12}{'with fleet':>12}{'ratio':>8}")
    for found in results["training"]:
        print(
            f"{found['trained']:40}{found['ms_without']:12.1f}"
            f"{found['ms_with']:12.1f}{found['ratio']:8.3f}"
        )
    for found in results["adding_up"]:
        print(
            f"\n{found['what']}: {found['updates_a_second']:,.0f} updates of "
            f"{_WORK['bytes_up'] / 1e6:.2f} MB added up a second"
        )
    print(f"Written: {flag_values.output}")


def simulate(flag_values):
    """Returns what `measure` finds for each size and conditions."""
    results = []
    for num_users in flag_values.num_users:
        for conditions in _CONDITIONS:
            answer = subprocess.run(
                [
                    *(sys.executable, __file__, f"--part={conditions}"),
                    f"--num_users={num_users}",
                    f"--clients_per_round={flag_values.clients_per_round}",
                    f"--total_rounds={flag_values.total_rounds}",
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            results.append(json.loads(answer.stdout.splitlines()[-1]))
    return results


if __name__ == "__main__":
    command.run(main, define)
