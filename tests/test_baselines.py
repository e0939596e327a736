"""Baselines without a gradient: by hand, and blind to the labels they are judged by."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.evaluation import baseline_names
from tff_perfedavg.experiments.evaluation.baselines import (
    adaptation_histograms,
    evaluate_baselines,
)
from tff_perfedavg.models.dense import logistic_regression, mlp_regressor
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.config import AdaptationConfig

LOCAL = "local training"
MAJORITY, MASKED, SHARES = (
    "majority class",
    "FedAvg, absent classes masked",
    "FedAvg + label shares",
)


def rows(x, y):
    return Rows(np.array(x, np.float32), np.array(y, np.int32))


def adapting_on(labels, x, y, is_new=False):
    """A user of these adaptation labels, judged on other rows."""
    return User(rows(np.zeros([len(labels), len(x[0])]), labels), rows(x, y), is_new)


def evaluate(path, users, num_classes=3, label="FedAvg + update"):
    """Baselines of a model that answers with its features."""
    store = UserStore.write(path, users, Description("toy", num_classes))
    model = logistic_regression((num_classes,), num_classes)
    weights = [np.eye(num_classes, dtype=np.float32), np.zeros(num_classes, np.float32)]
    return evaluate_baselines(model, weights, store, label)


def by_user(frame, column="accuracy"):
    return frame.pivot(index="user", columns="algorithm", values=column)


def test_baselines_have_the_values_worked_out_by_hand(tmp_path):
    users = [
        adapting_on([0, 0, 0, 1], [[0, 1, 5], [0, 2, 0]], [0, 1]),
        # On the mean over the two, who count alike, 3/8, 4/8 and 1/8.
        adapting_on([1, 1, 1, 2] * 2, [[9, 0, 0]], [1]),
        # New; its label was never seen by it.
        adapting_on([2, 2], [[9, 0, 0]], [0], is_new=True),
    ]
    frame = evaluate(tmp_path / "store", users)
    assert [*frame["algorithm"].unique()] == [MAJORITY, MASKED, SHARES]
    assert [*frame["users"]] == ["seen", "seen", "new"] * 3
    assert {*frame["step"]} == {0}
    assert [*frame["num_adaptation_examples"][:3]] == [4, 8, 2]
    assert [*frame["num_evaluation_examples"][:3]] == [2, 1, 1]
    accuracy, loss = by_user(frame), by_user(frame, "loss")
    # Class 0; class 1; class 2.
    assert [*accuracy[MAJORITY]] == [0.5, 1, 0]
    # The first user's rows are taken for class 1; the second's, 0 against 0, for 1.
    assert [*accuracy[MASKED]] == [0.5, 1, 0]
    # The first user holds class 0 twice as often as all and class 1 half as often, the
    # second class 1 by a half more and class 2 twice as often.
    assert [*accuracy[SHARES]] == [1, 0, 0]
    e = np.exp(1)
    expected = -np.mean(np.log([2 / (2 + e / 2), (e**2 / 2) / (2 + e**2 / 2)]))
    assert np.isclose(loss[SHARES][0], expected)
    assert np.isclose(loss[SHARES][1], -np.log(1.5 / (1.5 + 2)))
    assert np.isclose(loss[MAJORITY][0], -np.mean(np.log([3 / 4, 1 / 4])))
    assert [*loss.loc[2]] == [np.inf] * 3


def test_a_user_without_adaptation_rows_keeps_the_models_answer(tmp_path):
    users = [
        adapting_on([0, 0, 1], [[0, 0, 9]], [2]),
        adapting_on([], [[0, 0, 9], [0, 9, 0]], [2, 0], is_new=True),
    ]
    frame = evaluate(tmp_path / "store", users)
    # By the others' labels class 0 is the likeliest.
    expected = {MAJORITY: 0.5, MASKED: 0.5, SHARES: 0.5}
    assert by_user(frame).loc[1].to_dict() == expected
    loss = by_user(frame, "loss").loc[1]
    assert np.isclose(loss[MASKED], loss[SHARES])
    assert np.isfinite(loss[MASKED])


def test_a_user_without_evaluation_rows_is_not_judged(tmp_path):
    user = adapting_on([0, 1], [[0, 0]], [0])
    empty = User(user.adaptation, rows(np.zeros([0, 2]), []))
    frame = evaluate(tmp_path / "store", [user, empty], num_classes=2)
    assert frame[frame["user"] == 0]["accuracy"].notna().all()
    assert frame[frame["user"] == 1][["loss", "accuracy"]].isna().all(axis=None)


def test_evaluation_labels_have_no_part_in_any_answer(tmp_path):
    rng = np.random.default_rng(0)
    users, turned = [], []
    for number in range(30):
        labels = rng.integers(2, size=rng.integers(1, 6))
        y = rng.integers(2, size=7)
        x, is_new = rng.normal(size=[7, 2]), number > 20
        users.append(adapting_on(labels, x, y, is_new))
        turned.append(adapting_on(labels, x, 1 - y, is_new))
    frame, other = (
        evaluate(tmp_path / name, them, num_classes=2)
        for name, them in (("users", users), ("turned", turned))
    )
    # Whoever is right of a label is wrong of the other one.
    assert np.allclose(frame["accuracy"], 1 - other["accuracy"])
    assert frame.groupby("algorithm")["accuracy"].mean().nunique() == 3


def test_new_users_labels_have_no_part_in_what_all_hold(tmp_path):
    def seen_and_new(labels):
        return [
            adapting_on([0, 1], [[0, 0.1]], [1]),
            adapting_on(labels, [[0, 0.1]], [1], is_new=True),
        ]

    frames = (
        evaluate(tmp_path / name, seen_and_new(labels), num_classes=2)
        for name, labels in (("one", [0, 0, 0]), ("other", [1]))
    )
    first, second = (by_user(frame, "loss").loc[0] for frame in frames)
    assert (first == second).all()


def test_a_model_that_is_no_number_is_right_in_nothing(tmp_path):
    store = UserStore.write(
        tmp_path / "store",
        [adapting_on([0, 0], [[1, 0]], [0])],
        Description("toy", 2),
    )
    model = logistic_regression((2,), 2)
    weights = [np.full([2, 2], np.nan, np.float32), np.zeros(2, np.float32)]
    frame = evaluate_baselines(model, weights, store, "A")
    assert [*frame["algorithm"]] == [
        MAJORITY,
        "A, absent classes masked",
        "A + label shares",
    ]
    assert [*frame["accuracy"]] == [1, 0, 0]
    assert [*frame["loss"]] == [0, np.inf, np.inf]


def test_a_user_knows_the_labels_of_the_rows_it_may_use(tmp_path):
    store = UserStore.write(
        tmp_path / "store",
        [
            adapting_on([0, 1, 2] * 4, [[0, 0, 0]], [0]),
            adapting_on([2, 1], [[0, 0, 0]], [0]),
            adapting_on([], [[0, 0, 0]], [0], is_new=True),
        ],
        Description("toy", 3),
    )
    everything = adaptation_histograms(store, AdaptationConfig(1.0), seed=0)
    assert everything.tolist() == [[4, 4, 4], [0, 1, 1], [0, 0, 0]]
    two = AdaptationConfig(1.0, num_rows=2)
    drawn = [adaptation_histograms(store, two, seed=seed) for seed in range(6)]
    for histograms in drawn:
        assert histograms.sum(1).tolist() == [2, 2, 0]
        assert (histograms <= everything).all()
    assert len({tuple(histograms[0]) for histograms in drawn}) > 1
    model = logistic_regression((3,), 3)
    weights = [np.zeros([3, 3], np.float32), np.zeros(3, np.float32)]
    known = np.array([[0, 0, 2], [0, 1, 1], [0, 0, 0]])
    frame = evaluate_baselines(model, weights, store, "A", known)
    of_first = frame[(frame["user"] == 0) & (frame["algorithm"] == MAJORITY)]
    assert of_first["loss"].item() == np.inf
    assert of_first["num_adaptation_examples"].item() == 2


def test_rows_known_are_those_that_an_adaptation_draws(tmp_path):
    rng = np.random.default_rng(1)
    labels = [rng.integers(3, size=9) for _ in range(4)]
    store = UserStore.write(
        tmp_path / "store",
        [adapting_on(y, [[0, 0, 0]], [0]) for y in labels],
        Description("toy", 3),
    )
    known = adaptation_histograms(store, AdaptationConfig(1.0, num_rows=4), seed=5)
    for user, y in enumerate(labels):
        # The draw of docs/design.md: a shuffle keyed by seed, -2 and user.
        key = batches.user_key([5, 0], tf.constant(-2), user)
        chosen = batches.draw_rows(tf.constant(9), key, 1, tf.range(4))[0].numpy()
        assert known[user].tolist() == np.bincount(y[chosen], minlength=3).tolist()


def frame_of(values, baseline, **columns):
    values = {"users": "seen", "user": range(len(values)), "loss": values}
    values |= {"step": 0, "accuracy": 0.5, "algorithm": "?", "baseline": baseline}
    return pd.DataFrame({**values, **columns})


def test_what_runs_have_in_common_is_told_once_and_the_rest_by_the_runs_name():
    def of_run(alone, shares):
        parts = [frame_of(alone, LOCAL), frame_of([1, 2], MAJORITY)]
        return pd.concat([*parts, frame_of(shares, baseline_names.SHARES)])

    same, other = of_run([3, np.inf], [1, 1]), of_run([3, 4], [1, 1])
    found = baseline_names.combine(
        [same, same.sample(frac=1, random_state=0), other], ["A + update", "B", "C"]
    )
    # Label shares are a run's own, even where they come out alike.
    assert [*found["algorithm"].unique()] == [
        MAJORITY,
        "A + label shares",
        "B + label shares",
        "C + label shares",
        f"{LOCAL} for A and B",
        f"{LOCAL} for C",
    ]
    assert len(found) == 2 * 6
    many = baseline_names.combine([same] * 3 + [other], ["A", "B", "C", "D"])
    assert f"{LOCAL} for A and 2 others" in {*many["algorithm"]}
    alike = baseline_names.combine([same] * 3, ["A", "B", "C"])
    assert [*alike["algorithm"].unique()][-1] == LOCAL


def test_labels_that_are_no_classes_are_refused(tmp_path):
    user = User(rows([[0.0]], [0]), rows([[1.0]], [1]))
    store = UserStore.write(tmp_path / "store", [user], Description("toy", None))
    model = mlp_regressor((1,), 1)
    with pytest.raises(errors.DataError, match=r"are no classes.*--nobaselines"):
        evaluate_baselines(model, model.init(0), store, "A")
