"""Simulation of a round: cohort sampling, TFF's learning process, checks."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.build import (
    build_client_data,
    build_model,
    build_process,
)
from tff_perfedavg.experiments.files.initial_weights import rates_from, starting_from
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.parts import ServerSettings
from tff_perfedavg.experiments.training.cohorts import build_sampler
from tff_perfedavg.experiments.training.fleet_rounds import FleetRounds
from tff_perfedavg.fleet.cohort import PoissonSampler
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.schedule import ServerStep
from tff_perfedavg.progress import tell


class Round(NamedTuple):
    """The result of a round.

    Attributes:
      done: rounds done.
      is_last: whether the run ends with it.
      state: of the learning process.
      metrics: of the client work, by name.
      cohort: int `[cohort]`, numbers of the users that took part.
      num_with_rows: how many of them have rows to train on.
      outlier_decades: powers of ten from the cohort's median update norm to its
        largest.
      fleet_steps: what the fleet did for the round, abandoned attempts included; none
        without a fleet.
    """

    done: int
    is_last: bool
    state: Any
    metrics: dict[str, float]
    cohort: np.ndarray
    num_with_rows: int
    outlier_decades: int
    fleet_steps: Sequence[ServerStep] = ()


class Simulation:
    """An experiment's users, model and learning process, ready to run."""

    def __init__(
        self,
        experiment: Experiment,
        population: UserStore,
        secret: bytes | None,
        work: Work | None = None,
    ):
        """Builds the learning process.

        Args:
          experiment: what to run.
          population: its data.
          secret: what its cohorts are keyed by; None for the seed.
          work: what a task costs, where there is a fleet.

        Raises:
          CheckpointError: if the initial weights cannot be read.
          ConfigError: if the cohort is larger than the number of users, the initial
            weights do not fit the model, its fleet cannot work, or it has rounds in
            which nothing would change.
          DataError: if no training user has adaptation rows.
        """
        experiment.check_rounds()
        users = population.training_users
        # Before anything is traced, let a cohort that cannot be drawn fail.
        self.sampler = build_sampler(
            users,
            experiment.cohorts.clients_per_round,
            experiment.base_random_seed,
            secret,
        )
        self._has_rows = population.users[:, 1] > population.users[:, 0]
        if not self._has_rows[users].any():
            raise errors.DataError(
                f"{population.path}: not one of its {len(users)} training users has "
                "adaptation rows to train on; give them some."
            )
        self.fleet = None
        if work is not None:
            self.fleet = FleetRounds(experiment, population, work)
        self.label = experiment.label
        self.total_rounds = experiment.total_rounds
        self.population = population
        self.model = build_model(experiment, population)
        self._aggregator = experiment.aggregation.aggregator
        is_plain = experiment.server == ServerSettings()
        rates = "the outer or the inner learning rate."
        self._remedy = "Lower " + (rates if is_plain else f"the server's, {rates}")
        trained, self._rates = self.model, None
        if experiment.initial:
            path = pathlib.Path(experiment.initial)
            trained = starting_from(trained, path)
            learned = experiment.local.adaptation.learned
            self._rates, remark = rates_from(path, learned)
            if remark:
                tell(remark)
        self._client_data = build_client_data(experiment, self.model, population)
        self._process = build_process(experiment, trained, self._client_data)

    def initialize(self) -> Any:
        """Returns the state before the first round.

        Raises:
          ConfigError: if the cost of a task was measured on a file of another model.
        """
        state = self._process.initialize()
        if self.fleet is not None:
            sent = self._process.get_model_weights(state).trainable
            self.fleet.check_file(sum(4 * np.size(tensor) for tensor in sent))
        if self._rates is None:
            return state
        given = self._process.get_model_weights(state)
        own = [*given.trainable][: -len(self._rates)]
        trainable = type(given.trainable)([*own, *self._rates])
        weights = tff.learning.models.ModelWeights(trainable, given.non_trainable)
        return self._process.set_model_weights(state, weights)

    def weights(self, state: Any) -> list[np.ndarray]:
        """Returns what is learned in a state: the initial model, and learned rates."""
        found = self._process.get_model_weights(state)
        return [np.asarray(w) for w in (*found.trainable, *found.non_trainable)]

    def next(self, state: Any, round_number: int) -> Round:
        """Runs a round.

        Args:
          state: before it.
          round_number: the round, from 0.

        Raises:
          Diverged: if it does not lead to finite weights.
          DataError: if nobody in the cohort has rows, or the store has changed.
        """
        fleet_steps: Sequence[ServerStep] = ()
        local_steps = None
        if self.fleet is None:
            cohort = self.sampler.draw(round_number)
        else:
            fleet_steps = self.fleet.next_round(round_number)
            taken = fleet_steps[-1].taken
            cohort = taken["user"]
            if self._client_data.with_steps:
                local_steps = taken["steps"]
        output = self._run(state, cohort, local_steps)
        metrics = {
            name: value.item() for name, value in output.metrics["client_work"].items()
        }
        decades = metrics.pop("outlier_decades")
        with_rows = int(np.count_nonzero(self._has_rows[cohort]))
        # A Poisson sample may be of nobody, and tells nobody so.
        may_be_empty = isinstance(self.sampler, PoissonSampler)
        if not with_rows and not may_be_empty:
            raise errors.DataError(
                f"Round {round_number}: not one of the {len(cohort)} users "
                f"drawn has adaptation rows in {self.population.path}. Leave "
                "users without rows out of it, or draw more users a round."
            )
        if with_rows and not metrics["num_users_taken"]:
            raise errors.Diverged(
                f"Round {round_number}: not one of {with_rows} users' updates was "
                f"finite. {self._remedy}"
            )
        self._check_finite(round_number, output)
        done = round_number + 1
        is_last = done == self.total_rounds
        if self.fleet is not None:
            metrics.update(self.fleet.spent())
        return Round(
            *(done, is_last, output.state, metrics, cohort, with_rows, decades),
            fleet_steps,
        )

    def _run(self, state: Any, cohort: np.ndarray, steps: np.ndarray | None) -> Any:
        try:
            return self._process.next(state, self._client_data.clients(cohort, steps))
        except Exception as e:
            # Of a store that changes under a worker, TFF tells in many ways.
            self.population.check_unchanged(e)
            raise

    def _check_finite(self, round_number: int, output: Any) -> None:
        """Raises `Diverged` if the aggregate or the server's weights are not finite."""
        if output.metrics["finalizer"]["update_non_finite"]:
            raise errors.Diverged(
                f"Round {round_number}: users' updates are finite, but what the "
                f"aggregator {self._aggregator} makes of them is not. Lower "
                "the learning rates, or the noise."
            )
        weights = output.state.global_model_weights.trainable
        if not all(np.isfinite(w).all() for w in weights):
            raise errors.Diverged(
                f"Round {round_number}: the server's weights are not finite. "
                f"{self._remedy}"
            )
