"""Users by the number of classes they hold: against NumPy, and as tables show them."""

import numpy as np
import pandas as pd
import pytest

from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.evaluation.classes_held import (
    COLUMN,
    by_classes_held,
    with_classes_held,
)
from tff_perfedavg.experiments.report import tables as report


def store_of(path, adaptation_labels, num_classes=9):
    users = [
        # Evaluation rows of all classes, which must not count.
        User(
            Rows(np.zeros([len(labels), 2]), np.array(labels, np.int32)),
            Rows(np.zeros([num_classes, 2]), np.arange(num_classes, dtype=np.int32)),
        )
        for labels in adaptation_labels
    ]
    return UserStore.write(path, users, Description("toy", num_classes))


def rows_of(held, seed=0):
    """Rows of a method and of a baseline, by users that hold so many classes."""
    rng = np.random.default_rng(seed)
    parts = []
    for algorithm, baseline, steps in (
        ("A", np.nan, (0, 1)),
        ("majority class", "majority class", (0,)),
    ):
        for step in steps:
            accuracy = rng.uniform(size=len(held))
            part = {"users": "seen", "user": np.arange(len(held)), "step": step}
            part |= {"accuracy": accuracy, "loss": 1 - accuracy, COLUMN: held}
            parts.append(
                pd.DataFrame(part).assign(algorithm=algorithm, baseline=baseline)
            )
    return pd.concat(parts, ignore_index=True)


def test_classes_are_those_of_adaptation_rows(tmp_path):
    store = store_of(tmp_path / "store", [[3, 3, 3], [0, 1, 8, 1], [], [2, 5]])
    rows = pd.DataFrame({"user": [3, 0, 1, 2, 1]})
    assert [*with_classes_held(rows, store)[COLUMN]] == [2, 1, 3, 0, 3]


def test_where_labels_are_no_classes_nothing_is_added(tmp_path):
    rows = Rows(np.zeros([2, 1]), np.zeros([2, 1], np.float32))
    store = UserStore.write(
        tmp_path / "store", [User(rows, rows)], Description("toy", None)
    )
    per_user = pd.DataFrame({"user": [0], "accuracy": [np.nan]})
    assert COLUMN not in with_classes_held(per_user, store)
    assert by_classes_held(per_user) is None


def test_means_are_numpys_and_alike_users_have_no_table():
    held = np.array([1, 1, 5, 5, 5, 2])
    per_user = rows_of(held)
    found = by_classes_held(per_user)
    for (group, kind, algorithm, step, classes), row in found.iterrows():
        assert group == "seen"
        assert kind == ("method" if algorithm == "A" else "baseline")
        chosen = per_user[
            (per_user["algorithm"] == algorithm) & (per_user["step"] == step)
        ]
        accuracy = chosen["accuracy"].to_numpy()[held == classes]
        assert np.isclose(row["accuracy"], accuracy.mean())
        assert row["num_users"] == len(accuracy)
    assert len(found) == 3 * 3
    assert by_classes_held(rows_of(np.full(4, 3))) is None
    assert report.classes_table(rows_of(np.full(4, 3)), {0, 1}) is None


@pytest.mark.parametrize("held", [np.arange(1, 30), np.r_[1, 1, 1, 1, 2:12]])
def test_many_numbers_are_put_together_and_nobody_is_lost(held):
    per_user = rows_of(held)
    found = by_classes_held(per_user, in_ranges=True)
    first = found.loc[("seen", "method", "A", 0)]
    assert 2 <= len(first) <= 6
    assert first["num_users"].sum() == len(held)
    accuracy = per_user["accuracy"][: len(held)].to_numpy()
    for name, row in first.iterrows():
        low, _, high = name.partition("-")
        inside = (held >= int(low)) & (held <= int(high or low))
        assert np.isclose(row["accuracy"], accuracy[inside].mean())
    # By size, not as words.
    columns = report.classes_table(per_user, {0}).columns
    firsts = [int(name.split("-")[0]) for name in columns]
    assert firsts == sorted(firsts)


def test_a_table_shows_accuracies_beside_their_users_and_baselines_without_steps():
    held = np.array([1, 5, 5])
    per_user = rows_of(held)
    table = report.classes_table(per_user, {0, 1}).xs("seen", level="users")
    assert table.loc[("", "users (number)", "")].to_dict() == {"1": "1", "5": "2"}
    accuracy = per_user["accuracy"].to_numpy()
    assert table.loc[("method", "A", 1), "1"] == f"{100 * accuracy[3]:.1f}"
    assert table.loc[("baseline", "majority class", "-"), "5"] == (
        f"{100 * accuracy[7:9].mean():.1f}"
    )
