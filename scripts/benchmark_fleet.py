"""Measures the simulator of fleets: drawing users, and rounds of over-selected phones.

Each size of fleet, and each set of conditions, runs in a process of its own, so that
peak memory is its own. Prints a table and writes it as JSON.
"""

import json
import pathlib
import resource
import subprocess
import sys
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


def define(flag_values):
    flags.DEFINE_multi_integer(
        "num_users",
        [1_000_000, 10_000_000],
        "Users of the fleets.",
        lower_bound=1,
        flag_values=flag_values,
    )
    for name, default, text in (
        (
            "clients_per_round",
            1000,
            "Reports of a round; 1.3 times as many are chosen.",
        ),
        ("total_rounds", 1000, "Rounds."),
    ):
        flags.DEFINE_integer(
            name, default, text, lower_bound=1, flag_values=flag_values
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
    from tff_perfedavg.fleet.schedule import summarize
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
    began, steps = time.perf_counter(), []
    for number in range(1, flag_values.total_rounds + 1):
        steps += simulator.next_round(number)
    ended = time.perf_counter()
    return {
        "num_users": num_users,
        "conditions": conditions,
        "draw_s": drawn - start,
        "rounds_s": ended - began,
        "ms_a_round": 1000 * (ended - began) / flag_values.total_rounds,
        "simulated_hours": summarize(steps, len(fleet.spec.devices)).hours,
        "fleet_mb": fleet.records.nbytes / 1e6,
        "imports_mb": before,
        "peak_mb": peak_mb(),
    }


def peak_mb():
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main(flag_values):
    if flag_values.part is not None:
        print(json.dumps(measure(flag_values.part, flag_values)))
        return
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
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(json.dumps(results, indent=1).encode())
    print(
        f"{'users':>12}  {'conditions':25}{'draw s':>8}{'ms a round':>12}"
        f"{'simulated h':>13}{'peak MB':>9}"
    )
    for found in results:
        print(
            f"{found['num_users']:12,}  {found['conditions'] or 'always on':25}"
            f"{found['draw_s']:8.2f}{found['ms_a_round']:12.1f}"
            f"{found['simulated_hours']:13.1f}{found['peak_mb']:9.0f}"
        )
    print(f"Written: {flag_values.output}")


if __name__ == "__main__":
    command.run(main, define)
