"""Metrics over users against scikit-learn, SciPy and cases known by hand."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.spatial
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity

from tff_perfedavg import errors
from tff_perfedavg.experiments.evaluation import metrics
from tff_perfedavg.experiments.report import evaluation_text
from tff_perfedavg.experiments.report import tables as report

ADAPTED = "num_steps=5 inner_learning_rate=0.1 moves=all seed=0"
accuracies = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=40)


def rows(values, algorithm="A", users="seen", step=1, **columns):
    """Per-user rows with the given accuracies."""
    return pd.DataFrame(
        {
            "algorithm": algorithm,
            "users": users,
            "user": np.arange(len(values)),
            "step": step,
            "accuracy": values,
            "loss": 1.0 - np.asarray(values),
            **columns,
        }
    )


@given(accuracies)
def test_fairness_against_scikit_learn_and_scipy(values):
    ones = np.ones([1, len(values)])
    cosine = cosine_similarity([values], ones)[0, 0]
    assert np.isclose(metrics.cosine_fairness(values), cosine)
    # The divergence from the uniform distribution is what is left of the entropy.
    share = np.array(values) / np.sum(values)
    uniform = ones[0] / len(values)
    left = 1 - scipy.stats.entropy(share, uniform) / np.log(len(values))
    assert np.isclose(metrics.entropy_fairness(values), left)


def test_fairness_at_its_ends():
    alike, one = [0.5] * 4, [1.0, 0.0, 0.0, 0.0]
    assert np.isclose(metrics.cosine_fairness(alike), 1)
    assert np.isclose(metrics.entropy_fairness(alike), 1)
    assert np.isclose(metrics.cosine_fairness(one), 0.5)
    assert np.isclose(metrics.entropy_fairness(one), 0)
    for function in (metrics.cosine_fairness, metrics.entropy_fairness):
        assert np.isnan(function([0.0, 0.0]))


@settings(max_examples=30, deadline=None)
@given(accuracies)
def test_summary_against_numpy(values):
    before = rows(np.clip(np.array(values) - 0.1, 0, 1), step=0)
    per_user = pd.concat([before, rows(values)], ignore_index=True)
    found = metrics.summarize(per_user).loc[("seen", "A", 1)]
    for name, percent in (("p10", 10), ("p50", 50), ("p90", 90)):
        assert np.isclose(found[f"accuracy_{name}"], np.percentile(values, percent))
    assert np.isclose(found["accuracy_sd"], scipy.stats.tstd(values))
    tenth = max(1, round(len(values) / 10))
    assert np.isclose(found["best_decile"], np.sort(values)[-tenth:].mean())
    assert np.isclose(found["worst_decile"], np.sort(values)[:tenth].mean())
    assert found["made_worse"] == 0


def test_a_users_accuracy_and_error_are_scikit_learns():
    import tensorflow as tf

    from tff_perfedavg.models.dense import mlp, mlp_regressor
    from tff_perfedavg.models.model import Batch

    rng = np.random.default_rng(0)
    x = rng.normal(size=[30, 4]).astype(np.float32)
    y = rng.integers(3, size=30).astype(np.int32)
    model = mlp((4,), 3)
    loss, accuracy = model.evaluate(model.init(0), Batch(x, y, tf.ones([30])))
    logits = model.apply(model.init(0), x).numpy()
    assert np.isclose(accuracy, accuracy_score(y, logits.argmax(1)))
    regressor = mlp_regressor((4,), 2)
    target = rng.normal(size=[30, 2]).astype(np.float32)
    batch = Batch(x, target, tf.ones([30]))
    loss, _ = regressor.evaluate(regressor.init(0), batch)
    outputs = regressor.apply(regressor.init(0), x).numpy()
    assert np.isclose(loss, mean_squared_error(target, outputs), rtol=1e-5)


def test_paired_comparison_finds_a_gain_that_users_differences_hide():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.2, 0.7, 50)
    second = first + rng.normal(0.02, 0.01, 50)
    per_user = pd.concat([rows(first), rows(second, "B")], ignore_index=True)
    found = metrics.compare_paired(per_user, 1).loc[("seen", "A", "B")]
    difference = second - first
    assert np.isclose(found["difference"], difference.mean())
    expected = scipy.stats.t.interval(
        0.95, 49, difference.mean(), scipy.stats.sem(difference)
    )
    # The two intervals differ by the order of 1 / n.
    assert np.allclose([found["low"], found["high"]], expected, atol=3e-4)
    assert found["low"] > 0
    assert found["num_better"] == (difference > 0).sum()
    assert found["num_worse"] == (difference < 0).sum()


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        values = rng.normal(0.1, 1.0, 40)
        per_user = pd.concat([rows(np.zeros(40)), rows(values, "B")])
        found = metrics.compare_paired(per_user, 1, num_resamples=400, seed=trial)
        low, high = found.iloc[0][["low", "high"]]
        covered += low <= 0.1 <= high
    # 190 of 200 are expected; a percentile interval of 40 covers a little less.
    assert 178 <= covered <= 198


def compared_with_nobody(values):
    """The comparison of users of the given values with users of value 0."""
    per_user = pd.concat([rows(np.zeros(len(values))), rows(values, "B")])
    return metrics.compare_paired(per_user, 1).iloc[0]


@pytest.mark.parametrize("num_users", [1, 2, 5])
def test_fewer_than_six_users_have_no_interval(num_users):
    found = compared_with_nobody(np.linspace(0.1, 0.2, num_users))
    assert np.isclose(found["difference"], np.linspace(0.1, 0.2, num_users).mean())
    assert np.isnan(found["low"])
    assert np.isnan(found["high"])
    assert found["num_better"] == num_users


@pytest.mark.parametrize("num_users", [6, 19])
def test_fewer_than_twenty_users_have_students_interval(num_users):
    values = np.random.default_rng(num_users).normal(0.1, 0.2, num_users)
    expected = scipy.stats.t.interval(
        0.95, num_users - 1, values.mean(), scipy.stats.sem(values)
    )
    found = compared_with_nobody(values)
    assert np.allclose([found["low"], found["high"]], expected)


def test_of_six_users_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for trial in range(400):
        values = np.random.default_rng(trial).normal(0.1, 1.0, 6)
        low, high = compared_with_nobody(values)[["low", "high"]]
        covered += low <= 0.1 <= high
    # 380 of 400 are expected; a percentile bootstrap of six covers some 340.
    assert 367 <= covered <= 392


@pytest.mark.parametrize("column", ["accuracy", "loss"])
def test_intervals_that_are_not_there_are_printed_as_dashes(column):
    per_user = pd.concat([rows([0.5, 0.5]), rows([0.6, 0.6], "B")])
    compared = metrics.compare_paired(per_user, 1, column=column)
    said = report.format_comparison(compared, column).splitlines()[-1]
    assert re.fullmatch(r"seen +A +B +[-+][\d.]+ +- +- +\d +\d +\d", said)


def test_a_users_runs_are_one_user_and_groups_stay_apart():
    parts = [
        rows([0.1 * seed, 0.5], "A", users, seed=seed)
        for seed in (1, 2)
        for users in ("seen", "new")
    ]
    parts += [
        rows([0.1 * seed + 0.2, 0.4], "B", users, seed=seed)
        for seed in (1, 2)
        for users in ("seen", "new")
    ]
    found = metrics.compare_paired(pd.concat(parts), 1)
    assert list(found.index) == [("seen", "A", "B"), ("new", "A", "B")]
    assert np.allclose(found["difference"], 0.05)
    assert list(found["num_better"]) == [1, 1]
    by_loss = metrics.compare_paired(pd.concat(parts), 1, column="loss")
    assert np.allclose(by_loss["difference"], -0.05)
    assert list(by_loss["num_better"]) == [1, 1]


def test_results_of_different_users_are_not_compared():
    per_user = pd.concat([rows([0.1, 0.2]), rows([0.3], "B")])
    with pytest.raises(errors.DataError, match="B lacks results of users"):
        metrics.compare_paired(per_user, 1)


def test_halves_are_shown_alike_wherever_and_rounded_away_from_zero():
    # Sums of the same numbers in another order.
    for half in (62.25, 62.25 - 1e-13, 62.25 + 1e-13):
        assert report.fixed(half) == "62.3"
        assert report.signed(-half) == "-62.3"
    assert [report.fixed(x) for x in (0.05, -0.04, 1e30, np.inf)][:2] == ["0.1", "0.0"]
    assert report.fixed(np.inf) == "inf"
    assert float(report.fixed(1e30)) == 1e30
    assert report.signed(0.04) == "+0.0"
    assert report.fixed_loss(0.0125) == "0.013"


def many_runs(count):
    """Runs of four users in each group, and baselines of each run, as evaluated."""
    rng = np.random.default_rng(0)

    def frame(name, steps, **columns):
        found = [
            rows(rng.uniform(size=4), name, users, step, adaptation=ADAPTED, **columns)
            for users in ("seen", "new")
            for step in range(steps + 1)
        ]
        return pd.concat(found).assign(num_classes_held=lambda f: 1 + f["user"] % 2)

    names = [f"run{number}" for number in range(count)]
    baselines = [frame("local training", 5, baseline="local training")]
    baselines += [
        frame(f"{name} + label shares", 0, baseline="label shares") for name in names
    ]
    return pd.concat([frame(name, 5) for name in names]), pd.concat(baselines)


def test_of_many_runs_a_terminal_has_a_page_or_two():
    per_user, baselines = many_runs(9)
    compared = metrics.compare_paired(per_user, 5)
    said = evaluation_text.format_evaluation(per_user, baselines, 5)
    said += evaluation_text.format_compared(compared, per_user, 5)
    assert len(said.splitlines()) < 90
    shares = re.findall(r"run\d \+ label shares", said)
    assert len(shares) == 2 * 2
    assert len({*shares}) == 1
    assert not re.search(r"run1 +run2", said)
    # Each after its last step, in the tables and compared with the first.
    assert len(re.findall(r"^ +(?:method +)?run8 +5 ", said, re.MULTILINE)) == 4
    assert len(re.findall(r"run8 ", said)) == 4 + 2


def test_of_few_runs_a_terminal_has_the_steps_and_every_pair():
    per_user, baselines = many_runs(3)
    said = evaluation_text.format_evaluation(per_user, baselines, 5)
    assert said.startswith("Users adapt all weights in 5 steps at rate 0.1.\n\n")
    for step in (0, 1, 5):
        assert len(re.findall(rf"^ .* {step} ", said, re.MULTILINE)) >= 2 * 4
    compared = evaluation_text.format_compared(
        metrics.compare_paired(per_user, 5), per_user, 5
    )
    assert re.search(r"run1 +run2", compared)
    # Local training of seen users and of new ones takes steps, and label shares none.
    dashes = re.findall(r"label shares +- .* - +[\d.]+$", said, re.MULTILINE)
    assert len(dashes) == 2 * 3
