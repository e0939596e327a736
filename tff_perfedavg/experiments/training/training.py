"""Meta-training of an experiment, with evaluation, checkpoints and resuming.

Nothing of the watching and saving changes the result: cohorts and batches are keyed by
seed and round, and the state that is saved is all there is. A run that is killed at any
moment goes on to the same bits.
"""

from __future__ import annotations

import errno
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.files import hparams, run_facts, trained_model
from tff_perfedavg.experiments.files.checkpoints import CheckpointManager
from tff_perfedavg.experiments.files.initial_weights import check_is_not_written
from tff_perfedavg.experiments.files.metrics_log import read_rounds
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.experiments.training import interrupts, resume
from tff_perfedavg.experiments.training.clock import Clock
from tff_perfedavg.experiments.training.cohorts import new_secret
from tff_perfedavg.experiments.training.evaluate import Evaluate, Evaluation
from tff_perfedavg.experiments.training.fleet_rounds import work_of
from tff_perfedavg.experiments.training.keep_best import KeepBest, check_best_metric
from tff_perfedavg.experiments.training.keep_last_good import KeepLastGood
from tff_perfedavg.experiments.training.log_fleet import LogFleet
from tff_perfedavg.experiments.training.log_metrics import LogMetrics
from tff_perfedavg.experiments.training.report_privacy import ReportPrivacy
from tff_perfedavg.experiments.training.rounds import Callback, Start, run_rounds
from tff_perfedavg.experiments.training.run_identity import RunIdentity
from tff_perfedavg.experiments.training.save_checkpoints import SaveCheckpoints
from tff_perfedavg.experiments.training.simulation import Round, Simulation
from tff_perfedavg.experiments.training.watch_updates import WatchUpdates
from tff_perfedavg.files import locked, remove_unfinished

# What a disk says that is full or may not be written to.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class TrainingResult(NamedTuple):
    """The result of training: weights and metrics.

    Attributes:
      weights: float32 arrays, the initial model after the last round.
      metrics: one row per round, indexed by `round_num`.
    """

    weights: list[np.ndarray]
    metrics: pd.DataFrame


def train(experiment: Experiment, population: UserStore) -> TrainingResult:
    """Runs all rounds of an experiment on TFF's default context, and saves nothing.

    Args:
      experiment: what to run.
      population: its data, from `build_population`.

    Raises:
      ConfigError: if the cohort is larger than the number of users.
      DataError: if a file of its store is not what was written.
      Diverged: if a round ends with weights that are not finite, naming it.
    """
    population.verify()
    simulation = Simulation(
        experiment,
        population,
        new_secret(experiment.samples_secretly),
        work_of(experiment),
    )
    metrics = _CollectMetrics()
    callbacks = [WatchUpdates(experiment.aggregation.aggregator), metrics]
    last = run_rounds(simulation, Start(0, simulation.initialize()), callbacks)
    table = pd.DataFrame(metrics.rows).set_index("round_num")
    return TrainingResult(simulation.weights(last.state), table)


def train_and_save(
    experiment: Experiment,
    paths: RunPaths,
    options: TrainingOptions | None = None,
    on_round: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Runs or resumes an experiment, and writes its files.

    Args:
      experiment: what to run.
      paths: where its files are.
      options: how it is watched and kept.
      on_round: called after every round with the number of rounds done.

    Raises:
      ConfigError: if a run of that name has other settings, naming them. More rounds
        than it has are no other settings. If it cannot start from its initial weights.
      CheckpointError: if what is needed to go on is damaged, or the disk has no room.
      DataError: if the store is damaged, or changes while the run trains.
      Diverged: as `train`; the last good round's model is kept as the run's, and
        `RunPaths.diverged` tells the round.
      Interrupted: after Ctrl-C or SIGTERM, with everything saved.
      PerFedAvgError: if another process trains this run.
    """
    try:
        with locked(paths.checkpoints / "lock"):
            return _train_locked(
                experiment, paths, options or TrainingOptions(), on_round
            )
    except BlockingIOError as e:
        raise errors.PerFedAvgError(
            f"Another process trains {paths.name} in {paths.root}; choose another "
            "--experiment_name, or wait."
        ) from e
    except OSError as e:
        if e.errno not in _DISK_ERRORS:
            raise
        raise errors.CheckpointError(
            f"{paths.root} does not take the run's files ({e.strerror or e}). Free "
            "some space and run the same command again: it goes on from the last "
            "checkpoint."
        ) from e


def _train_locked(
    experiment: Experiment,
    paths: RunPaths,
    options: TrainingOptions,
    on_round: Callable[[int], None] | None,
) -> TrainingResult:
    clock = Clock()
    if experiment.initial:
        check_is_not_written(pathlib.Path(experiment.initial), paths)
    manager = CheckpointManager(paths.checkpoints, options.checkpoints_kept)
    # Of writers that were killed; none is at work while we hold the lock.
    for directory in (paths.checkpoints, paths.results):
        remove_unfinished(directory)
    saved = None
    if options.resume:
        saved = resume.latest_saved(experiment, manager)
        weights = resume.finished_weights(experiment, paths, saved)
        if weights is not None:
            return TrainingResult(weights, read_rounds(paths.metrics))

    population = build_population(experiment, paths.root)
    population.verify()
    identity = resume.identify(experiment, population, saved)
    work = work_of(experiment, saved)
    simulation = Simulation(experiment, population, identity.secret, work)
    state = simulation.initialize()
    callbacks = [clock, *_callbacks(simulation, identity, paths, options)]
    if saved is None:
        resume.check_room(state, paths, options.checkpoints_kept)
        # Not before all is known to be possible.
        if not options.resume:
            resume.remove(paths, manager)
        start = Start(0, state)
    else:
        start = resume.go_on(saved, state, paths.name)
    paths.diverged.unlink(missing_ok=True)
    hparams.write(experiment, paths.hparams)

    with interrupts.deferred() as asked_to_stop:
        every = options.rounds_per_checkpoint
        callbacks += [
            SaveCheckpoints(
                manager, every, [*callbacks], identity, population, asked_to_stop
            ),
            KeepLastGood(paths, identity, simulation.weights),
            _Call(on_round),
        ]
        last = run_rounds(simulation, start, callbacks)
        if last.done < experiment.total_rounds:
            raise errors.Interrupted(
                f"Stopped after round {last.done} of {experiment.total_rounds}; all "
                "is saved. The same command goes on from there."
            )
    weights = simulation.weights(last.state)
    run_facts.write(clock.seconds, paths.facts)
    trained_model.save(paths.model, weights, experiment, identity.sources)
    return TrainingResult(weights, read_rounds(paths.metrics))


def _callbacks(
    simulation: Simulation,
    identity: RunIdentity,
    paths: RunPaths,
    options: TrainingOptions,
) -> list[Callback]:
    """Returns what watches a run."""
    experiment = identity.experiment
    log = LogMetrics(paths)
    best = KeepBest(options.best_metric, paths.best_model, identity)
    watch = WatchUpdates(experiment.aggregation.aggregator)
    callbacks: list[Callback] = [watch, log, best]
    observers: list[Callable[[Evaluation], None]] = [log.add_evaluation, best.look]
    if experiment.aggregation.is_private:
        privacy = ReportPrivacy(simulation, experiment, options)
        callbacks.append(privacy)
        # Before the rows are logged, for it adds to them.
        observers.insert(0, privacy.add_to)
    if simulation.fleet is not None:
        fleet = LogFleet(simulation.fleet, paths)
        callbacks.append(fleet)
        observers.insert(0, fleet.add_to)
    if options.rounds_per_evaluation:
        callbacks.append(Evaluate(simulation, experiment, options, observers))
        check_best_metric(options.best_metric, simulation.population)
    return callbacks


class _CollectMetrics(Callback):
    """Keeps the rounds' metrics in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def after_round(self, after: Round) -> bool:
        self.rows.append({"round_num": after.done - 1, **after.metrics})
        return False


class _Call(Callback):
    """Calls a function with the number of rounds done."""

    def __init__(self, function: Callable[[int], None] | None):
        self._function = function

    def after_round(self, after: Round) -> bool:
        if self._function is not None:
            self._function(after.done)
        return False
