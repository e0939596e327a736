"""Writes an HTML report of one or several runs: who gains from personalization.

Figures by round, by adaptation step and by user, tables of algorithms, settings and
what it took. The page is one file that asks nothing of the network. It says how users
adapted; runs whose users did so in other ways than each other's are not compared. A run
without evaluation of its users, or without baselines beside it, is evaluated first.
Writes, under --root_output_dir, results/NAME/report.html and its figures as PNG and SVG
in results/NAME/report/, where NAME is the first of --run.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command, common_flags
from tff_perfedavg.experiments.settings.experiment import check_run_names
from tff_perfedavg.optimization.config import AdaptationConfig


def define(flag_values):
    flags.DEFINE_list(
        "run", None, "Names of the runs.", required=True, flag_values=flag_values
    )
    common_flags.define_root(flag_values)
    flags.DEFINE_string(
        "title",
        None,
        "Of the page; by default the runs' names.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output", None, "Another place for the page, .html.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "adaptation_steps",
        5,
        "Gradient steps per user, where a run is evaluated first.",
        1,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "baselines",
        True,
        "Whether to evaluate baselines, too, of a run that has none.",
        flag_values=flag_values,
    )
    flags.adopt_module_key_flags(common_flags, flag_values)


def _complete(runs, without_baselines, steps):
    command.load_frameworks()
    from tff_perfedavg.experiments.evaluation.evaluate_runs import complete
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    command.warn(complete(runs, without_baselines, steps))


def main(flag_values):
    check_run_names(flag_values.run)
    AdaptationConfig(1.0, flag_values.adaptation_steps)
    if flag_values.output and not flag_values.output.endswith(".html"):
        raise errors.ConfigError(
            f"output is {flag_values.output}; it must end in .html."
        )
    runs = [
        RunPaths(pathlib.Path(flag_values.root_output_dir), name)
        for name in flag_values.run
    ]
    from tff_perfedavg.experiments.files import trained_model, trained_runs

    for run in runs:
        trained_model.load(run.model)
        command.warn(trained_runs.diverged_warnings(run))
    missing = [run for run in runs if not run.is_evaluated]
    without = [r for r in runs if flag_values.baselines and not r.has_baselines]
    if missing or without:
        _complete(missing, without, flag_values.adaptation_steps)
    from tff_perfedavg.experiments.report import run_report

    output = pathlib.Path(flag_values.output) if flag_values.output else runs[0].report
    title = flag_values.title or f"Who gains: {', '.join(flag_values.run)}"
    records = run_report.read_runs(runs)
    command.warn(run_report.warnings_of(records))
    written = run_report.write_page(records, title, output)
    print("Written:", *written, sep="\n  ")
