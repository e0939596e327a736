"""Meta-training: rounds over cohorts, with a progress bar and a line per round."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import tqdm

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.files import atomic_write
from tff_perfedavg.programs import run_facts, trained_model
from tff_perfedavg.programs.build import (
    build_client_data,
    build_model,
    build_process,
)
from tff_perfedavg.programs.experiment import Experiment
from tff_perfedavg.programs.population import build_population
from tff_perfedavg.programs.run_paths import RunPaths
from tff_perfedavg.simulation.cohort import sample_cohort


class TrainingResult(NamedTuple):
    """What a training run produced.

    Attributes:
      weights: float32 arrays, the initial model after the last round.
      metrics: one row per round, indexed by `round_num`.
    """

    weights: list[np.ndarray]
    metrics: pd.DataFrame


def train(experiment: Experiment, population: UserStore) -> TrainingResult:
    """Runs all rounds of an experiment on TFF's default context.

    Args:
      experiment: what to run.
      population: its data, from `build_population`.

    Raises:
      ConfigError: if the cohort is larger than the population.
      PerFedAvgError: if a round ends with weights that are not finite, naming it.
    """
    users = population.training_users
    # Before anything is traced, let a cohort that cannot be drawn fail.
    sample_cohort(users, experiment.clients_per_round, 0, 0)
    model = build_model(experiment, population)
    client_data = build_client_data(experiment, model, population)
    process = build_process(experiment, model, client_data)
    state = process.initialize()
    lines = []
    with tqdm.trange(
        experiment.total_rounds, desc=experiment.label, unit="round"
    ) as progress:
        for round_number in progress:
            cohort = sample_cohort(
                users,
                experiment.clients_per_round,
                experiment.base_random_seed,
                round_number,
            )
            output = process.next(state, client_data.clients(cohort))
            state = output.state
            metrics = output.metrics["client_work"]
            if not metrics["num_users_taken"]:
                raise errors.PerFedAvgError(
                    f"Round {round_number}: not one of {len(cohort)} users' updates "
                    "was finite. Lower the outer or the inner learning rate."
                )
            lines.append(
                {"round_num": round_number}
                | {name: value.item() for name, value in metrics.items()}
            )
            progress.set_postfix(loss=f"{metrics['query_loss']:.3f}")
    weights = process.get_model_weights(state).trainable
    return TrainingResult(
        [np.asarray(w) for w in weights],
        pd.DataFrame(lines).set_index("round_num"),
    )


def train_and_save(experiment: Experiment, paths: RunPaths) -> TrainingResult:
    """Runs `train` on the experiment's own population and writes its files."""
    start = time.monotonic()
    result = train(experiment, build_population(experiment, paths.root))
    facts = {
        "seconds": time.monotonic() - start,
        "peak_memory_mb": run_facts.peak_memory_mb(),
        "machine": run_facts.machine(),
        "versions": run_facts.versions(),
    }
    with atomic_write(paths.metrics) as file:
        result.metrics.to_csv(file)
    with atomic_write(paths.hparams) as file:
        settings = pd.Series(dataclasses.asdict(experiment))
        settings.to_csv(file, index_label="name", header=["value"])
    with atomic_write(paths.facts) as file:
        file.write(json.dumps(facts, indent=1).encode())
    trained_model.save(paths.model, result.weights, experiment)
    return result
