"""Evaluates trained initial models per user, before and after adaptation.

Every user of a run's population, seen in training and new, adapts the model on its
adaptation rows; the table tells its accuracy on its evaluation rows before and after.
Beside it stand baselines, marked as such, which owe nothing to the adaptation: what a
user's labels give by themselves (its majority class, and each run's model before
adapting, with the classes masked that the user does not hold, and with its logits
shifted by the user's label shares, + log p_user - log p_all), and what a user reaches
by training alone from the random start: in the same number of steps, for each number at
the rate of several that leaves the loss on its adaptation rows lowest, and to
convergence, by Adam (of each group of users 50 at most). --pooled adds one model that
is trained on all training users' rows without federation.
Where users differ in how many classes they hold, a second table tells accuracies by
that number. Above the tables it says how users adapt, as does every row of the files.
More than four runs are shown in short. Runs without a model are named and left out.
Writes, under --root_output_dir, results/NAME/evaluation.per_user.csv and
evaluation.baselines.csv of every run NAME of --experiment_name and, for the first,
evaluation.table.csv, evaluation.comparison.csv, evaluation.classes_held.csv and
evaluation.adaptation_curve.png of all.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command, common_flags
from tff_perfedavg.experiments.settings.experiment import check_run_names


def define(flag_values):
    flags.DEFINE_list(
        "experiment_name",
        None,
        "Names of the runs to compare.",
        required=True,
        flag_values=flag_values,
    )
    common_flags.define_root(flag_values)
    common_flags.define_adaptation(flag_values, "each run's")
    common_flags.define_what_moves(flag_values)
    common_flags.define_baselines(flag_values)
    flags.DEFINE_bool(
        "pooled",
        False,
        "Whether to train one model on all users' pooled rows, too, as a baseline.",
        flag_values=flag_values,
    )
    flags.adopt_module_key_flags(common_flags, flag_values)


def main(flag_values):
    check_run_names(flag_values.experiment_name)
    changes = common_flags.adaptation_changes(flag_values)
    steps = flag_values.adaptation_steps
    if flag_values.pooled and not flag_values.baselines:
        raise errors.ConfigError(
            "pooled is true, but baselines is false; pooled training is a baseline."
        )
    root = pathlib.Path(flag_values.root_output_dir)
    from tff_perfedavg.experiments.files import trained_model
    from tff_perfedavg.experiments.files.trained_runs import with_model

    runs, warnings = with_model(
        [RunPaths(root, name) for name in flag_values.experiment_name]
    )
    command.warn(warnings)
    trained = [trained_model.load(run.model)[1].local.adaptation for run in runs]
    common_flags.check_head_moves(changes, trained)
    command.load_frameworks()
    from tff_perfedavg.experiments.evaluation import evaluate_runs as evaluation
    from tff_perfedavg.experiments.evaluation import metrics
    from tff_perfedavg.experiments.evaluation.baseline_names import combine
    from tff_perfedavg.experiments.report import evaluation_text, tables
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    seed = flag_values.base_random_seed
    trained = evaluation.read_trained(runs)
    per_user = evaluation.evaluate_runs(trained, changes, seed=seed)
    evaluation.save_rows(runs, per_user)
    combined = None
    if flag_values.baselines:
        baselines = evaluation.evaluate_baselines_of_runs(
            trained, changes, seed=seed, pooled=flag_values.pooled
        )
        evaluation.save_baselines(runs, baselines)
        combined = combine(baselines, per_user["algorithm"].unique())
    files = tables.write_report(per_user, runs[0].results, "evaluation.", combined)
    print(evaluation_text.format_evaluation(per_user, combined, steps))
    if len(runs) > 1 and not evaluation.have_same_users(trained):
        print("\nThe runs have other users than each other; they are not compared.")
    elif len(runs) > 1:
        column = metrics.quantity(per_user)
        compared = metrics.compare_paired(per_user, steps, column=column)
        files.append(tables.write_comparison(compared, runs[0].results, "evaluation."))
        print(f"\n{evaluation_text.format_compared(compared, per_user, steps)}")
    files += [run.per_user for run in runs]
    if flag_values.baselines:
        files += [run.baselines for run in runs]
    print("\nWritten:", *files, sep="\n  ")
