"""What is done to updates on their way into the mean, and the privacy it spends."""

import dataclasses

import dp_accounting
import numpy as np
import pytest
import scipy.stats
from dp_accounting import rdp

from tests.helpers import relative_error
from tff_perfedavg import errors
from tff_perfedavg.programs import experiment as experiment_lib
from tff_perfedavg.programs.experiment import Experiment
from tff_perfedavg.programs.population import build_population
from tff_perfedavg.programs.privacy import default_delta, epsilon_spent

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
    clips = aggregator in (experiment_lib.CLIP, experiment_lib.DP_FIXED)
    private = aggregator in experiment_lib.PRIVATE
    return {
        "aggregator": aggregator,
        "clipping_norm": 0.05 if clips else None,
        "noise_multiplier": 0.5 if private else 0.0,
    }


def train_rounds(experiment, population, num_rounds, state=None, first=0):
    """The process and its states after each of some rounds."""
    from tff_perfedavg.programs.build import (
        build_client_data,
        build_model,
        build_process,
    )
    from tff_perfedavg.simulation.cohort import sample_cohort

    model = build_model(experiment, population)
    client_data = build_client_data(experiment, model, population)
    process = build_process(experiment, model, client_data)
    states = [process.initialize() if state is None else state]
    for number in range(first, first + num_rounds):
        cohort = sample_cohort(
            population.training_users, experiment.clients_per_round, 0, number
        )
        states.append(process.next(states[-1], client_data.clients(cohort)).state)
    return process, states


def weights_of(process, state):
    return process.get_model_weights(state).trainable


def clipped(update, norm=CLIP):
    length = np.sqrt(sum((u.astype(np.float64) ** 2).sum() for u in update))
    return [u * min(1.0, norm / length) for u in update]


@pytest.mark.parametrize("aggregator", experiment_lib.AGGREGATORS)
def test_every_aggregator_trains_and_its_state_is_kept(tff, tmp_path, aggregator):
    from tff_perfedavg.programs.checkpoints import CheckpointManager

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
    is_noisy = aggregator in experiment_lib.PRIVATE
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
    from tff_perfedavg.algorithms.block_noise import BlockGaussianFactory

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


def test_epsilon_is_dp_accountings_own():
    for noise, cohort, users, rounds in ((1.0, 100, 3500, 200), (0.6, 10, 100, 50)):
        accountant = rdp.RdpAccountant()
        for _ in range(rounds):
            accountant.compose(
                dp_accounting.PoissonSampledDpEvent(
                    cohort / users, dp_accounting.GaussianDpEvent(noise)
                )
            )
        expected = accountant.get_epsilon(1e-5)
        assert np.isclose(epsilon_spent(noise, cohort, users, rounds, 1e-5), expected)
    assert np.isclose(epsilon_spent(1.0, 100, 3500, 200, 1e-5), 3.09, atol=5e-3)


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    by_rounds = [epsilon_spent(1.0, 10, 1000, n, 1e-5) for n in (0, 1, 10, 100)]
    assert by_rounds[0] == 0
    assert by_rounds == sorted(by_rounds)
    by_noise = [epsilon_spent(z, 10, 1000, 10, 1e-5) for z in (2.0, 1.0, 0.5)]
    assert by_noise == sorted(by_noise)
    assert default_delta(1000) < 1 / 1000
    with pytest.raises(errors.ConfigError, match="delta is 1"):
        epsilon_spent(1.0, 10, 1000, 10, 1)


def test_training_prints_and_logs_the_epsilon(tff, tmp_path, capsys):
    import pandas as pd

    from tff_perfedavg.programs.run_paths import RunPaths
    from tff_perfedavg.programs.training import train_and_save
    from tff_perfedavg.programs.training_options import TrainingOptions

    experiment = dataclasses.replace(BASE, **settings_of("dp_fixed"), total_rounds=4)
    paths = RunPaths(tmp_path, "private")
    options = TrainingOptions(rounds_per_evaluation=2, delta=1e-3)
    train_and_save(experiment, paths, options)
    rows = pd.read_csv(paths.evaluations).groupby("round_num")["epsilon"].first()
    assert np.allclose(rows, [epsilon_spent(0.5, 8, 20, n, 1e-3) for n in (0, 2, 4)])
    told = capsys.readouterr().err
    assert f"epsilon {rows[4]:.3g} at delta 0.001" in told


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aggregator": "median"}, "aggregator is 'median'; known: mean, clip"),
        ({"aggregator": "clip"}, "clipping_norm is None; clip needs a number above 0"),
        ({"aggregator": "clip", "clipping_norm": -1.0}, "clipping_norm is -1"),
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
            {**settings_of("dp_adaptive"), "clients_per_round": 5},
            "clients_per_round 5 needs less than 0.5",
        ),
    ],
)
def test_settings_that_contradict_are_refused(fields, message):
    with pytest.raises(errors.ConfigError, match=message):
        Experiment(**fields)
