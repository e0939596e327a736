"""Meta-training: rounds over cohorts, watched, saved, and resumed where they were left.

Nothing of the watching and saving changes the result: cohorts and batches are keyed by
seed and round, and the state that is saved is all there is. A run that is killed at any
moment goes on to the same bits.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import json
import math
import pathlib
import secrets
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tqdm
import tree

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.build import (
    build_client_data,
    build_model,
    build_process,
)
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.evaluate_users import (
    build_evaluator,
    choose_users,
)
from tff_perfedavg.experiments.evaluation.metrics import NEW, mean_rows
from tff_perfedavg.experiments.files import run_facts, trained_model
from tff_perfedavg.experiments.files.checkpoints import CheckpointManager, Saved
from tff_perfedavg.experiments.files.metrics_log import MetricsLog
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.files.sources import (
    check_same_sources,
    check_sources,
    sources_of,
)
from tff_perfedavg.experiments.settings.experiment import (
    COMPRESSION,
    MEAN,
    PRIVATE,
    SECURE,
    Experiment,
)
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.experiments.training import interrupts
from tff_perfedavg.experiments.training.privacy import PrivacyAccount, default_delta
from tff_perfedavg.files import atomic_write, locked, remove_unfinished
from tff_perfedavg.fleet.cohort import (
    CohortSampler,
    PoissonSampler,
    UniformSampler,
)
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.progress import progress

# Beside what a run's checkpoints take: its metrics and its models.
_SPARE_BYTES = 20_000_000
# What a disk says that is full or may not be written to.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_SECRET_BYTES = 32
# Aggregators that let one user's update weigh as much as it is large.
_UNBOUNDED = (MEAN, COMPRESSION, SECURE)
# An update this many powers of ten above the usual is worth a word.
_OUTLIER_DECADES = 5
_USUAL_ROUNDS = 100


class TrainingResult(NamedTuple):
    """What a training run produced.

    Attributes:
      weights: float32 arrays, the initial model after the last round.
      metrics: one row per round, indexed by `round_num`.
    """

    weights: list[np.ndarray]
    metrics: pd.DataFrame


class _Round(NamedTuple):
    """What is there after a round: rounds done, state, metrics, who took part."""

    done: int
    state: Any
    metrics: dict[str, float]
    cohort: np.ndarray


class _Training:
    """An experiment ready to run."""

    def __init__(
        self, experiment: Experiment, population: UserStore, secret: bytes | None
    ):
        self._experiment = experiment
        self._population = population
        users = population.training_users
        # Before anything is traced, let a cohort that cannot be drawn fail.
        self.sampler = _sampler(experiment, users, secret)
        self._has_rows = population.users[:, 1] > population.users[:, 0]
        if not self._has_rows[users].any():
            raise errors.DataError(
                f"{population.path}: not one of its {len(users)} training users has "
                "adaptation rows to train on; give them some."
            )
        self._watch = _UpdateWatch(experiment)
        self.model = build_model(experiment, population)
        self._client_data = build_client_data(experiment, self.model, population)
        self.process = build_process(experiment, self.model, self._client_data)

    def rounds(self, state: Any, first: int) -> Iterator[_Round]:
        """Runs the rounds from `first` on."""
        experiment = self._experiment
        with progress(
            total=experiment.total_rounds,
            initial=first,
            desc=experiment.label,
            unit="round",
        ) as bar:
            for round_number in range(first, experiment.total_rounds):
                cohort = self.sampler.draw(round_number)
                output = self._run(state, cohort)
                state = output.state
                metrics = {
                    name: value.item()
                    for name, value in output.metrics["client_work"].items()
                }
                decades = metrics.pop("outlier_decades")
                with_rows = int(np.count_nonzero(self._has_rows[cohort]))
                # A Poisson sample may be of nobody, and tells nobody so.
                may_be_empty = isinstance(self.sampler, PoissonSampler)
                if not with_rows and not may_be_empty:
                    raise errors.DataError(
                        f"Round {round_number}: not one of the {len(cohort)} users "
                        f"drawn has adaptation rows in {self._population.path}. Leave "
                        "users without rows out of it, or draw more users a round."
                    )
                self._check_finite(round_number, with_rows, output, metrics)
                self._watch.look(round_number, with_rows, metrics, decades)
                bar.set_postfix(loss=f"{metrics['query_loss']:.3f}", refresh=False)
                bar.update()
                yield _Round(round_number + 1, state, metrics, cohort)

    def weights(self, state: Any) -> list[np.ndarray]:
        """Returns the initial model of a state."""
        return [np.asarray(w) for w in self.process.get_model_weights(state).trainable]

    def _run(self, state: Any, cohort: np.ndarray) -> Any:
        try:
            return self.process.next(state, self._client_data.clients(cohort))
        except Exception as e:
            # Of a store that changes under a worker, TFF tells in many ways.
            self._population.check_unchanged(e)
            raise

    def _check_finite(
        self, round_number: int, cohort_size: int, output: Any, metrics: dict
    ) -> None:
        """Raises `Diverged` unless the round led to finite weights."""
        if cohort_size and not metrics["num_users_taken"]:
            raise errors.Diverged(
                f"Round {round_number}: not one of {cohort_size} users' updates was "
                "finite. Lower the outer or the inner learning rate."
            )
        if output.metrics["finalizer"]["update_non_finite"]:
            raise errors.Diverged(
                f"Round {round_number}: users' updates are finite, but what the "
                f"aggregator {self._experiment.aggregator} makes of them is not. Lower "
                "the learning rates, or the noise."
            )
        weights = output.state.global_model_weights.trainable
        if not all(np.isfinite(w).all() for w in weights):
            raise errors.Diverged(
                f"Round {round_number}: the server's weights are not finite. Lower the "
                "outer or the inner learning rate."
            )


class _UpdateWatch:
    """Tells, once each, of users left out and of updates out of all proportion."""

    def __init__(self, experiment: Experiment):
        self._aggregator = experiment.aggregator
        self._told_of_excluded = False
        self._told_of_outlier = experiment.aggregator not in _UNBOUNDED
        self._norms: collections.deque[float] = collections.deque(maxlen=_USUAL_ROUNDS)

    def look(
        self, round_number: int, cohort_size: int, metrics: dict, decades: int
    ) -> None:
        """Looks at a round's metrics.

        Args:
          round_number: the round, from 0.
          cohort_size: users in its cohort that have rows.
          metrics: of the client work.
          decades: powers of ten from the cohort's median update norm to its largest.
        """
        # The metric counts users without rows, too.
        excluded = cohort_size - metrics["num_users_taken"]
        if excluded > 0 and not self._told_of_excluded:
            self._told_of_excluded = True
            _tell(
                f"Round {round_number}: {excluded} of {cohort_size} users' updates "
                "were not finite and were left out; the metrics count them from here "
                "on (num_users_excluded)."
            )
        if self._told_of_outlier or not metrics["num_users_taken"]:
            return
        # In a cohort of one or two nobody is usual; other rounds are.
        total = metrics["update_norm"] * metrics["num_users_taken"]
        usual = statistics.median(self._norms) if self._norms else 0.0
        if usual and total > usual * 10**_OUTLIER_DECADES:
            decades = max(decades, int(math.log10(total / usual)))
        if decades >= _OUTLIER_DECADES:
            self._told_of_outlier = True
            _tell(
                f"Round {round_number}: a user's update is some 10^{decades} times the "
                f"usual, and the aggregator {self._aggregator} averages it in like any "
                "other. --aggregator=clip --clipping_norm=NORM bounds what one user "
                "can do."
            )
        else:
            self._norms.append(metrics["update_norm"])


def train(experiment: Experiment, population: UserStore) -> TrainingResult:
    """Runs all rounds of an experiment on TFF's default context, and saves nothing.

    Args:
      experiment: what to run.
      population: its data, from `build_population`.

    Raises:
      ConfigError: if the cohort is larger than the population.
      DataError: if a file of its store is not what was written.
      Diverged: if a round ends with weights that are not finite, naming it.
    """
    population.verify()
    training = _Training(experiment, population, _new_secret(experiment))
    lines = []
    for after in training.rounds(training.process.initialize(), 0):
        lines.append({"round_num": after.done - 1, **after.metrics})
    return TrainingResult(
        training.weights(after.state), pd.DataFrame(lines).set_index("round_num")
    )


def train_and_save(
    experiment: Experiment,
    paths: RunPaths,
    options: TrainingOptions | None = None,
    on_round: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Runs an experiment, or goes on with it, and writes its files.

    Args:
      experiment: what to run.
      paths: where its files are.
      options: how it is watched and kept.
      on_round: called after every round with the number of rounds done.

    Raises:
      ConfigError: if a run of that name has other settings, naming them. More rounds
        than it has are no other settings.
      CheckpointError: if what is needed to go on is damaged, or the disk has no room.
      DataError: if the store is damaged, or changes while the run trains.
      Diverged: as `train`; the last good round's model is kept as the run's, and
        `RunPaths.diverged` tells the round.
      Interrupted: after Ctrl-C or SIGTERM, with everything saved.
      PerFedAvgError: if another process trains this run.
    """
    try:
        with locked(paths.checkpoints / "lock"):
            return _train_and_save(
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


def _train_and_save(
    experiment: Experiment,
    paths: RunPaths,
    options: TrainingOptions,
    on_round: Callable[[int], None] | None,
) -> TrainingResult:
    start = time.monotonic()
    checkpoints = CheckpointManager(paths.checkpoints, options.checkpoints_kept)
    # Of writers that were killed; none is at work while we hold the lock.
    for directory in (paths.checkpoints, paths.results):
        remove_unfinished(directory)
    saved = checkpoints.latest_whole() if options.resume else None
    if saved is not None:
        _check_same(saved.path, Experiment(**saved.notes["experiment"]), experiment)
    if options.resume:
        weights = _finished_weights(experiment, paths, saved)
        if weights is not None:
            return TrainingResult(weights, _read_metrics(paths))

    population = build_population(experiment, paths.root)
    population.verify()
    sources = sources_of(experiment, population)
    if saved is not None:
        check_same_sources(saved.path, saved.notes["sources"], sources)
    secret = _secret_of(experiment, saved)
    training = _Training(experiment, population, secret)
    state = training.process.initialize()
    done, seconds = 0, 0.0
    positions: dict[str, int] = {}
    watch = _Watch(experiment, paths, options, training, population, sources)
    if saved is None:
        _check_room(state, paths, options)
        # Not before all is known to be possible.
        if not options.resume:
            _remove(paths, checkpoints)
    else:
        state, done = saved.state(state), saved.version
        positions, seconds = saved.notes["positions"], saved.notes["seconds"]
        # What was best by another metric says nothing of this one.
        if saved.notes["best_metric"] == options.best_metric:
            watch.best = saved.notes["best"]
        watch.count_rounds(done)
        _tell(f"{paths.name}: {done} rounds are done.")
    paths.diverged.unlink(missing_ok=True)
    _write_hparams(experiment, paths)

    files = {
        MetricsLog.ROUNDS: paths.metrics,
        MetricsLog.EVALUATIONS: paths.evaluations,
        MetricsLog.EVENTS: paths.events,
    }
    log = MetricsLog(files, paths.logdir, positions)

    def save(done: int, state: Any) -> None:
        # Rounds on rows that changed meanwhile are not kept.
        population.check_unchanged()
        notes = {
            "experiment": dataclasses.asdict(experiment),
            "positions": log.sync(),
            "seconds": seconds + time.monotonic() - start,
            "best": watch.best,
            "best_metric": options.best_metric,
            "sources": sources,
        }
        if secret is not None:
            notes["cohort_secret"] = secret.hex()
        checkpoints.write(state, done, notes, is_secret=secret is not None)

    with contextlib.closing(log), interrupts.deferred() as asked_to_stop:
        if saved is None:
            watch.evaluate(0, state, log)
        try:
            for after in training.rounds(state, done):
                done, state = after.done, after.state
                watch.count(after.cohort)
                log.add_round(done - 1, after.metrics)
                watch.evaluate(done, state, log)
                is_last = done == experiment.total_rounds
                stop = asked_to_stop() and not is_last
                if stop or is_last or done % options.rounds_per_checkpoint == 0:
                    save(done, state)
                if on_round is not None:
                    on_round(done)
                if stop:
                    raise errors.Interrupted(
                        f"Stopped after round {done} of {experiment.total_rounds}; all "
                        "is saved. The same command goes on from there."
                    )
        except errors.Diverged as e:
            save(done, state)
            kept = _keep_last_good(
                paths, experiment, done, training.weights(state), sources, str(e)
            )
            raise errors.Diverged(f"{e} {kept}") from e
    weights = training.weights(state)
    _write_facts(paths, seconds + time.monotonic() - start)
    trained_model.save(paths.model, weights, experiment, sources)
    return TrainingResult(weights, _read_metrics(paths))


def _keep_last_good(
    paths: RunPaths,
    experiment: Experiment,
    done: int,
    weights: list[np.ndarray],
    sources: dict[str, str],
    message: str,
) -> str:
    """Keeps the model before a run diverged, and says where it is."""
    facts = {
        "round_num": done,
        "message": message,
        "experiment": dataclasses.asdict(experiment),
    }
    with atomic_write(paths.diverged) as file:
        file.write(json.dumps(facts, indent=1).encode())
    if not done:
        return "There is no round before it whose model could be kept."
    # It is what a run of so many rounds ends with.
    shorter = dataclasses.replace(experiment, total_rounds=done)
    trained_model.save(paths.model, weights, shorter, sources)
    return (
        f"{paths.model} is the model after {done} of {experiment.total_rounds} rounds, "
        "the last whose weights are finite."
    )


class _Watch:
    """Evaluates the users while a run trains, and keeps the best model."""

    def __init__(
        self,
        experiment: Experiment,
        paths: RunPaths,
        options: TrainingOptions,
        training: _Training,
        population: UserStore,
        sources: dict[str, str],
    ):
        self.best: float | None = None
        self._sources = sources
        self._experiment = experiment
        self._paths = paths
        self._options = options
        self._training = training
        self._account: PrivacyAccount | None = None
        if experiment.aggregator in PRIVATE:
            self._account = _account(experiment, options, training.sampler, population)
        if options.rounds_per_evaluation:
            self._evaluate = build_evaluator(
                training.model,
                population,
                AdaptationConfig(
                    experiment.inner_learning_rate, options.adaptation_steps
                ),
                groups=choose_users(
                    population,
                    options.num_evaluation_users,
                    experiment.base_random_seed,
                ),
                seed=experiment.base_random_seed,
            )
            group, _, quantity = options.best_metric.partition("/")
            if group == NEW and not len(population.new_users):
                raise errors.ConfigError(
                    f"best_metric is {options.best_metric!r}, but {population.path} "
                    "has no new users; take seen/..."
                )
            has_classes = population.description.num_classes is not None
            if quantity.startswith("accuracy") and not has_classes:
                raise errors.ConfigError(
                    f"best_metric is {options.best_metric!r}, but the labels of "
                    f"{population.path} are no classes; take {group}/loss/..."
                )

    def count(self, cohort: np.ndarray) -> None:
        """Counts a round's cohort towards the privacy spent."""
        if self._account is not None:
            self._account.add_round(cohort)

    def count_rounds(self, done: int) -> None:
        """Counts rounds done before this process."""
        if self._account is not None:
            self._account.add_rounds(self._training.sampler.draw, done)

    def evaluate(self, done: int, state: Any, log: MetricsLog) -> None:
        """Measures the users if it is time to, after so many rounds."""
        every = self._options.rounds_per_evaluation
        if not every or (done % every and done != self._experiment.total_rounds):
            return
        weights = self._training.weights(state)
        rows = mean_rows(self._evaluate(weights))
        if self._account is not None:
            _add_privacy(self._account, done, rows)
        log.add_evaluation(done, rows)
        if not self._options.best_metric:
            return
        group, quantity, step = self._options.best_metric.split("/")
        # None, where no user of the group has evaluation rows.
        for row in rows:
            if row["users"] == group and row["step"] == int(step):
                self._keep_if_best(row[quantity], quantity, weights)

    def _keep_if_best(self, value: float, quantity: str, weights) -> None:
        merit = value if quantity == "accuracy" else -value
        if math.isfinite(merit) and (self.best is None or merit > self.best):
            self.best = merit
            trained_model.save(
                self._paths.best_model, weights, self._experiment, self._sources
            )


def _account(
    experiment: Experiment,
    options: TrainingOptions,
    sampler: CohortSampler,
    population: UserStore,
) -> PrivacyAccount:
    num_users = len(population.training_users)
    if options.best_metric:
        _tell(
            f"best_metric is {options.best_metric!r}: best.npz is chosen by what users "
            "make of it, which the epsilon printed does not cover."
        )
    return PrivacyAccount(
        experiment.noise_multiplier,
        experiment.clients_per_round / num_users,
        options.delta or default_delta(num_users),
        secret=isinstance(sampler, PoissonSampler),
    )


def _add_privacy(account: PrivacyAccount, done: int, rows: list[dict]) -> None:
    """Adds the epsilon spent to an evaluation's rows, and prints it."""
    epsilon = account.epsilon()
    for row in rows:
        row.update(epsilon=epsilon, delta=account.delta)
    text = (
        f"After {done} rounds: differential privacy with epsilon {epsilon:.3g} at "
        f"delta {account.delta:.2g}"
    )
    if not account.secret:
        text += (
            ", that of the users who took part most often, "
            f"{account.most_contributions} times: cohorts follow from the seed, so "
            "sampling amplifies nothing"
        )
    _tell(f"{text}.")


def _sampler(
    experiment: Experiment, users: np.ndarray, secret: bytes | None
) -> CohortSampler:
    size = experiment.clients_per_round
    if secret is not None:
        return PoissonSampler(users, size, secret)
    return UniformSampler(users, size, experiment.base_random_seed)


def _new_secret(experiment: Experiment) -> bytes | None:
    return secrets.token_bytes(_SECRET_BYTES) if experiment.samples_secretly else None


def _secret_of(experiment: Experiment, saved: Saved | None) -> bytes | None:
    """Returns what the cohorts of a run, new or resumed, are keyed by."""
    if saved is None:
        return _new_secret(experiment)
    found = saved.notes.get("cohort_secret")
    if found is None and experiment.samples_secretly:
        _tell(
            f"{saved.path} is of a version that drew private cohorts from the seed; "
            "the run goes on with these, and its epsilon counts no amplification."
        )
    return None if found is None else bytes.fromhex(found)


def _tell(text: str) -> None:
    tqdm.tqdm.write(text, file=sys.stderr)


def _remove(paths: RunPaths, checkpoints: CheckpointManager) -> None:
    checkpoints.clear()
    for path in (paths.model, paths.best_model):
        path.unlink(missing_ok=True)
    shutil.rmtree(paths.results, ignore_errors=True)
    shutil.rmtree(paths.logdir, ignore_errors=True)


def _check_same(
    path: pathlib.Path, found: Experiment, wanted: Experiment, may_grow: bool = True
) -> None:
    if may_grow and found.total_rounds < wanted.total_rounds:
        found = dataclasses.replace(found, total_rounds=wanted.total_rounds)
    differences = found.differences(wanted)
    if differences:
        raise errors.ConfigError(
            f"{path} is of a run with {differences}. Choose another --experiment_name, "
            "or begin it again with --noresume."
        )


def _finished_weights(
    experiment: Experiment, paths: RunPaths, saved: Saved | None
) -> list[np.ndarray] | None:
    """Returns the model of a run that is finished; None if there is more to do."""
    if saved is not None and saved.version != experiment.total_rounds:
        return None
    if not paths.model.is_file():
        return None
    try:
        weights, trained = trained_model.load(paths.model)
    except errors.CheckpointError:
        # It is made again from the state, if that is there.
        if saved is None:
            raise
        return None
    if saved is None:
        _check_same(paths.model, trained, experiment, may_grow=False)
    if trained.differences(experiment):
        return None
    check_sources(experiment, paths.model, paths.root)
    return weights


def _check_room(state: Any, paths: RunPaths, options: TrainingOptions) -> None:
    size = sum(np.asarray(leaf).nbytes for leaf in tree.flatten(state))
    # One more than are kept, while it is written, and two models.
    needed = size * (options.checkpoints_kept + 3) + _SPARE_BYTES
    free = shutil.disk_usage(paths.checkpoints).free
    if free < needed:
        raise errors.CheckpointError(
            f"{paths.root} has {free / 1e6:.0f} MB free; the run needs "
            f"{needed / 1e6:.0f} MB for checkpoints and metrics. Free some space, or "
            "choose another --root_output_dir."
        )


def _write_hparams(experiment: Experiment, paths: RunPaths) -> None:
    settings = pd.Series(dataclasses.asdict(experiment))
    with atomic_write(paths.hparams) as file:
        settings.to_csv(file, index_label="name", header=["value"])


def _write_facts(paths: RunPaths, seconds: float) -> None:
    facts = {
        "seconds": seconds,
        "peak_memory_mb": run_facts.peak_memory_mb(),
        "machine": run_facts.machine(),
        "versions": run_facts.versions(),
    }
    with atomic_write(paths.facts) as file:
        file.write(json.dumps(facts, indent=1).encode())


def _read_metrics(paths: RunPaths) -> pd.DataFrame:
    if not paths.metrics.is_file():
        raise errors.CheckpointError(
            f"{paths.metrics} is missing; put it back, or begin again with --noresume."
        )
    return pd.read_csv(paths.metrics, index_col="round_num")
