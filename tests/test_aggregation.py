"""Aggregators of updates, and the privacy that they spend."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tests.helpers import relative_error
from tests.needs import slow_but
from tff_perfedavg import errors
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import parts
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.experiments.training.privacy import (
    amplified_epsilon,
    unamplified_epsilon,
)
from tff_perfedavg.fleet.cohort import PoissonSampler, sample_cohort

pytestmark = pytest.mark.usefixtures("shared_builds")

BASE = Experiment(
    model="logistic_regression", num_local_steps=2, clients_per_round=8, batch_size=5
)
CLIP, NOISE, COHORT = 0.5, 0.7, 6
# Users' updates, of norms from 0.2 to 2.2.
UPDATES = [
    [np.full([3], 0.1 + 0.2 * i, np.float32), np.full([1], 0.1, np.float32)]
    for i in range(COHORT)
]


def settings_of(aggregator):
    clips = aggregator in (parts.CLIP, parts.DP_FIXED)
    private = aggregator in parts.PRIVATE
    return {
        "aggregator": aggregator,
        "clipping_norm": 0.05 if clips else None,
        "noise_multiplier": 0.5 if private else 0.0,
    }


def train_rounds(experiment, population, num_rounds, state=None, first=0):
    """The process and its states after each of some rounds."""
    from tff_perfedavg.experiments.assemble.build import (
        build_client_data,
        build_model,
        build_process,
    )

    model = build_model(experiment, population)
    client_data = build_client_data(experiment, model, population)
    process = build_process(experiment, model, client_data)
    states = [process.initialize() if state is None else state]
    for number in range(first, first + num_rounds):
        cohort = sample_cohort(
            population.training_users, experiment.cohorts.clients_per_round, 0, number
        )
        states.append(process.next(states[-1], client_data.clients(cohort)).state)
    return process, states


def weights_of(process, state):
    return process.get_model_weights(state).trainable


def clipped(update, norm=CLIP):
    length = np.sqrt(sum((u.astype(np.float64) ** 2).sum() for u in update))
    return [u * min(1.0, norm / length) for u in update]


@pytest.mark.parametrize(
    "aggregator",
    # clip is in test_clipping_is_the_same_in_every_form.
    slow_but({"mean", "robust", "dp_adaptive", "secure"}, parts.AGGREGATORS),
)
def test_every_aggregator_trains_and_its_state_is_kept(tff, tmp_path, aggregator):
    from tff_perfedavg.experiments.files.checkpoints import CheckpointManager

    experiment = dataclasses.replace(BASE, **settings_of(aggregator))
    population = build_population(experiment, tmp_path)
    process, states = train_rounds(experiment, population, 3)
    first, last = (weights_of(process, states[i]) for i in (0, 3))
    assert all(np.isfinite(w).all() for w in last)
    assert relative_error(last, first) > 1e-3
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.write(states[2], 2)
    kept = checkpoints.read(2).state(states[0])
    _, (_, again) = train_rounds(experiment, population, 1, kept, first=2)
    difference = relative_error(weights_of(process, again), last)
    # Noise is drawn anew.
    is_noisy = aggregator in parts.PRIVATE
    assert (difference > 0) == is_noisy


def test_clipping_is_the_same_in_every_form(tff, tmp_path):
    population = build_population(BASE, tmp_path)
    found = {}
    for form in ("users", "blocks_loop", "blocks_vectorized"):
        experiment = dataclasses.replace(
            BASE, **settings_of("clip"), client_form=form, block_size=3
        )
        process, states = train_rounds(experiment, population, 3)
        found[form] = weights_of(process, states[-1])
    plain_process, plain = train_rounds(BASE, population, 3)
    assert relative_error(found["blocks_loop"], found["users"]) < 1e-5
    assert relative_error(found["blocks_vectorized"], found["users"]) < 1e-5
    # And it does something.
    assert relative_error(found["users"], weights_of(plain_process, plain[-1])) > 1e-3


def private_means(tff, in_blocks, count):
    """Results of aggregating `UPDATES` with noise, `[count, 4]`."""
    from tff_perfedavg.federated.block_noise import BlockGaussianFactory

    value_type = tff.types.tensorflow_to_type([(np.float32, [3]), (np.float32, [1])])
    weight_type = tff.TensorType(np.float32)
    if in_blocks:
        factory = BlockGaussianFactory(NOISE, COHORT, CLIP)
        process = factory.create(value_type, weight_type)
        blocks = [UPDATES[:2], UPDATES[2:3], UPDATES[3:]]
        means = [
            [np.mean(parts, 0, dtype=np.float32) for parts in zip(*users, strict=True)]
            for users in ([clipped(u) for u in block] for block in blocks)
        ]
        arguments = [means, [np.float32(len(block)) for block in blocks]]
    else:
        private = tff.aggregators.DifferentiallyPrivateFactory
        process = private.gaussian_fixed(NOISE, COHORT, CLIP).create(value_type)
        arguments = [UPDATES]
    state, found = process.initialize(), []
    for _ in range(count):
        output = process.next(state, *arguments)
        state = output.state
        found.append(np.concatenate([np.ravel(t) for t in output.result]))
    return np.array(found, np.float64)


def test_noise_in_blocks_is_distributed_as_tffs(tff):
    expected_mean = np.mean(
        [np.concatenate(clipped(update)) for update in UPDATES], axis=0
    )
    expected_sd = NOISE * CLIP / COHORT
    samples = {b: private_means(tff, b, 150) - expected_mean for b in (False, True)}
    for noise in samples.values():
        # 600 draws: within five standard errors of what the settings say.
        assert abs(noise.mean()) < 5 * expected_sd / np.sqrt(noise.size)
        assert abs(noise.std() / expected_sd - 1) < 5 / np.sqrt(2 * noise.size)
        assert scipy.stats.kstest(noise.ravel() / expected_sd, "norm").pvalue > 1e-4
    both = [noise.ravel() for noise in samples.values()]
    assert scipy.stats.ks_2samp(*both).pvalue > 1e-4


@pytest.fixture(scope="module")
def private_run(tff, tmp_path_factory):
    """A run with differential privacy, killed after its third round of six."""
    experiment = dataclasses.replace(BASE, **settings_of("dp_fixed"), total_rounds=6)
    return experiment, RunPaths(tmp_path_factory.mktemp("private"), "private")


def drawn_cohorts(monkeypatch):
    """Records every cohort that is drawn, by round."""
    found, real = {}, PoissonSampler.draw

    def draw(self, round_number):
        cohort = real(self, round_number)
        assert np.array_equal(found.setdefault(round_number, cohort), cohort)
        return cohort

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    return found


def test_a_private_run_draws_secret_poisson_cohorts_and_resumes_with_them(
    private_run, monkeypatch, capsys
):
    from tff_perfedavg.experiments.files.checkpoints import CheckpointManager
    from tff_perfedavg.experiments.training.training import train_and_save

    experiment, paths = private_run
    options = TrainingOptions(
        rounds_per_checkpoint=3, rounds_per_evaluation=2, delta=1e-3
    )
    cohorts = drawn_cohorts(monkeypatch)

    def kill(done):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_save(experiment, paths, options, on_round=kill)
    # Rounds 3 and 4 are drawn once more, and alike.
    train_and_save(experiment, paths, options)
    assert sorted(cohorts) == list(range(6))
    assert len({len(cohort) for cohort in cohorts.values()}) > 1
    public = [sample_cohort(range(20), 8, 0, number) for number in range(6)]
    assert not any(set(cohorts[i]) == set(public[i]) for i in range(6))

    rows = pd.read_csv(paths.evaluations).groupby("round_num")["epsilon"].first()
    expected = [amplified_epsilon(0.5, 8 / 20, n, 1e-3) for n in (0, 2, 4, 6)]
    assert np.allclose(rows, expected)
    told = capsys.readouterr().err
    assert f"epsilon {rows[6]:.3g} at delta 0.001." in told

    newest = CheckpointManager(paths.checkpoints).latest_whole()
    secret = newest.notes["cohort_secret"]
    assert newest.path.stat().st_mode & 0o077 == 0
    # NumPy keeps strings in UTF-32.
    forms = [secret.encode(), secret.encode("utf-32-le"), bytes.fromhex(secret)]
    files = [path for path in paths.root.rglob("*") if path.is_file()]
    holders = [
        path for path in files if any(form in path.read_bytes() for form in forms)
    ]
    assert holders
    assert all(path.suffix == ".ckpt" for path in holders)


def test_two_private_runs_of_one_seed_draw_other_cohorts(tff, tmp_path, monkeypatch):
    from tff_perfedavg.experiments.training.training import train

    experiment = dataclasses.replace(BASE, **settings_of("dp_fixed"), total_rounds=2)
    population = build_population(experiment, tmp_path)
    found = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            cohorts = drawn_cohorts(patch)
            train(experiment, population)
        found.append([sorted(cohorts[i].tolist()) for i in range(2)])
    assert found[0] != found[1]


@pytest.mark.parametrize("form", ["users", "blocks_loop", "blocks_vectorized"])
def test_a_round_without_anybody_is_noise_alone(tff, tmp_path, monkeypatch, form):
    from tff_perfedavg.experiments.training.training import train

    fields = {**settings_of("dp_fixed"), "total_rounds": 2, "client_form": form}
    experiment = dataclasses.replace(BASE, **fields, clients_per_round=1)
    population = build_population(experiment, tmp_path)
    nobody = np.zeros([0], np.int64)
    monkeypatch.setattr(PoissonSampler, "draw", lambda self, number: nobody)
    result = train(experiment, population)
    assert list(result.metrics["num_users_taken"]) == [0, 0]
    from tff_perfedavg.experiments.assemble.build import build_model

    initial = build_model(experiment, population).init(0)
    change = np.concatenate(
        [(r - w).ravel() for r, w in zip(result.weights, initial, strict=True)]
    )
    # Two draws of standard deviation 0.5 times 0.05, over a cohort of one.
    assert np.isclose(change.std(), np.sqrt(2) * 0.025, rtol=0.15)


def test_fixed_private_cohorts_are_accounted_without_amplification(
    tff, tmp_path, capsys
):
    from tff_perfedavg.experiments.training.training import train_and_save

    fields = {**settings_of("dp_fixed"), "cohort_sampling": "fixed"}
    experiment = dataclasses.replace(BASE, **fields, total_rounds=4)
    paths = RunPaths(tmp_path, "fixed")
    options = TrainingOptions(rounds_per_evaluation=4, delta=1e-3)
    train_and_save(experiment, paths, options)
    cohorts = [sample_cohort(range(20), 8, 0, number) for number in range(4)]
    most = np.bincount(np.concatenate(cohorts)).max()
    rows = pd.read_csv(paths.evaluations).groupby("round_num")["epsilon"].first()
    assert np.allclose(rows[4], unamplified_epsilon(0.5, most, 1e-3))
    told = capsys.readouterr().err
    assert f"took part most often, {most} times" in told
    assert "sampling amplifies nothing" in told


def test_a_private_run_of_version_0_1_0_goes_on_with_its_public_cohorts(
    tff, tmp_path, monkeypatch, capsys
):
    from tff_perfedavg.experiments.files.checkpoints import CheckpointManager
    from tff_perfedavg.experiments.training.training import train_and_save

    fixed = {**settings_of("dp_fixed"), "cohort_sampling": "fixed", "total_rounds": 2}
    experiment = dataclasses.replace(BASE, **fixed)
    paths = RunPaths(tmp_path, "old")
    train_and_save(experiment, paths)
    # What 0.1.0 wrote: no such setting, and no secret.
    checkpoints = CheckpointManager(paths.checkpoints)
    saved = checkpoints.read(2)
    del saved.notes["experiment"]["cohort_sampling"]
    checkpoints.write(_state_of(experiment, paths, saved), 2, saved.notes)
    paths.model.unlink()
    longer = dataclasses.replace(experiment, cohort_sampling="auto", total_rounds=4)
    cohorts = drawn_cohorts(monkeypatch)
    train_and_save(longer, paths, TrainingOptions(rounds_per_evaluation=2))
    assert not cohorts
    assert "sampling amplifies nothing" in capsys.readouterr().err


def _state_of(experiment, paths, saved):
    population = build_population(experiment, paths.root)
    _, states = train_rounds(experiment, population, 0)
    return saved.state(states[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aggregator": "median"}, "aggregator is 'median'; known: mean, clip"),
        ({"aggregator": "clip"}, "clipping_norm is None; clip needs a number above 0"),
        ({"aggregator": "clip", "clipping_norm": -1.0}, "clipping_norm is -1"),
        ({"aggregator": "clip", "clipping_norm": 1e-46}, "1e-46; clip .*from 1e-30 to"),
        ({"aggregator": "clip", "clipping_norm": float("nan")}, "clipping_norm is nan"),
        ({"clipping_norm": 1.0}, "but aggregator mean has none"),
        ({"noise_multiplier": 1.0}, "mean adds no noise"),
        (
            {"aggregator": "dp_fixed", "clipping_norm": 1.0},
            "noise_multiplier is 0.0; dp_fixed needs a number above 0",
        ),
        (
            {**settings_of("dp_fixed"), "client_weighting": "num_examples"},
            "client_weighting is num_examples, but dp_fixed must count every user",
        ),
        (
            {**settings_of("robust"), "client_form": "blocks_loop"},
            "client_form is blocks_loop, but robust must see each user's update",
        ),
        (
            {**settings_of("dp_fixed"), "clipping_norm": 1e30, "noise_multiplier": 1e9},
            "clipping_norm 1e.30 times noise_multiplier 1e.09 is 1e.39, noise that no",
        ),
        ({"cohort_sampling": "poisson"}, "poisson, but aggregator mean is not private"),
        ({"cohort_sampling": "some"}, "cohort_sampling is 'some'; known: auto, fixed"),
        (
            {**settings_of("dp_adaptive"), "clients_per_round": 5},
            "clients_per_round 5 needs less than 0.5",
        ),
    ],
)
def test_settings_that_contradict_are_refused(fields, message):
    with pytest.raises(errors.ConfigError, match=message):
        Experiment(**fields)
