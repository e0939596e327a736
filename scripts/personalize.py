"""Adapts a trained initial model to users and saves each one's weights.

Writes a directory --output_dir that `PersonalizedStore.open` reads: float32 weights of
every user chosen, memory-mapped, found by the user's number.
"""

import dataclasses
import pathlib

from absl import flags

from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.experiment import check_experiment_name
from tff_perfedavg.optimization.config import AdaptationConfig

_NAME = flags.DEFINE_string("experiment_name", None, "The run.", required=True)
_ROOT = flags.DEFINE_string("root_output_dir", "results", "Directory of all runs.")
_OUTPUT = flags.DEFINE_string("output_dir", None, "What is written.", required=True)
_USERS = flags.DEFINE_list("users", "", "Numbers of users; by default --group.")
_GROUP = flags.DEFINE_enum(
    "group", "new", ["new", "seen", "all"], "Which users, if not named one by one."
)
_RATE = flags.DEFINE_float(
    "inner_learning_rate", None, "alpha; by default the run's own."
)
_STEPS = flags.DEFINE_integer("adaptation_steps", 5, "Gradient steps per user.")
_BATCH = flags.DEFINE_integer(
    "adaptation_batch_size", None, "Rows per step; by default all a user has."
)
_ROWS = flags.DEFINE_integer(
    "adaptation_rows", None, "The most rows of a user used; by default all."
)
_SEED = flags.DEFINE_integer(
    "base_random_seed", 0, "Seed of adaptation batches.", lower_bound=0
)


def main():
    check_experiment_name(_NAME.value)
    users = command.numbers(_USERS, int)
    rate = 1.0 if _RATE.value is None else _RATE.value
    config = AdaptationConfig(rate, _STEPS.value, _BATCH.value, _ROWS.value)
    run = RunPaths(pathlib.Path(_ROOT.value), _NAME.value)
    from tff_perfedavg.experiments.files import trained_model, trained_runs

    weights, experiment = trained_model.load(run.model)
    command.warn(trained_runs.diverged_warnings(run))
    if _RATE.value is None:
        rate = experiment.inner_learning_rate
        config = dataclasses.replace(config, inner_learning_rate=rate)
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
        }[_GROUP.value]
    model = build_model(experiment, population)
    store = personalize(
        Personalization(model, weights, population, config, _SEED.value),
        users,
        _OUTPUT.value,
        provenance={"experiment": dataclasses.asdict(experiment)},
    )
    print(f"Written: {store.path}, weights of {len(store.users)} users")


if __name__ == "__main__":
    command.run(main)
