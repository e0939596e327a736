"""Adapts a trained initial model to users and saves each one's weights.

Writes a directory --output_dir that `PersonalizedStore.open` reads: float32 weights of
every user chosen, memory-mapped, found by the user's number.
"""

import dataclasses
import pathlib

from absl import flags

from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command, common_flags
from tff_perfedavg.experiments.settings.experiment import check_experiment_name


def define(flag_values):
    flags.DEFINE_string(
        "experiment_name", None, "The run.", required=True, flag_values=flag_values
    )
    common_flags.define_root(flag_values)
    flags.DEFINE_string(
        "output_dir", None, "What is written.", required=True, flag_values=flag_values
    )
    flags.DEFINE_list(
        "users", "", "Numbers of users; by default --group.", flag_values=flag_values
    )
    flags.DEFINE_enum(
        "group",
        "new",
        ["new", "seen", "all"],
        "Which users, if not named one by one.",
        flag_values=flag_values,
    )
    common_flags.define_adaptation(flag_values, "the run's")
    common_flags.define_what_moves(flag_values)
    flags.DEFINE_integer(
        "adaptation_rows",
        None,
        "The most rows of a user used; by default all.",
        flag_values=flag_values,
    )
    common_flags.define_rows_per_class(flag_values)
    flags.adopt_module_key_flags(common_flags, flag_values)


def main(flag_values):
    check_experiment_name(flag_values.experiment_name)
    users = command.numbers(flag_values, "users", int)
    changes = common_flags.adaptation_changes(flag_values)
    run = RunPaths(
        pathlib.Path(flag_values.root_output_dir), flag_values.experiment_name
    )
    from tff_perfedavg.experiments.files import trained_model, trained_runs

    weights, experiment = trained_model.load(run.model)
    command.warn(trained_runs.diverged_warnings(run))
    common_flags.check_head_moves(changes, [experiment.local.adaptation])
    config = dataclasses.replace(experiment.local.adaptation, **changes)
    command.load_frameworks()
    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.evaluation.personalize import (
        Personalization,
        personalize,
    )
    from tff_perfedavg.experiments.files.sources import check_sources

    check_sources(experiment, run.model, run.root)
    population = build_population(experiment, run.root)
    if not users:
        users = {
            "new": population.new_users,
            "seen": population.training_users,
            "all": range(population.num_users),
        }[flag_values.group]
    model = build_model(experiment, population)
    seed = flag_values.base_random_seed
    store = personalize(
        Personalization(model, weights, population, config, seed),
        users,
        flag_values.output_dir,
        provenance={"experiment": experiment.flat()},
    )
    print(f"Written: {store.path}, weights of {len(store.users)} users")
