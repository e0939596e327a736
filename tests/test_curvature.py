"""Largest Hessian eigenvalues against dense ones, and what is made of them."""

import numpy as np
import pytest

from tests import reference
from tff_perfedavg import errors
from tff_perfedavg.algorithms.curvature import curvature_guard, largest_eigenvalue
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.evaluation.diagnosis import (
    guard_in_words,
    measure_curvature,
)
from tff_perfedavg.models.dense import logistic_regression, mlp, mlp_regressor
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.learned_rates import (
    PER_TENSOR,
    PER_WEIGHT,
    LearnedRates,
)
from tff_perfedavg.optimization.moves import HEAD

SIZE = 60
FAR_NEGATIVE = np.concatenate([np.linspace(-10, -9, SIZE - 1), [0.5]])
NEAR_TOP = np.concatenate([np.linspace(-1, 4, SIZE - 2), [9.9, 10]])


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=[len(eigenvalues)] * 2))[0]
    return vectors * eigenvalues @ vectors.T


def found_in(matrix, **options):
    start = np.random.default_rng(1).normal(size=len(matrix))
    return largest_eigenvalue(lambda vector: matrix @ vector, start, **options)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        # Where power iteration finds -10, and where 30 of its products leave 1 %.
        FAR_NEGATIVE,
        NEAR_TOP,
        np.linspace(-8, 8, SIZE),
        np.geomspace(1e-3, 1e3, SIZE),
        -np.geomspace(1e-3, 1e3, SIZE),
        np.concatenate([np.zeros(SIZE - 3), [-2, 1, 3]]),
    ],
)
def test_the_estimate_is_just_below_the_largest_eigenvalue_by_sign(eigenvalues):
    found = found_in(symmetric(eigenvalues))
    largest, spread = eigenvalues.max(), np.ptp(eigenvalues)
    assert found.value <= largest + 1e-12 * spread
    assert found.value >= largest - 0.01 * spread
    assert np.abs(eigenvalues - found.value).min() <= found.residual
    assert found.num_products <= 20


def test_power_iteration_would_need_a_shift_and_many_products():
    # That the two hardest matrices above tell the methods apart.
    for eigenvalues, largest in ((FAR_NEGATIVE, 0.5), (NEAR_TOP, 10)):
        matrix = symmetric(eigenvalues)
        vector = np.random.default_rng(1).normal(size=SIZE)
        for _ in range(20):
            vector = matrix @ vector / np.linalg.norm(matrix @ vector)
        error = largest - vector @ matrix @ vector
        assert error > 100 * (largest - found_in(matrix).value)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_matrices_smaller_than_the_number_of_products_are_solved(size):
    eigenvalues = -1.0 - np.arange(size)
    found = found_in(symmetric(eigenvalues))
    assert np.isclose(found.value, -1, rtol=1e-12)
    assert found.num_products == size


def test_a_zero_matrix_has_no_curvature_and_takes_one_product():
    assert found_in(np.zeros([SIZE, SIZE])) == (0, 0, 1)


def test_a_multiple_of_the_identity_takes_one_product():
    found = found_in(-3 * np.eye(SIZE))
    assert np.isclose(found.value, -3)
    assert found.num_products == 1


def test_more_products_never_lower_the_estimate():
    matrix = symmetric(np.linspace(-8, 8, SIZE))
    values = [found_in(matrix, num_products=k).value for k in range(1, 21)]
    assert (np.diff(values) >= -1e-12).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_give_no_eigenvalue(bad):
    matrix = np.eye(SIZE)
    matrix[3, 3] = bad
    assert np.isnan(found_in(matrix).value)


def dense_hessian(by_hand, weights, x, y):
    """The float64 reference's Hessian."""
    columns = []
    for number, tensor in enumerate(weights):
        for place in np.ndindex(tensor.shape):
            unit = [np.zeros_like(w) for w in weights]
            unit[number][place] = 1
            product = by_hand.hessian_vector(weights, unit, x, y)
            columns.append(np.concatenate([part.ravel() for part in product]))
    return np.array(columns)


def dense_eigenvalues(by_hand, weights, x, y, start=0):
    """All eigenvalues of the float64 reference's Hessian, or of its end."""
    return np.linalg.eigvalsh(dense_hessian(by_hand, weights, x, y)[start:, start:])


def stored(path, users, num_classes):
    """A store of users with these adaptation rows and one evaluation row each."""
    one = Rows(*(part[:1] for part in users[0]))
    return UserStore.write(
        path, (User(Rows(*rows), one) for rows in users), Description("m", num_classes)
    )


def random_users(num_rows, num_inputs=4, num_classes=3):
    rng = np.random.default_rng(1)
    return [
        (
            rng.normal(size=[count, num_inputs]).astype(np.float32),
            rng.integers(num_classes, size=[count]).astype(np.int32),
        )
        for count in num_rows
    ]


@pytest.mark.parametrize("network", ["softmax", "two_layer"])
def test_users_curvature_is_that_of_the_float64_reference(network, tmp_path):
    rng = np.random.default_rng(2)
    if network == "softmax":
        model, by_hand = logistic_regression((4,), 3), reference.SoftmaxClassifier()
        weights = by_hand.init(rng, 4, 3)
    else:
        model, by_hand = mlp((4,), 3, hidden=(5,)), reference.TwoLayerNetwork()
        # Far out, where some users' curvature is more negative than positive.
        weights = [3 * w for w in by_hand.init(rng, 4, 5, 3)]
    weights = [w.astype(np.float32) for w in weights]
    users = random_users([7, 3, 1, 2, 1, 20])
    population = stored(tmp_path / "store", users, 3)
    found = measure_curvature(model, weights, population, range(6), seed=0)
    assert [*found["user"]] == [*range(6)]
    assert [*found["num_rows"]] == [7, 3, 1, 2, 1, 20]
    weights = [w.astype(np.float64) for w in weights]
    dense = [dense_eigenvalues(by_hand, weights, x.astype(float), y) for x, y in users]
    np.testing.assert_allclose(
        found["curvature"], [d[-1] for d in dense], rtol=2e-5, atol=1e-6
    )
    # The test reaches users whose strongest curvature is negative by half.
    assert any(-d[0] > 1.5 * d[-1] for d in dense) == (network == "two_layer")


def test_where_the_head_alone_moves_the_curvature_is_that_of_the_head(tmp_path):
    by_hand = reference.TwoLayerNetwork()
    weights = by_hand.init(np.random.default_rng(2), 4, 5, 3)
    users = random_users([7, 3])
    found = measure_curvature(
        mlp((4,), 3, hidden=(5,)),
        [w.astype(np.float32) for w in weights],
        stored(tmp_path / "store", users, 3),
        range(2),
        seed=0,
        adaptation=AdaptationConfig(0.1, moves=HEAD),
    )
    # The body has 4 * 5 + 5 weights.
    dense = [dense_eigenvalues(by_hand, weights, x, y, 25) for x, y in users]
    np.testing.assert_allclose(found["curvature"], [d[-1] for d in dense], rtol=1e-4)


@pytest.mark.parametrize("grain", [PER_TENSOR, PER_WEIGHT])
def test_learned_rates_scale_the_curvature_and_a_pull_shifts_it(grain, tmp_path):
    by_hand, rng = reference.SoftmaxClassifier(), np.random.default_rng(3)
    weights = by_hand.init(rng, 4, 3)
    learned = LearnedRates(grain, scale=2.0)
    held = [rng.normal(size=p.shape) * 2 for p in learned.initial(weights)]
    parameters = [p.astype(np.float32) for p in (*weights, *held)]
    users = random_users([7, 3])

    def measured(num_steps):
        return measure_curvature(
            logistic_regression((4,), 3),
            parameters,
            stored(tmp_path / f"store{num_steps}", users, 3),
            range(2),
            seed=0,
            adaptation=AdaptationConfig(0.1, num_steps, pull=0.7, learned=learned),
        )["curvature"]

    # The held logarithms are times 2; a tensor's stands for all of its entries.
    if grain == PER_TENSOR:
        held = [np.full(w.shape, h) for w, h in zip(weights, held[0], strict=True)]
    factors = np.exp(np.concatenate([h.ravel() for h in held]) / 2)
    for (x, y), found, alone in zip(users, measured(2), measured(1), strict=True):
        hessian = dense_hessian(by_hand, weights, x, y)
        for value, pull in ((found, 0.7), (alone, 0.0)):
            # diag(factors) (H + pull I), as the step's derivative has it.
            scaled = factors[:, None] * (hessian + pull * np.eye(len(hessian)))
            expected = np.linalg.eigvals(scaled).real.max()
            assert np.isclose(value, expected, rtol=1e-4)


def test_the_curvature_of_least_squares_is_that_of_its_features(tmp_path):
    model = mlp_regressor((4,), 2, hidden=())
    users = [(x, np.ones([len(x), 2], np.float32)) for x, _ in random_users([9, 2, 30])]
    population = stored(tmp_path / "store", users, None)
    found = measure_curvature(model, model.init(0), population, range(3), seed=0)
    for (x, _), curvature in zip(users, found["curvature"], strict=True):
        # The mean over rows and outputs of squares: 2 / (2 n) for each output.
        features = np.c_[x.astype(np.float64), np.ones(len(x))]
        hessian = features.T @ features / len(x)
        assert np.isclose(curvature, np.linalg.eigvalsh(hessian)[-1], rtol=1e-5)


def test_a_users_curvature_does_not_depend_on_the_others(tmp_path):
    model = mlp((4,), 3, hidden=(5,))
    users = random_users([7, 0, 3, 5])
    population = stored(tmp_path / "store", users, 3)
    together, alone = (
        measure_curvature(model, model.init(0), population, chosen, seed=4)
        for chosen in ([0, 1, 2, 3], [3])
    )
    # The one without adaptation rows is left out.
    assert [*together["user"]] == [0, 2, 3]
    assert alone.iloc[0].equals(together.iloc[2])
    with pytest.raises(errors.DataError, match="not one of the 1 users chosen has"):
        measure_curvature(model, model.init(0), population, [1], seed=4)


def guard(eigenvalues, alpha):
    found = curvature_guard(eigenvalues, alpha)
    return found, guard_in_words(found, alpha, eigenvalues).split("\n  ")


def test_the_shares_above_and_the_rate_that_would_keep_all_below():
    found, said = guard([1.0, 2.0, 11.0, 30.0], alpha=0.1)
    assert (found.curvature_median, found.curvature_max) == (6.5, 30)
    assert (found.share_above_one, found.share_above_two) == (0.5, 0.25)
    assert found.proposed_alpha == found.alpha_for_most == 0.03
    assert said == [
        "with alpha 0.1, curvature is above",
        "1 / alpha, where first-order points the wrong way, for 50 % of users (2 of "
        "4);",
        "2 / alpha, where the inner step raises the loss, for 25 % of users (1 of 4).",
        "At these weights 0.03 would keep all below 1 / alpha.",
    ]


def test_on_the_bound_is_not_above_it():
    found, _ = guard([10.0, 20.0], alpha=0.1)
    assert (found.share_above_one, found.share_above_two) == (0.5, 0)


def test_a_tenth_of_users_may_be_sharper_than_most():
    found, said = guard([4.0] * 18 + [90.0, 900.0], alpha=1.0)
    assert (found.proposed_alpha, found.alpha_for_most) == (0.001, 0.01)
    assert said[-1] == (
        "At these weights 0.001 would keep all below 1 / alpha, 0.01 nine in ten."
    )


@pytest.mark.parametrize(
    ("largest", "proposed"),
    [
        (1.0, 0.5),
        (0.99, 1.0),
        (19.9, 0.05),
        (20.0, 0.03),
        (34.0, 0.02),
        (51.0, 0.01),
        (100.0, 0.005),
        (3e-7, 3e6),
        (1e-320, 5e300),
    ],
)
def test_a_proposed_rate_has_one_digit_and_is_below_the_bound(largest, proposed):
    assert curvature_guard([largest], alpha=1e9).proposed_alpha == proposed


def test_a_rate_that_keeps_all_below_is_not_talked_down():
    found, said = guard([0.3, 101.0], alpha=0.0095)
    assert found.share_above_one == 0
    assert found.proposed_alpha == 0.0095
    assert said[1:] == [
        "1 / alpha, where first-order points the wrong way, for none of 2 users;",
        "2 / alpha, where the inner step raises the loss, for none of 2 users.",
    ]
    found, said = guard([0.3, 101.0], alpha=0.001)
    assert said[-1] == "At these weights 0.005 would keep all below 1 / alpha."


def test_without_positive_curvature_no_rate_is_bounded():
    found, said = guard([-3.0, 0.0], alpha=10.0)
    assert found.share_above_one == 0
    assert np.isnan(found.proposed_alpha)
    assert said[-1] == "None is positive, so that no alpha is too large for it."


def test_curvature_that_is_not_finite_counts_as_above():
    found, said = guard([1.0, np.nan, 5.0, 2.0], alpha=0.1)
    assert (found.share_above_one, found.curvature_max) == (0.25, 5)
    assert said[1].endswith("25 % of users (1 of 4);")
    assert said[3] == "Not finite, and counted as above both: 1."
    found, said = guard([np.nan], alpha=0.1)
    assert found.share_above_one == found.share_above_two == 1
    assert np.isnan(found.proposed_alpha)
    assert said[3:] == ["Not finite, and counted as above both: 1."]


def test_a_guard_of_nobody_is_refused():
    with pytest.raises(errors.DataError, match="one user at least"):
        curvature_guard([], alpha=0.1)
