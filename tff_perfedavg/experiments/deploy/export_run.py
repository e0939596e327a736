"""Export of a trained run to a `.tflite` file, with a model card."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.build import build_model
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
from tff_perfedavg.experiments.evaluation.metrics import summarize
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.files.sources import check_sources
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.models.model import Model
from tff_perfedavg.models.pretrained import load_body, with_body
from tff_perfedavg.ondevice.config import ExportConfig
from tff_perfedavg.ondevice.export import (
    ExportReport,
    check_exportable,
    export_tflite,
    showing_progress,
)

_EXAMPLES = 200


def export_run(
    checkpoint: pathlib.Path,
    output: pathlib.Path,
    config: ExportConfig,
    *,
    license_name: str,
    adaptation_steps: int | None = None,
) -> ExportReport:
    """Exports a trained model, evaluated on its own users first for the model card.

    Args:
      checkpoint: `model.npz` of a run.
      output: the file to write.
      config: what the file can do.
      license_name: of the model, for its card.
      adaptation_steps: after how many steps the card tells accuracy; by default as
        many as training took.

    Raises:
      CheckpointError: if the checkpoint cannot be read.
      ConfigError: if its store or model file has changed since it was trained.
      ModelError: as `export_tflite`; or if the weights of the network that made the
        store's features are not installed.
    """
    weights, experiment = trained_model.load(checkpoint)
    config = config.of_run(experiment.local, weights)
    if adaptation_steps is None:
        adaptation_steps = config.adaptation.num_steps
    root = RunPaths.of_model(checkpoint).root
    check_sources(experiment, checkpoint, root)
    population = build_population(experiment, root)
    model = build_model(experiment, population)
    per_user = evaluate_users(
        model,
        weights,
        population,
        dataclasses.replace(config.adaptation, num_steps=adaptation_steps),
    ).assign(algorithm=experiment.label)
    deployed = _with_its_body(model, population)
    card = {
        **_card(experiment, population),
        "results": _results(per_user, (0, adaptation_steps)),
        "license": license_name,
        "exported": datetime.date.today().isoformat(),
    }
    examples = _examples(population) if deployed is model else None
    with showing_progress():
        return export_tflite(
            deployed, weights, output, config, card=card, examples=examples
        )


def _with_its_body(model: Model, population: UserStore) -> Model:
    """Returns what a device runs: with the network whose features were trained on."""
    body = population.description.body
    if body is None:
        return model
    frozen = load_body(body.name, body.image_size)
    return with_body(model, frozen, body.image_shape)


def check_own_model(experiment: Experiment, population: UserStore) -> None:
    """Checks before training that an experiment's model can be exported.

    Args:
      experiment: what is to be trained.
      population: its data.

    Raises:
      ModelError: naming the layer, if a device could not train the model.
    """
    model = build_model(experiment, population)
    parameters = experiment.local.adaptation.parameters(model.init(0))
    config = ExportConfig(batch_size=4, max_local_steps=1)
    try:
        with showing_progress():
            check_exportable(model, config.of_run(experiment.local, parameters))
    except errors.ModelError as e:
        raise errors.ModelError(
            f"{e} This was found before training; to train it all the same, without "
            "an export in mind, give --nocheck_exportable."
        ) from e


def _card(experiment: Experiment, population: UserStore) -> dict[str, Any]:
    """Returns what a model's card tells of its data and its training."""
    description, own = population.description, experiment.local.adaptation
    body = description.body
    scale = description.scale if body is None else body.image_scale
    return {
        "dataset": description.name,
        "class_names": list(description.class_names),
        "input_scale": np.asarray(scale).tolist(),
        **({} if body is None else {"body": dataclasses.asdict(body)}),
        "algorithm": experiment.label,
        # What `adapt` takes: a factor, where the file has rates of its own.
        "inner_learning_rate": 1.0 if own.learned else own.inner_learning_rate,
        "outer_learning_rate": experiment.local.outer_learning_rate,
        "num_local_steps": experiment.local.num_local_steps,
        "total_rounds": experiment.total_rounds,
        # How many labels mean what their user says; absent where all users agree.
        **({"own_labels": description.num_classes} if description.own_labels else {}),
    }


def _results(per_user: pd.DataFrame, steps: Collection[int]) -> list[dict[str, Any]]:
    """Returns what a model's card tells of its users after some steps."""
    return [
        {
            "users": row.users,
            "adaptation_steps": int(row.step),
            "accuracy": None if np.isnan(row.accuracy) else float(row.accuracy),
            "loss": float(row.loss),
            "num_users": int(row.num_users),
        }
        for row in summarize(per_user).reset_index().itertuples()
        if row.step in steps
    ]


def _examples(population: UserStore) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of the store, scaled."""
    users = population.training_users[:20]
    rows = [population.scaled(population.adaptation(user)) for user in users]
    x = np.concatenate([r.x for r in rows])[:_EXAMPLES]
    y = np.concatenate([r.y for r in rows])[:_EXAMPLES]
    return x, y
