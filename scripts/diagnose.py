"""Measures what the theory of Per-FedAvg speaks of, for trained models.

Prints, for each run, over users seen in training: the norm of the population's
meta-gradient on all rows, the relative errors of the first-order and the Hessian-free
form, the variances within users (sigma) and between them (gamma) of gradients and
Hessians, the floor alpha^2 sigma_G^2 / D, and how far users drift apart in a round.
Symbols are those of arXiv 2002.07948, section 4. Writes them as
results/NAME/diagnostics.csv under --root_output_dir.
"""

import dataclasses
import pathlib

from absl import flags

from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.experiment import check_run_names
from tff_perfedavg.files import atomic_write

_NAMES = flags.DEFINE_list(
    "experiment_name", None, "Names of the runs to measure.", required=True
)
_ROOT = flags.DEFINE_string("root_output_dir", "results", "Directory of all runs.")
_USERS = flags.DEFINE_integer("num_users", 20, "Users; 0 for all.", lower_bound=0)
_PROBES = flags.DEFINE_integer("num_probes", 4, "Probes of Hessians.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "base_random_seed", 0, "Seed of the probes.", lower_bound=0
)


def main():
    check_run_names(_NAMES.value)
    runs = [RunPaths(pathlib.Path(_ROOT.value), name) for name in _NAMES.value]
    from tff_perfedavg.experiments.files import trained_model, trained_runs

    loaded = [trained_model.load(run.model) for run in runs]
    for run in runs:
        command.warn(trained_runs.diverged_warnings(run))
    command.load_frameworks()
    import pandas as pd

    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.evaluation.diagnosis import diagnose
    from tff_perfedavg.experiments.files.sources import check_sources
    from tff_perfedavg.experiments.settings.experiment import PER_FED_AVG
    from tff_perfedavg.optimization.diagnostics import draw_probes

    rows = []
    for run, (weights, experiment) in zip(runs, loaded, strict=True):
        check_sources(experiment, run.model, run.root)
        population = build_population(experiment, run.root)
        # FedAvg's point is measured as Per-FedAvg's would be.
        local = dataclasses.replace(experiment, algorithm=PER_FED_AVG).client_config()
        users = population.training_users
        if _USERS.value:
            users = users[: _USERS.value]
        found = diagnose(
            build_model(experiment, population),
            weights,
            population,
            users,
            local,
            draw_probes(weights, _PROBES.value, _SEED.value),
        )
        rows.append({"run": run.name, **dataclasses.asdict(found)})
    table = pd.DataFrame(rows).set_index("run").T
    print(table.to_string(float_format="{:.4g}".format))
    path = runs[0].results / "diagnostics.csv"
    with atomic_write(path) as file:
        table.to_csv(file)
    print(f"Written: {path}")


if __name__ == "__main__":
    command.run(main)
