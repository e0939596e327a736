"""Writes a trained model as a TensorFlow Lite file that adapts on a device.

Measures the model on its own population for the card inside the file, and replays the
file in TensorFlow's interpreter and in LiteRT against TensorFlow before it appears.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors, quiet
from tff_perfedavg.experiments.settings import command, settings_flags
from tff_perfedavg.ondevice.config import ExportConfig


def define(flag_values):
    flags.DEFINE_string(
        "checkpoint",
        None,
        "model.npz of a run of scripts/train.py.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output", None, "The .tflite file.", required=True, flag_values=flag_values
    )
    settings_flags.define(ExportConfig, flag_values)
    flags.adopt_module_key_flags(settings_flags, flag_values)
    flags.DEFINE_string(
        "license", "not stated", "Of the model, for its card.", flag_values=flag_values
    )


def main(flag_values):
    config = settings_flags.read(ExportConfig, flag_values)
    checkpoint = pathlib.Path(flag_values.checkpoint)
    output = pathlib.Path(flag_values.output)
    if output.suffix != ".tflite":
        raise errors.ConfigError(f"output is {output}; it must end in .tflite.")
    from tff_perfedavg.experiments.files import trained_model, trained_runs
    from tff_perfedavg.experiments.files.run_paths import RunPaths

    learned, experiment = trained_model.load(checkpoint)
    config = config.of_run(experiment.local, learned)
    command.warn(config.differences())
    command.warn(trained_runs.diverged_warnings(RunPaths.of_model(checkpoint)))
    command.load_frameworks()
    from tff_perfedavg.experiments.deploy.export_run import export_run
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    with quiet.without_notices():
        report = export_run(
            checkpoint, output, config, license_name=flag_values.license
        )
    print(f"Written: {report.path} ({report.num_bytes:,} bytes)")
    print(f"Operations, all built in: {', '.join(report.operations)}")
    for runtime, error in report.largest_error.items():
        print(f"Largest difference from TensorFlow in {runtime}'s runtime: {error:.1e}")
