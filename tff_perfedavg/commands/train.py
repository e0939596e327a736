"""Meta-trains an initial model and writes it with its metrics.

Writes, under --root_output_dir, checkpoints/NAME/model.npz (the initial model),
results/NAME/experiment.metrics.csv (a line per round), evaluation.metrics.csv (the
users before and after adapting, every --rounds_per_evaluation), both as
experiment.metrics.jsonl, hparams.csv, and logdir/NAME for TensorBoard, where NAME is
--experiment_name. A run that was stopped goes on where it was when the same command is
given again. A file of flags, one a line, is read with --flagfile=FILE.
"""

import pathlib

from absl import flags

from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import (
    command,
    common_flags,
    experiment_flags,
    settings_flags,
)
from tff_perfedavg.experiments.settings.experiment import (
    check_experiment_name,
    check_workers,
)
from tff_perfedavg.experiments.settings.model_file import (
    find_model_file,
    find_trained_model,
)
from tff_perfedavg.experiments.settings.training_options import TrainingOptions


def define(flag_values):
    flags.DEFINE_string(
        "experiment_name",
        None,
        "Name of the run.",
        required=True,
        flag_values=flag_values,
    )
    common_flags.define_root(flag_values)
    common_flags.define_data_dir(flag_values)
    experiment_flags.define(flag_values)
    settings_flags.define(TrainingOptions, flag_values)
    flags.adopt_module_key_flags(settings_flags, flag_values)
    flags.DEFINE_list(
        "workers",
        "",
        "Workers of scripts/start_worker.py to spread cohorts over, host:port each; by "
        "default one on this machine.",
        flag_values=flag_values,
    )
    flags.adopt_module_key_flags(common_flags, flag_values)
    flags.DEFINE_boolean(
        "check_exportable",
        True,
        "Before an own model is trained: check that a device could train it, too.",
        flag_values=flag_values,
    )


def main(flag_values):
    check_experiment_name(flag_values.experiment_name)
    experiment = experiment_flags.experiment(flag_values)
    experiment_flags.check_given(flag_values, [experiment.local])
    experiment_flags.check_experiments([experiment])
    command.warn(experiment.local.config.remarks)
    options = settings_flags.read(TrainingOptions, flag_values)
    check_workers(flag_values.workers, experiment.aggregation.aggregator)
    paths = RunPaths(
        pathlib.Path(flag_values.root_output_dir), flag_values.experiment_name
    )
    paths.check_writable()
    if experiment.has_own_model:
        find_model_file(experiment.model)
    if experiment.initial:
        find_trained_model(experiment.initial)
    command.load_frameworks()
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.assemble.runtime import runtime
    from tff_perfedavg.experiments.training import training

    population = build_population(experiment, paths.root, flag_values.data_dir)
    is_begun = paths.model.exists() or paths.metrics.exists()
    if experiment.has_own_model and flag_values.check_exportable and not is_begun:
        from tff_perfedavg.experiments.deploy.export_run import check_own_model

        check_own_model(experiment, population)
    with runtime(flag_values.workers, population):
        training.train_and_save(experiment, paths, options)
    print("Written:", paths.model, paths.metrics, paths.hparams, sep="\n  ")
