"""Simulates rounds of a fleet of phones: time, network and energy, and no training.

  simulate_fleet.py --fleet_work=model.tflite --compare="over_selection=1.3"

Prints protocols side by side: hours, bytes, joules, what was wasted, and how often each
device class takes part over its share of the fleet. Writes, under --output_dir,
fleet.protocols.csv, fleet.work.json (what a task costs, to be given again), and of the
protocol given fleet.rounds.csv, fleet.tasks.csv, schedule.npz and the timeline of its
last round, fleet.timeline.png.

  simulate_fleet.py --fleet_work=model.tflite --num_users=1000000 --rounds_an_hour=10

Prints instead, for each hour of the day, what rounds back to back come to: rounds an
hour, updates and bits a second, devices at work. Writes fleet.hours.csv.

  simulate_fleet.py --fleet_work=model.tflite --store=STORE

Chooses among the training users of a store. A run of theirs with the same fleet, seed
and work replays the schedule: train.py --fleet_schedule=.../schedule.npz.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.settings import settings_flags
from tff_perfedavg.experiments.settings.fleet_settings import FleetSettings


def define(flag_values):
    settings_flags.define(FleetSettings, flag_values)
    flag_values.set_default("fleet", "mixed")
    flags.DEFINE_multi_string(
        "compare",
        [],
        "Another protocol: settings that differ, with spaces between them.",
        flag_values=flag_values,
    )
    for name, default, text in (
        ("num_users", 100_000, "Users of the fleet."),
        ("clients_per_round", 100, "Reports that a round takes."),
        ("total_rounds", 100, "Rounds taken."),
    ):
        flags.DEFINE_integer(
            name, default, text, lower_bound=1, flag_values=flag_values
        )
    flags.DEFINE_string(
        "store",
        "",
        "User store whose training users may be chosen, in the place of num_users.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "rounds_an_hour",
        0,
        "Rounds simulated in each hour of the day; 0 for protocols side by side.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_local_steps",
        None,
        "Local steps of a task; by default as many as the file takes.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "base_random_seed",
        0,
        "Seed of devices, cohorts and drop-outs.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output_dir",
        "results/fleet",
        "Directory of the tables and the timeline.",
        flag_values=flag_values,
    )


def main(flag_values):
    from tff_perfedavg.experiments.assemble import fleet as assemble
    from tff_perfedavg.experiments.study import protocols

    settings = settings_flags.read(FleetSettings, flag_values)
    if not settings.is_on:
        raise errors.ConfigError("fleet is none; give ideal, mixed or a directory.")
    if settings.fleet_schedule:
        raise errors.ConfigError(
            f"fleet_schedule is {settings.fleet_schedule}, which train replays; here "
            "one is made. Leave it out."
        )
    compared = protocols.variants(settings, flag_values.compare)
    if flag_values.rounds_an_hour and len(compared) > 1:
        raise errors.ConfigError(
            "rounds_an_hour and compare are both given; hours are told of one protocol "
            "at a time."
        )
    work = assemble.build_work(settings, flag_values.num_local_steps)
    fleet, users = _build_fleet(flag_values, settings)
    print(
        f"A task: {work.bytes_down / 1e6:.2f} MB down, {work.steps} steps of "
        f"{1000 * work.step_s:.3g} ms and {1000 * work.fixed_s:.3g} ms beside them on "
        f"a device of speed 1, {work.bytes_up / 1e6:.2f} MB up"
    )
    output_dir = pathlib.Path(flag_values.output_dir)
    if flag_values.rounds_an_hour:
        _tell_hours(flag_values, settings, fleet, work, users)
    else:
        _compare(flag_values, compared, fleet, work, users)
    work.save(output_dir / "fleet.work.json")
    print(f"\nWritten: {output_dir}")


def _build_fleet(flag_values, settings):
    """Returns the fleet, and the numbers of the users that may be chosen."""
    import numpy as np

    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.experiments.assemble import fleet as assemble

    seed = flag_values.base_random_seed
    if not flag_values.store:
        fleet = assemble.build_fleet(settings, flag_values.num_users, seed)
        return fleet, np.arange(flag_values.num_users)
    if flag_values["num_users"].present:
        raise errors.ConfigError(
            f"num_users is {flag_values.num_users}, but users are those of store "
            f"{flag_values.store}; leave out one of the two."
        )
    store = UserStore.open(flag_values.store)
    fleet = assemble.build_fleet(settings, len(store.users), seed, store)
    return fleet, store.training_users


def _tell_hours(flag_values, settings, fleet, work, users):
    """Prints and writes what rounds come to in each hour of the day."""
    from tff_perfedavg.experiments.report import fleet_tables
    from tff_perfedavg.experiments.study import protocols

    hours = protocols.simulate_hours(
        *(fleet, settings, work),
        flag_values.clients_per_round,
        flag_values.rounds_an_hour,
        users,
    )
    table = fleet_tables.hours_table(hours, fleet, settings.needs)
    print(
        f"\nRounds of {flag_values.clients_per_round} reports, back to back, of "
        f"{len(fleet.records):,} users of the fleet {fleet.spec.name}:\n"
    )
    print(table.to_string(float_format=lambda value: f"{value:.3g}"))
    output_dir = pathlib.Path(flag_values.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    table.to_csv(output_dir / "fleet.hours.csv")


def _compare(flag_values, compared, fleet, work, users):
    """Prints protocols side by side, and writes what the one given does."""
    from tff_perfedavg.experiments.files import fleet_rows
    from tff_perfedavg.experiments.report import figures, fleet_figures, fleet_tables
    from tff_perfedavg.experiments.study import protocols
    from tff_perfedavg.fleet.schedule import Schedule, summarize

    steps = protocols.simulate(
        *(fleet, compared, work),
        flag_values.clients_per_round,
        flag_values.total_rounds,
        users,
    )
    classes = fleet.spec.classes
    table = fleet_tables.protocols_table(
        {label: summarize(found, len(classes)) for label, found in steps.items()},
        {device.name: device.share for device in fleet.spec.devices},
    )
    print(f"\n{flag_values.total_rounds} rounds of the fleet {fleet.spec.name}:")
    # Numbered, for their names are longer than what is told of them.
    for number, label in enumerate(table.index, 1):
        print(f"  {number}: {label}")
    numbered = table.set_axis(range(1, len(table) + 1)).T
    print(f"\n{numbered.to_string(float_format=lambda value: f'{value:.3g}')}")

    output_dir = pathlib.Path(flag_values.output_dir)
    given = steps[protocols.AS_GIVEN]
    files = {
        "fleet.protocols.csv": table,
        "fleet.rounds.csv": fleet_rows.rounds_table(given).set_index("step"),
        "fleet.tasks.csv": fleet_rows.tasks_table(given, classes).set_index("step"),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        rows.to_csv(output_dir / name)
    Schedule(classes, tuple(given)).save(output_dir / "schedule.npz")
    figures.save(
        fleet_figures.timeline(given[-1], classes), output_dir / "fleet.timeline.png"
    )
