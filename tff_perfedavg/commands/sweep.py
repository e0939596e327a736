"""Trains a grid of runs, selected on validation users and reported on test users.

  sweep.py --dataset=mnist --grid=method=fed_avg,exact --grid=base_random_seed=0,1,2

Every --grid names a field of the experiment (any flag of train.py that is one, or
`method`, an algorithm with its variant) and its values. Half of the users of each
group, seen and new, choose the adaptation's rate and number of steps, 0 among them, and
what --choose names besides; the table is of the other half, or, with --cross_fit, of
all, each with what the other half chose. Of folds (--grid=fold=1/10,2/10,...) all users
are put together, each new once. With --choosing_seeds, runs of these seeds alone try
all of the grid, and those of other seeds are trained with what was chosen. Beside the
methods stand baselines on the same users: what label shares give without a gradient,
with FedAvg's model if the grid has it, what users reach by training alone and, where
labels are their own, the nearest of their rows, by inputs and by the features of each
method's model. A method is trained once for all values of what it does not use, such as
FedAvg for inner learning rates. --of_method gives a method settings of its own, so that
methods are compared at the rates chosen for each, or after as many rows or bytes. A run
that diverges is counted, and what it was trained with is not chosen. Runs that are
there, under --root_output_dir, are not made again. Writes sweep.table.csv, where
methods are compared sweep.comparison.csv and, where users differ in how many classes
they hold, sweep.classes_held.csv. Of runs on a fleet it tells, too, how device classes
fare (sweep.fleet_classes.csv) and, with --rounds_per_evaluation, what was spent when
targets were first met (sweep.fleet_targets.csv, and drawn, sweep.fleet_targets.png). At
the end it tells how long all of it took (study.time.json).
"""

import pathlib

from absl import flags

from tff_perfedavg.algorithms.registry import methods
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import (
    command,
    common_flags,
    experiment_flags,
    settings_flags,
)
from tff_perfedavg.experiments.settings.model_file import find_model_file
from tff_perfedavg.experiments.settings.sweep_request import (
    REHEARSED_ROUNDS,
    REHEARSED_USERS,
    Asked,
    read,
    rehearsed,
)


def define(flag_values):
    flags.DEFINE_string(
        "root_output_dir",
        "results/sweep",
        "Directory of the runs and the table.",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "grid",
        None,
        "FIELD=VALUE,VALUE,...; once for each axis. Known methods: "
        f"{', '.join(methods())}.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "of_method",
        [],
        "METHOD:FIELD=VALUE,FIELD=VALUE,...; settings that a method of the grid has in "
        "the place of those of all, such as rates that were chosen for it. "
        "METHOD,AXIS=VALUE:FIELD=VALUE,... where they hold at a value of another axis "
        "alone.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "choose",
        "",
        "Axes that are chosen by validation users, not reported each.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "compare",
        "method",
        "The axis whose values are compared with each other, on the same users.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "choosing_seeds",
        "",
        "Seeds of the grid whose runs choose what --choose names; by default all.",
        flag_values=flag_values,
    )
    _define_adaptation(flag_values)
    _define_reports(flag_values)
    common_flags.define_data_dir(flag_values)
    experiment_flags.define(flag_values)
    flags.adopt_module_key_flags(settings_flags, flag_values)
    flags.adopt_module_key_flags(common_flags, flag_values)


def _define_adaptation(flag_values):
    flags.DEFINE_list(
        "adaptation_learning_rates",
        "",
        "Rates to choose from; by default the run's inner learning rate alone.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "adaptation_steps", 5, "The most steps to choose from.", flag_values=flag_values
    )
    flags.DEFINE_list(
        "report_steps",
        "",
        "Numbers of steps that are reported each, in the place of one that is chosen.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "adaptation_rows",
        "0",
        "The most rows a user adapts on, reported each; 0 for all.",
        flag_values=flag_values,
    )
    common_flags.define_rows_per_class(flag_values)
    common_flags.define_what_moves(flag_values)


def _define_reports(flag_values):
    flags.DEFINE_bool(
        "rehearse",
        False,
        f"Whether to try the study before it takes hours: {REHEARSED_ROUNDS} rounds, "
        f"{REHEARSED_USERS} users of each group, and of each axis but the method the "
        "first value; under rehearsal in --root_output_dir.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "selection_seed",
        0,
        "Of the division into users that choose and that report.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "cross_fit",
        False,
        "Whether each half of the users chooses for the other, so that all are "
        "reported.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_evaluation_users",
        0,
        "The most users of each group that are measured, drawn; 0 for all. Training "
        "alone measures 50, who are the same ones for 50.",
        lower_bound=0,
        flag_values=flag_values,
    )
    common_flags.define_baselines(flag_values)
    flags.DEFINE_integer(
        "rounds_per_evaluation",
        0,
        "Rounds between evaluations while runs train, after --adaptation_steps; 0 for "
        "none.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "targets",
        "",
        "Accuracies from 0 to 1 (or losses) of which it is told when runs on a fleet "
        "first met them; by default 90, 95 and 99 % of the best.",
        flag_values=flag_values,
    )


def main(flag_values):
    base = experiment_flags.experiment(flag_values)
    asked = read(flag_values, base)
    RunPaths(asked.root, "runs").check_writable()
    command.load_frameworks()
    from tff_perfedavg.experiments.study import sweep
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    most = flag_values.adaptation_steps
    adapting = sweep.Adapting(asked.rates, most, asked.rows, asked.changes)
    runs = sweep.sweep_runs(base, asked.grid, adapting, asked.of_methods)
    experiment_flags.check_experiments([run.experiment for run in runs])
    if flag_values.rehearse:
        asked, base = rehearsed(asked, base)
        runs = sweep.sweep_runs(base, asked.grid, adapting, asked.of_methods)
    num_users = asked.watched.num_evaluation_users
    runs = [run._replace(num_users=num_users) for run in runs]
    local = [run.experiment.local for run in runs]
    experiment_flags.check_given(flag_values, local, asked.grid)
    moves = common_flags.what_moves(flag_values)
    common_flags.check_head_moves(moves, [one.adaptation for one in local])
    command.warn(dict.fromkeys(r for one in local for r in one.config.remarks))
    _check_inputs(runs, asked.root, flag_values.data_dir)
    use_local_runtime()
    runs, results, tried = _finish(flag_values, base, asked, runs)
    test = _tell(flag_values, asked.root, results, tried)
    _tell_classes(flag_values, asked.root, runs, results, test)
    on_fleets = [run for run in runs if run.experiment.fleet_of_run.is_on]
    if on_fleets and len(test):
        _tell_fleet(asked.root, on_fleets, results.per_user, most, asked.targets)
    _tell_time(asked.root)


def _finish(flag_values, base, asked: Asked, runs) -> tuple:
    """Trains and evaluates what is missing.

    Returns:
      The runs that report, what they gave, and a sentence of those that chose.
    """
    from tff_perfedavg.experiments.study import study, study_baselines, sweep

    root = asked.root
    choices, tried = None, ""
    if asked.choosing:
        first = sweep.of_seeds(runs, asked.choosing)
        study.run_all(first, base, root, watched=asked.watched)
        results = sweep.read_results(root, first, asked.grid, asked.chosen, asked.rates)
        results = results._replace(steps=asked.steps, cross_fit=flag_values.cross_fit)
        test = sweep.choose(results, seed=flag_values.selection_seed)
        choices = sweep.choices_of(test, results)
        runs = sweep.of_choices(runs, choices)
        tried = sweep.tell_tried(results, asked.choosing)
    study.run_all(runs, base, root, watched=asked.watched)
    if flag_values.baselines:
        study_baselines.run_baselines(runs, root, features_of_all=True)
    results = sweep.read_results(root, runs, asked.grid, asked.chosen, asked.rates)
    results = results._replace(
        choices=choices, steps=asked.steps, cross_fit=flag_values.cross_fit
    )
    if not flag_values.baselines:
        results = results._replace(baselines=None)
    return runs, results, tried


def _tell_classes(flag_values, root, runs, results, test):
    """Prints and writes accuracies by the number of classes that users hold."""
    from tff_perfedavg.experiments.study import sweep, sweep_classes

    seed = flag_values.selection_seed
    table = sweep_classes.classes_table(root, runs, results, test, seed=seed)
    if table is None:
        return
    # In the order of the table; unstacking sorts.
    keys = table.index.droplevel("num_classes_held").unique()
    classes = table.index.unique("num_classes_held")
    accuracy = 100 * table["mean"].unstack("num_classes_held").loc[keys, classes]
    print("\nAccuracy % by the number of classes that users hold:")
    print(accuracy.to_string(float_format="{:.1f}".format, na_rep="-"))
    print(f"Written: {sweep.write_table(table, 'classes_held', root)}")


def _tell(flag_values, root, results, tried: str):
    """Prints and writes the tables; returns the test users' rows."""
    from tff_perfedavg.experiments.evaluation import metrics
    from tff_perfedavg.experiments.report import tables as report
    from tff_perfedavg.experiments.study import sweep, sweep_edges

    seed = flag_values.selection_seed
    test = sweep.choose(results, seed=seed)
    table = sweep.summarize(test, results)
    table = sweep.with_baselines(table, results, seed=seed)
    column = metrics.quantity(test) if len(test) else "accuracy"
    print(
        "\nTest users, with what the validation users chose: "
        f"{'accuracy %' if column == 'accuracy' else column}, {report.HALF_WIDTHS}"
    )
    print(sweep.format_table(table))
    if tried:
        print(f"\n{tried}")
    edges = sweep_edges.at_edges(test, results) if len(test) else []
    if edges:
        print("\nChosen at an edge, beyond which may be better:", *edges, sep="\n  ")
    compared = sweep.compare_values(test, results, flag_values.compare)
    if compared is not None:
        print(f"\nOf test users, {report.COMPARED[column]}")
        print(report.format_comparison(compared, column))
        print(f"({report.P_VALUES})")
    left_out = sweep.not_compared(test, results, flag_values.compare)
    if left_out:
        print(f"Not compared everywhere, since runs diverged: {', '.join(left_out)}")
    print("\nWritten:", *sweep.write(table, compared, root), sep="\n  ")
    return test


def _tell_time(root):
    """Prints how long the study took, over all times it was gone on with."""
    from tff_perfedavg.experiments.study import study_time

    told = study_time.told(root)
    if told:
        print(told)


def _check_inputs(runs, root, data_dir):
    """Prepares what all runs need, before the first one begins."""
    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.files.initial_weights import starting_from

    for run in runs:
        paths = RunPaths(root, run.name)
        if run.experiment.has_own_model:
            find_model_file(run.experiment.model)
        population = build_population(run.experiment, paths.root, data_dir)
        if run.experiment.initial:
            initial = pathlib.Path(run.experiment.initial)
            starting_from(build_model(run.experiment, population), initial)


def _tell_fleet(root, runs, per_user, steps, targets):
    """Prints and writes what runs cost their fleet, and whom they served."""
    from tff_perfedavg.experiments.report import figures, fleet_figures
    from tff_perfedavg.experiments.study import fleet_study, sweep

    tables = {
        "classes": fleet_study.classes_table(root, runs, per_user, steps),
        "targets": fleet_study.targets_table(root, runs, targets),
    }
    for name, said in (
        ("classes", "Device classes of the fleet, over all seeds"),
        ("targets", "When targets were first met; medians over the seeds that did"),
    ):
        table = tables[name]
        if table is None:
            continue
        print(f"\n{said}:\n{table.to_string(float_format='{:.4g}'.format)}")
        print(f"Written: {sweep.write_table(table, f'fleet_{name}', root)}")
    if tables["targets"] is not None:
        path = root / "sweep.fleet_targets.png"
        figures.save(fleet_figures.targets(tables["targets"]), path)
        print(f"Written: {path}")
