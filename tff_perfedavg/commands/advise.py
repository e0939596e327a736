"""Tells whether personalization pays for your users: by what, and at what cost.

  advise.py --store=stores/mine --model=mlp

Trains FedAvg and first-order Per-FedAvg with a small budget. Half of the users choose
rates and steps; on the others both are compared with FedAvg's model as it is, with what
a table of label shares or the nearest of a user's own rows gives without a gradient,
and with training alone. Says in words what to take, and draws it. What was trained is
kept under --root_output_dir: the same command again trains nothing.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import (
    command,
    common_flags,
    experiment_flags,
    settings_flags,
)
from tff_perfedavg.optimization.config import AdaptationConfig


def define(flag_values):
    flags.DEFINE_string(
        "root_output_dir",
        "results/advice",
        "Directory of the runs, the table and the figure.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "inner_rates",
        "0.01,0.03,0.1,0.3",
        "Rates of adaptation to choose from, in training and after it.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "outer_rates",
        "0.03,0.1,0.3",
        "Rates of local steps to choose from.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "steps", "0,1,5,20", "Numbers of steps that are told.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "worthwhile",
        1.0,
        "The least gain that pays, in percentage points of accuracy.",
        lower_bound=0.01,
        upper_bound=100.0,
        flag_values=flag_values,
    )
    common_flags.define_data_dir(flag_values)
    experiment_flags.define(flag_values)
    flags.adopt_module_key_flags(settings_flags, flag_values)
    flags.adopt_module_key_flags(common_flags, flag_values)
    flag_values.set_default("total_rounds", 100)


def reported_steps(flag_values):
    """The numbers of steps that are told, none among them."""
    steps = sorted({0, *command.numbers(flag_values, "steps", int)})
    if steps[0] < 0 or len(steps) < 2:
        raise errors.ConfigError(
            f"steps is {','.join(flag_values.steps)}; give numbers of steps, one of "
            "them at least 1."
        )
    return steps


def median_rows(population):
    """The median of users' adaptation rows."""
    import numpy as np

    users = np.asarray(population.users)
    return int(np.median(users[:, 1] - users[:, 0]))


def _evaluate_by_rows(base, root, runs, results, median):
    """Evaluates adaptation on a quarter, half and all of users' rows."""
    import pandas as pd

    from tff_perfedavg.experiments.study import advice, study

    adapted = advice.choose_adapted(results)
    numbers = [n for n in (median // 4, median // 2) if n]
    frames = [adapted.assign(num_rows=median)]
    if numbers:
        fewer = advice.with_fewer_rows(runs, adapted, numbers)
        study.run_all(fewer, base, root)
        found = study.read_study(root, fewer)
        of_tested = found["user"].isin(adapted["user"])
        steps = adapted.groupby("method")["step"].first()
        is_last = found["step"] == found["method"].map(steps)
        frames.append(found[of_tested & is_last])
    return pd.concat(frames, ignore_index=True)


def _cost(base, runs, population, median):
    """What training and adapting cost, in words."""
    import numpy as np

    from tff_perfedavg.experiments.assemble.build import build_model

    weights = build_model(base, population).init(0)
    megabytes = 4 * sum(np.size(w) for w in weights) / 1e6
    taken = base.total_rounds * base.cohorts.clients_per_round
    rounds = taken / len(population.training_users)
    counts = ", ".join(
        f"{label} {len(run.config.batch_sizes) * run.config.num_local_steps}"
        for label, run in {r.experiment.label: r.experiment.local for r in runs}.items()
    )
    return (
        f"Cost: the model has {megabytes:.3g} MB, which travel twice in every round of "
        f"a user, {rounds:.3g} rounds each in this budget. Gradients of "
        f"{base.local.batch_size} rows a user's round: {counts}. Adapting takes a "
        f"gradient of up to {median} rows a step."
    )


def main(flag_values):
    base = experiment_flags.experiment(flag_values)
    experiment_flags.check_experiments([base])
    inner = command.numbers(flag_values, "inner_rates", float)
    outer = command.numbers(flag_values, "outer_rates", float)
    steps = reported_steps(flag_values)
    for rate in inner:
        AdaptationConfig(rate, steps[-1])
    root = pathlib.Path(flag_values.root_output_dir)
    RunPaths(root, "runs").check_writable()
    command.load_frameworks()
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.report import figures
    from tff_perfedavg.experiments.study import advice as advice_lib
    from tff_perfedavg.experiments.study import (
        advice_figure,
        study,
        study_baselines,
        sweep,
    )
    from tff_perfedavg.files import atomic_write
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    population = build_population(base, root, flag_values.data_dir)
    if population.description.num_classes is None:
        raise errors.ConfigError(
            f"The labels of {population.path} are no classes, and this compares "
            "accuracies; sweep.py compares losses."
        )
    use_local_runtime()
    grid = {
        "method": [*advice_lib.METHODS],
        "inner_learning_rate": inner,
        "outer_learning_rate": outer,
    }
    runs = sweep.sweep_runs(base, grid, sweep.Adapting([], steps[-1]))
    study.run_all(runs, base, root)
    study_baselines.run_baselines(runs, root)
    chosen = ["inner_learning_rate", "outer_learning_rate"]
    results = sweep.read_results(root, runs, grid, chosen, [])
    median = median_rows(population)
    by_rows = _evaluate_by_rows(base, root, runs, results, median)
    worthwhile = flag_values.worthwhile / 100
    advice = advice_lib.advise(results, steps, by_rows, worthwhile)
    table = 100 * advice.table()
    print(f"\n{advice.group} users, {len(advice.by_user)} of them, accuracy %:")
    print(table.to_string(float_format="{:.1f}".format, na_rep="-"))
    print("\nAfter steps, on all rows:")
    print((100 * advice.by_step.T).to_string(float_format="{:.1f}".format))
    print()
    said = [*advice.sentences, _cost(base, runs, population, median)]
    print(*said, sep="\n")
    with atomic_write(root / "advice.csv") as file:
        table.to_csv(file, float_format="%.6g")
    with atomic_write(root / "advice.txt") as file:
        file.write("\n".join([*said, ""]).encode())
    figures.save(advice_figure.draw(advice), root / "advice.png")
    written = [root / f"advice.{kind}" for kind in ("txt", "csv", "png")]
    print("\nWritten:", *written, sep="\n  ")
