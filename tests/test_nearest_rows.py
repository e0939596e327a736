"""Nearest neighbour and nearest centroid, against their formulas in NumPy."""

import numpy as np
import pandas as pd
import pytest

from tests.helpers import toy_user
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import AdaptationConfig

MODEL = mlp((4,), 3, hidden=(6, 5))
# Plenty of rows, a class that is not held, no rows to adapt on, none to be judged on.
SIZES = [(30, 8), (4, 9), (0, 5), (6, 0)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(1)
    users = [
        User(*(Rows(*toy_user(rng, size)) for size in sizes), is_new=number == 1)
        for number, sizes in enumerate(SIZES)
    ]
    users[1].adaptation.y[:] = [0, 2, 2, 0]
    path = tmp_path_factory.mktemp("nearest") / "store"
    return UserStore.write(path, users, Description("toy", 3))


def features_of(weights, x):
    hidden = np.asarray(x, np.float64)
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden = hidden @ kernel + bias
        hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
    return hidden


def expected(own_x, own_y, x, y):
    """Accuracies of the nearest row and of the nearest mean of a class."""
    away = np.linalg.norm(x[:, None] - own_x[None], axis=-1)
    classes = np.unique(own_y)
    means = np.stack([own_x[own_y == c].mean(0) for c in classes])
    from_means = np.linalg.norm(x[:, None] - means[None], axis=-1)
    return [
        np.mean(own_y[away.argmin(1)] == y),
        np.mean(classes[from_means.argmin(1)] == y),
    ]


def test_accuracies_are_those_of_the_formulas(tff, store):
    from tff_perfedavg.experiments.evaluation.nearest_rows import evaluate_nearest

    weights = MODEL.init(2)
    frame = evaluate_nearest(MODEL, weights, store, AdaptationConfig(0.1), "FedAvg")
    assert frame["algorithm"].unique().tolist() == [
        "nearest neighbour",
        "nearest centroid",
        "FedAvg + nearest neighbour",
        "FedAvg + nearest centroid",
    ]
    assert frame["users"].value_counts().to_dict() == {"seen": 12, "new": 4}
    for user in (0, 1):
        (own_x, own_y), (x, y) = store.adaptation(user), store.evaluation(user)
        wanted = expected(own_x, own_y, x, y) + expected(
            features_of(weights, own_x), own_y, features_of(weights, x), y
        )
        found = frame[frame["user"] == user]["accuracy"]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert frame[frame["user"].isin([2, 3])]["accuracy"].isna().all()


def test_a_sample_of_users_has_what_it_has_among_all(tff, store):
    from tff_perfedavg.experiments.evaluation.evaluate_users import Draws
    from tff_perfedavg.experiments.evaluation.nearest_rows import evaluate_nearest

    given = MODEL, MODEL.init(2), store, AdaptationConfig(0.1, num_rows=2), "FedAvg"
    everybody, some = evaluate_nearest(*given), evaluate_nearest(*given, Draws(0, 2))
    users = some.groupby("users")["user"].nunique()
    assert users.to_dict() == {"seen": 2, "new": 1}
    same = everybody[everybody["user"].isin(some["user"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some.reset_index(drop=True), same)


def test_fewer_rows_of_a_class_are_fewer_to_be_near_to(tff, store):
    from tff_perfedavg.experiments.evaluation.nearest_rows import evaluate_nearest

    one = AdaptationConfig(0.1, num_rows=1, rows_per_class=True)
    frame = evaluate_nearest(MODEL, MODEL.init(0), store, one, "FedAvg")
    of_user = frame[frame["user"] == 0].set_index("baseline")
    assert of_user["num_adaptation_examples"].unique() == [3]
    # The mean of one row is the row.
    assert (
        of_user.loc["nearest neighbour", "accuracy"]
        == of_user.loc["nearest centroid", "accuracy"]
    )


def test_a_model_without_features_has_no_such_baselines(tff, store):
    from tff_perfedavg.experiments.evaluation.nearest_rows import evaluate_nearest

    plain = Model("plain", MODEL.init, MODEL.apply, MODEL.input_spec, MODEL.num_classes)
    frame = evaluate_nearest(plain, plain.init(0), store, AdaptationConfig(0.1), "Own")
    assert [*frame["baseline"].unique()] == ["nearest neighbour", "nearest centroid"]
