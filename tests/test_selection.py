"""Choosing hyper-parameters: who chooses has no part in what is reported."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_perfedavg import errors
from tff_perfedavg.experiments.evaluation.metrics import mean_with_intervals
from tff_perfedavg.experiments.evaluation.selection import (
    TEST,
    VALIDATION,
    select,
    validation_users,
)

OF = ["method"]
HALVES = VALIDATION, TEST
CHOOSE = ["adaptation_learning_rate", "step"]
RATES, STEPS = (0.1, 1.0), (0, 1, 2)

user_numbers = st.sets(st.integers(0, 10**6), min_size=2, max_size=60).map(list)
seeds = st.integers(0, 2**32)


def results(num_users=10, groups=("seen", "new"), methods=("A", "B"), seed=0):
    """Rows of a study with random accuracies."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        [
            (group, 100 * number + user, method, run, rate, step)
            for number, group in enumerate(groups)
            for user in range(num_users)
            for method in methods
            for run in (0, 1)
            for rate in RATES
            for step in STEPS
        ],
        columns=["users", "user", "method", "seed", *CHOOSE],
    )
    frame["accuracy"] = rng.uniform(size=len(frame))
    frame["loss"] = rng.uniform(size=len(frame))
    return frame


def is_validating(frame, seed=0):
    """Which rows are of users that choose, group by group."""
    found = pd.Series(False, frame.index)
    for _, group in frame.groupby("users"):
        users = np.sort(group["user"].unique())
        chosen = users[validation_users(users, seed)]
        found[group.index] = group["user"].isin(chosen)
    return found


def choices(chosen):
    """What was chosen, by group and method."""
    return {
        key: tuple(rows[CHOOSE].drop_duplicates().itertuples(index=False, name=None))
        for key, rows in chosen.groupby(["users", *OF])
    }


@given(user_numbers, seeds)
def test_the_larger_half_chooses_whatever_the_order_of_the_users(users, seed):
    users = np.array(users)
    chosen = validation_users(users, seed)
    assert chosen.sum() == (len(users) + 1) // 2
    backwards = validation_users(users[::-1], seed)
    assert {*users[::-1][backwards]} == {*users[chosen]}
    np.testing.assert_array_equal(validation_users(users, seed), chosen)


def test_another_seed_divides_the_users_otherwise():
    divisions = {tuple(validation_users(np.arange(20), seed)) for seed in range(10)}
    assert len(divisions) == 10


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 99))
def test_users_reported_and_users_that_choose_are_all_users_and_none_is_both(
    num_users, seed
):
    frame = results(num_users)
    reported = {*select(frame, OF, CHOOSE, seed=seed)["user"]}
    validating = {*frame["user"][is_validating(frame, seed)]}
    assert not reported & validating
    assert reported | validating == {*frame["user"]}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99))
def test_what_test_users_achieve_changes_no_choice(seed):
    frame = results(seed=seed)
    chosen = select(frame, OF, CHOOSE, seed=seed)
    other = results(seed=seed + 100)
    of_test_users = ~is_validating(frame, seed)
    changed = frame.copy()
    for column in ("accuracy", "loss"):
        changed.loc[of_test_users, column] = other.loc[of_test_users, column]
    again = select(changed, OF, CHOOSE, seed=seed)
    assert choices(again) == choices(chosen)
    assert not np.allclose(again["accuracy"], chosen["accuracy"])
    shuffled = select(frame.sample(frac=1, random_state=seed), OF, CHOOSE, seed=seed)
    assert choices(shuffled) == choices(chosen)


def test_the_choice_is_the_best_mean_of_the_validation_users():
    frame = results()
    chosen = choices(select(frame, OF, CHOOSE))
    validating = frame[is_validating(frame)]
    means = validating.groupby(["users", *OF, *CHOOSE])["accuracy"].mean()
    for key, found in chosen.items():
        assert found == (means[key].idxmax(),)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 99))
def test_cross_fitted_every_user_is_reported_with_what_others_chose(num_users, seed):
    frame = results(num_users, seed=seed)
    found = select(frame, OF, CHOOSE, seed=seed, directions=HALVES)
    runs = ["users", "user", "method", "seed"]
    assert not found.duplicated(runs).any()
    assert len(found) == len(frame[runs].drop_duplicates())
    assert {*found["chosen_by"]} == {*HALVES}
    # Those of one half as without; those of the other by hand.
    validating = is_validating(frame, seed)
    one_way = select(frame, OF, CHOOSE, seed=seed)
    is_test = found["user"].isin(one_way["user"])
    by = [*runs, *CHOOSE]
    assert choices(found[is_test]) == choices(one_way)
    means = frame[~validating].groupby(["users", *OF, *CHOOSE])["accuracy"].mean()
    for key, other in choices(found[~is_test]).items():
        assert other == (means[key].idxmax(),)
    assert len(found.merge(frame, on=by)) == len(found)


def test_all_rows_of_test_users_with_what_was_chosen_are_returned():
    frame = results(num_users=9)
    # Two groups, two methods, two seeds, four test users of nine.
    assert len(select(frame, OF, CHOOSE)) == 2 * 2 * 2 * 4
    # Each rate apart, the step alone is chosen.
    assert len(select(frame, [*OF, CHOOSE[0]], ["step"])) == 2 * 2 * 2 * 4 * 2


def test_of_equals_the_fewest_steps_are_chosen():
    frame = results().assign(accuracy=0.5)
    assert {*select(frame, OF, CHOOSE)["step"]} == {0}
    better = frame["step"] > 0
    frame.loc[better, "accuracy"] = 0.6
    assert {*select(frame, OF, CHOOSE)["step"]} == {1}
    backwards = frame.iloc[::-1]
    assert {*select(backwards, OF, CHOOSE)["step"]} == {1}


def test_seen_and_new_users_choose_each_for_themselves():
    frame = results()
    best = {"seen": (0.1, 1), "new": (1.0, 2)}
    for group, (rate, step) in best.items():
        is_best = (
            (frame["users"] == group)
            & (frame["adaptation_learning_rate"] == rate)
            & (frame["step"] == step)
        )
        frame.loc[is_best, "accuracy"] = 2.0
    for (group, _), found in choices(select(frame, OF, CHOOSE)).items():
        assert found == (best[group],)


def test_where_labels_are_no_classes_the_lowest_loss_is_chosen():
    frame = results().assign(accuracy=np.nan)
    chosen = choices(select(frame, OF, CHOOSE))
    validating = frame[is_validating(frame)]
    means = validating.groupby(["users", *OF, *CHOOSE])["loss"].mean()
    for key, found in chosen.items():
        assert found == (means[key].idxmin(),)


def test_users_without_evaluation_rows_neither_choose_nor_report():
    frame = results(num_users=6)
    without = frame["user"].isin([0, 1, 100])
    frame.loc[without, ["accuracy", "loss"]] = np.nan
    chosen = select(frame, OF, CHOOSE)
    pd.testing.assert_frame_equal(chosen, select(frame[~without], OF, CHOOSE))
    assert chosen["loss"].notna().all()


def test_a_group_of_one_user_is_refused():
    frame = results()
    alone = frame[(frame["users"] == "seen") | (frame["user"] == 100)]
    with pytest.raises(errors.DataError, match=r"1 user to choose.*at least two"):
        select(alone, OF, CHOOSE)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 6),
    st.integers(2, 12),
    st.floats(0.5, 0.99),
    st.sampled_from(["accuracy", "loss"]),
)
def test_intervals_over_seeds_and_over_users_are_scipys(
    num_seeds, num_users, confidence, column
):
    rng = np.random.default_rng([num_seeds, num_users])
    values = rng.normal(size=[num_seeds, num_users])
    seed, user = np.indices(values.shape).reshape(2, -1)
    rows = pd.DataFrame({"seed": seed, "user": user, column: values.ravel()})
    found = mean_with_intervals(rows, column=column, confidence=confidence)
    assert np.isclose(found["mean"], values.mean())
    assert found[["num_seeds", "num_users"]].to_list() == [num_seeds, num_users]
    for name, means in (("over_seeds", values.mean(1)), ("over_users", values.mean(0))):
        if name == "over_users" and num_users < 6:
            assert np.isnan(found[name])
            continue
        low, high = scipy.stats.t.interval(
            confidence, len(means) - 1, means.mean(), scipy.stats.sem(means)
        )
        assert np.isclose(found["mean"] - found[name], low)
        assert np.isclose(found["mean"] + found[name], high)


def test_one_seed_or_five_users_have_no_interval_two_seeds_and_six_users_have():
    values = np.arange(10) / 10
    of_users = pd.DataFrame({"seed": 0, "user": range(10), "accuracy": values})
    of_seeds = of_users.assign(seed=of_users["user"], user=0)
    assert np.isnan(mean_with_intervals(of_users)["over_seeds"])
    assert np.isnan(mean_with_intervals(of_users[:5])["over_users"])
    assert mean_with_intervals(of_users[:6])["over_users"] > 0
    # Student's quantile for one degree of freedom, times the standard error.
    found = mean_with_intervals(of_seeds[:2])
    assert np.isclose(found["over_seeds"], 12.7062 * 0.05, rtol=1e-4)


def test_users_without_accuracy_do_not_count_in_the_mean():
    rows = pd.DataFrame({"seed": 0, "user": [1, 2, 3], "accuracy": [0.2, 0.4, np.nan]})
    found = mean_with_intervals(rows)
    assert np.isclose(found["mean"], 0.3)
    assert found["num_users"] == 2
