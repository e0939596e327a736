"""Writes a page about one run or several: who gains from personalization, who does not.

Figures by round, by adaptation step and by user, tables of algorithms, settings and
what it took. The page is one file that asks nothing of the network. A run without
evaluation of its users is evaluated first. Writes, under --root_output_dir,
results/NAME/report.html and its figures as PNG and SVG in results/NAME/report/, where
NAME is the first of --run.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.experiment import check_run_names
from tff_perfedavg.optimization.config import AdaptationConfig

_RUNS = flags.DEFINE_list("run", None, "Names of the runs.", required=True)
_ROOT = flags.DEFINE_string("root_output_dir", "results", "Directory of all runs.")
_TITLE = flags.DEFINE_string("title", None, "Of the page; by default the runs' names.")
_OUTPUT = flags.DEFINE_string("output", None, "Another place for the page, .html.")
_STEPS = flags.DEFINE_integer(
    "adaptation_steps", 5, "Gradient steps per user, where a run is evaluated first.", 1
)


def main():
    check_run_names(_RUNS.value)
    AdaptationConfig(1.0, _STEPS.value)
    if _OUTPUT.value and not _OUTPUT.value.endswith(".html"):
        raise errors.ConfigError(f"output is {_OUTPUT.value}; it must end in .html.")
    runs = [RunPaths(pathlib.Path(_ROOT.value), name) for name in _RUNS.value]
    from tff_perfedavg.experiments.files import trained_model, trained_runs

    for run in runs:
        trained_model.load(run.model)
        command.warn(trained_runs.diverged_warnings(run))
    missing = [run for run in runs if not run.is_evaluated]
    if missing:
        command.load_frameworks()
        from tff_perfedavg.experiments.evaluation import evaluate_runs as evaluation
        from tff_perfedavg.runtime.local_runtime import use_local_runtime

        use_local_runtime()
        per_user = evaluation.evaluate_runs(missing, None, _STEPS.value, None)
        evaluation.save_rows(missing, per_user)
    from tff_perfedavg.experiments.report import run_report

    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else runs[0].report
    title = _TITLE.value or f"Who gains: {', '.join(_RUNS.value)}"
    written = run_report.write_page(run_report.read_runs(runs), title, output)
    print("Written:", *written, sep="\n  ")


if __name__ == "__main__":
    command.run(main)
