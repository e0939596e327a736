"""Estimates the constants of Per-FedAvg's convergence analysis, for trained models.

Prints, for each run, over users seen in training: the norm of the population's
meta-gradient on all rows, the relative errors of the first-order and the Hessian-free
form, the variances within users (sigma) and between them (gamma) of gradients and
Hessians, the floor alpha^2 sigma_G^2 / D, and how far users drift apart in a round.
Symbols are those of arXiv 2002.07948, section 4. Of ANIL, BOIL and Meta-SGD the
meta-gradient is theirs; where an algorithm has none, this is said. Then a curvature
guard: the largest Hessian eigenvalue of each user, of the weights that move, scaled by
learned rates and shifted by a pull, the shares of users with alpha times it above 1 and
above 2, and the alpha that would keep all below 1; --notheory measures this alone.
Writes results/NAME/diagnostics.csv and, with each user's eigenvalue,
diagnostics.per_user.csv beside it, under --root_output_dir.
"""

import dataclasses
import pathlib

from absl import flags

from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command, common_flags
from tff_perfedavg.experiments.settings.experiment import check_run_names
from tff_perfedavg.files import atomic_write


def define(flag_values):
    flags.DEFINE_list(
        "experiment_name",
        None,
        "Names of the runs to measure.",
        required=True,
        flag_values=flag_values,
    )
    common_flags.define_root(flag_values)
    flags.DEFINE_bool(
        "theory",
        True,
        "Measure what the theory speaks of, too; else curvature alone, in less time "
        "and memory.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_users", 20, "Users; 0 for all.", lower_bound=0, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_probes", 4, "Probes of Hessians.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "base_random_seed",
        0,
        "Seed of the probes and of the eigenvalues' start vectors.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.adopt_module_key_flags(common_flags, flag_values)


def main(flag_values):
    check_run_names(flag_values.experiment_name)
    runs = [
        RunPaths(pathlib.Path(flag_values.root_output_dir), name)
        for name in flag_values.experiment_name
    ]
    from tff_perfedavg.experiments.files import trained_model, trained_runs

    loaded = [trained_model.load(run.model) for run in runs]
    for run in runs:
        command.warn(trained_runs.diverged_warnings(run))
    command.load_frameworks()
    import pandas as pd

    from tff_perfedavg.algorithms.curvature import curvature_guard
    from tff_perfedavg.algorithms.diagnostics import draw_probes
    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.evaluation.diagnosis import (
        curvature_in_words,
        diagnose,
        guard_in_words,
        measure_curvature,
        theory_of,
    )
    from tff_perfedavg.experiments.files.sources import check_sources

    seed = flag_values.base_random_seed
    rows, per_user, told = [], [], []
    for run, (learned, experiment) in zip(runs, loaded, strict=True):
        check_sources(experiment, run.model, run.root)
        population = build_population(experiment, run.root)
        users = population.training_users[: flag_values.num_users or None]
        model = build_model(experiment, population)
        adaptation = experiment.local.adaptation
        facts, words = {"run": run.name}, [curvature_in_words(adaptation)]
        if flag_values.theory:
            config, remark = theory_of(experiment.local)
            words.append(remark)
            if config is not None:
                weights = adaptation.weights(learned)
                probes = draw_probes(weights, flag_values.num_probes, seed)
                found = diagnose(model, learned, population, users, config, probes)
                facts |= dataclasses.asdict(found)
        curvature = measure_curvature(
            model, learned, population, users, seed, adaptation
        )
        eigenvalues, alpha = curvature["curvature"], adaptation.inner_learning_rate
        guard = curvature_guard(eigenvalues, alpha)
        rows.append(facts | dataclasses.asdict(guard))
        per_user.append(curvature.assign(run=run.name))
        told.append(f"{run.name}: {guard_in_words(guard, alpha, eigenvalues)}")
        told += [f"  {sentence}" for sentence in words if sentence]
        left = len(population.training_users) - len(users)
        if left:
            told.append(f"  Not measured: {left} users more; --num_users=0 takes all.")
    table = pd.DataFrame(rows).set_index("run").T
    print(table.to_string(float_format="{:.4g}".format))
    print(*told, sep="\n")
    _write(table, pd.concat(per_user), runs[0].results)


def _write(table, per_user, directory):
    from tff_perfedavg.experiments.files.rows import write_rows

    path = directory / "diagnostics.csv"
    with atomic_write(path) as file:
        table.to_csv(file)
    print(f"Written: {path}")
    path = directory / "diagnostics.per_user.csv"
    print(f"Written: {write_rows(per_user, path)}")
