import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.helpers import batch_of, relative_error
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.models.dense import logistic_regression, mlp
from tff_perfedavg.models.model import Batch
from tff_perfedavg.ondevice.supported import _all_operations
from tff_perfedavg.optimization.gradients import loss_and_gradient
from tff_perfedavg.optimization.inner_steps import meta_gradient

# Unlike rates, so that one in the other's place shows.
CONFIG = PerFedAvgConfig(
    inner_learning_rate=0.3, outer_learning_rate=0.07, hessian_batch="own"
)


def networks():
    rng = np.random.default_rng(0)
    two_layer = reference.TwoLayerNetwork()
    softmax = reference.SoftmaxClassifier()
    return {
        "softmax": (logistic_regression((4,), 3), softmax, softmax.init(rng, 4, 3)),
        "two_layer": (
            mlp((4,), 3, hidden=(5,)),
            two_layer,
            two_layer.init(rng, 4, 5, 3),
        ),
    }


def random_batches(sizes=(6, 7, 8)):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=[n, 4]), rng.integers(3, size=[n])) for n in sizes]


class Result(NamedTuple):
    gradient: list
    support_loss: tf.Tensor
    query_loss: tf.Tensor


def of_batches(loss, point, batches, config, **options):
    """The library's result; call it in a graph."""
    by_role = dict(zip(("support", "query", "hessian"), batches, strict=True))
    inner = config.build().adaptation
    found = meta_gradient(loss, point, by_role, inner, config.product, **options)
    return Result(found.of_weights, **found.losses)


def in_graph(loss, weights, batches, config, **options):
    """The library's result, computed in a graph as it is meant to be."""

    @tf.function
    def compute():
        point = [tf.constant(w) for w in weights]
        return of_batches(loss, point, batches, config, **options)

    return compute()


@pytest.mark.parametrize("network", ["softmax", "two_layer"])
@pytest.mark.parametrize("variant", ["exact", "first_order", "hessian_free"])
def test_meta_gradient_equals_the_float64_reference(network, variant):
    model, by_hand, weights = networks()[network]
    batches = random_batches()
    config = dataclasses.replace(CONFIG, variant=variant)
    result = in_graph(
        model.batch_loss, weights, [batch_of(*b) for b in batches], config
    )
    expected = reference.meta_gradient(by_hand, weights, batches, config)
    assert relative_error(result.gradient, expected) < 1e-9


@pytest.mark.parametrize("rows", [6, None])
@pytest.mark.parametrize("in_a_loop", [True, False])
@pytest.mark.parametrize(
    ("variant", "second_derivatives"),
    [("exact", 1), ("first_order", 0), ("hessian_free", 0)],
)
def test_only_second_derivatives_compute_the_softmax_anew(
    variant, second_derivatives, in_a_loop, rows
):
    model, by_hand, weights = networks()["two_layer"]
    batches = random_batches((6, 6, 6))
    config = dataclasses.replace(CONFIG, variant=variant)
    x_spec = tf.TensorSpec([rows, 4], tf.float64)
    y_spec = tf.TensorSpec([rows], tf.int64)

    @tf.function(input_signature=[x_spec, y_spec] * 3)
    def compute(*arrays):
        def once():
            given = [
                batch_of(x, y) for x, y in zip(arrays[::2], arrays[1::2], strict=True)
            ]
            point = [tf.constant(w) for w in weights]
            return of_batches(model.batch_loss, point, given, config).gradient

        if not in_a_loop:
            return once()
        zeros = [tf.zeros_like(w) for w in weights]
        return tf.while_loop(
            lambda number, *_: number < 1,
            lambda number, *_: (number + 1, *once()),
            (0, *zeros),
        )[1:]

    operations = _all_operations(compute.get_concrete_function())
    types = [operation.type for operation, _ in operations]
    assert types.count("Softmax") == second_derivatives
    expected = reference.meta_gradient(by_hand, weights, batches, config)
    arrays = [tf.constant(array) for batch in batches for array in batch]
    assert relative_error(compute(*arrays), expected) < 1e-9


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("variant", ["exact", "first_order", "hessian_free"])
def test_the_scale_multiplies_the_gradient_alone(variant, normalized):
    model, by_hand, weights = networks()["two_layer"]
    batches = random_batches()
    config = dataclasses.replace(
        CONFIG, variant=variant, hessian_free_normalized=normalized
    )
    result = in_graph(
        model.batch_loss, weights, [batch_of(*b) for b in batches], config, scale=0.3
    )
    expected = reference.meta_gradient(by_hand, weights, batches, config)
    assert relative_error(result.gradient, [0.3 * g for g in expected]) < 1e-9
    assert np.isclose(result.support_loss, by_hand.loss(weights, *batches[0]))


def test_losses_are_those_before_and_after_the_inner_step():
    model, by_hand, weights = networks()["two_layer"]
    batches = random_batches()
    result = in_graph(
        model.batch_loss, weights, [batch_of(*b) for b in batches], CONFIG
    )
    adapted = reference.axpy(
        -CONFIG.inner_learning_rate, by_hand.gradient(weights, *batches[0]), weights
    )
    assert np.isclose(result.support_loss, by_hand.loss(weights, *batches[0]))
    assert np.isclose(result.query_loss, by_hand.loss(adapted, *batches[1]))


def test_reference_gradient_and_hessian_agree_with_finite_differences():
    for _, by_hand, weights in networks().values():
        rng = np.random.default_rng(2)
        batch = random_batches()[0]
        vector = [rng.normal(size=w.shape) for w in weights]
        e = 1e-5
        ahead = reference.axpy(e, vector, weights)
        behind = reference.axpy(-e, vector, weights)
        slope = (by_hand.loss(ahead, *batch) - by_hand.loss(behind, *batch)) / (2 * e)
        inner = sum(
            (g * v).sum()
            for g, v in zip(by_hand.gradient(weights, *batch), vector, strict=True)
        )
        assert np.isclose(slope, inner, rtol=1e-7)
        change = reference.axpy(
            -1, by_hand.gradient(behind, *batch), by_hand.gradient(ahead, *batch)
        )
        product = by_hand.hessian_vector(weights, vector, *batch)
        assert relative_error([c / (2 * e) for c in change], product) < 1e-7


def quadratic(weights, batch):
    """f(w) = 1/2 (w - c)' A (w - c), with c and A in the place of x and y."""
    (w,) = weights
    from_centre = w - batch.x
    return 0.5 * tf.tensordot(from_centre, tf.linalg.matvec(batch.y, from_centre), 1)


def quadratic_batches():
    rng = np.random.default_rng(3)
    batches = []
    for _ in range(3):
        root = rng.normal(size=[4, 4])
        batches.append(Batch(tf.constant(rng.normal(size=[4])), root @ root.T, None))
    return batches


@pytest.mark.parametrize(
    ("variant", "keeps_hessian"),
    [("exact", 1), ("hessian_free", 1), ("first_order", 0)],
)
def test_meta_gradient_has_its_closed_form_on_quadratics(variant, keeps_hessian):
    support, query, hessian = quadratic_batches()
    w = np.array([1.0, -2.0, 0.5, 3.0])
    config = dataclasses.replace(CONFIG, variant=variant)
    result = in_graph(quadratic, [w], (support, query, hessian), config)
    alpha = config.inner_learning_rate
    adapted = w - alpha * support.y @ (w - support.x.numpy())
    v = query.y @ (adapted - query.x.numpy())
    expected = v - keeps_hessian * alpha * hessian.y @ v
    assert relative_error(result.gradient, [expected]) < 1e-10


def test_hessian_is_taken_before_the_inner_step():
    # f(w) = sum(k w^3) / 6, whose Hessian diag(k w) depends on the point.
    def cubic(weights, batch):
        return tf.reduce_sum(batch.x * weights[0] ** 3) / 6

    w, k = np.array([1.0, -2.0, 0.5]), np.array([0.7, 0.3, 1.1])
    batch = Batch(tf.constant(k), None, None)
    result = in_graph(cubic, [w], (batch, batch, batch), CONFIG)
    alpha = CONFIG.inner_learning_rate
    v = k * (w - alpha * k * w**2 / 2) ** 2 / 2
    assert relative_error(result.gradient, [v - alpha * k * w * v]) < 1e-12


def test_exact_equals_the_derivative_of_the_meta_objective():
    # With one batch in all three roles, the meta-gradient is d/dw f(w - a g(w)).
    model, by_hand, weights = networks()["two_layer"]
    batch = random_batches()[0]
    alpha = CONFIG.inner_learning_rate

    def objective(w):
        return by_hand.loss(
            reference.axpy(-alpha, by_hand.gradient(w, *batch), w), *batch
        )

    result = in_graph(model.batch_loss, weights, [batch_of(*batch)] * 3, CONFIG)
    rng = np.random.default_rng(4)
    for _ in range(5):
        direction = [rng.normal(size=w.shape) for w in weights]
        ahead = objective(reference.axpy(1e-5, direction, weights))
        behind = objective(reference.axpy(-1e-5, direction, weights))
        slope = sum(
            (g.numpy() * d).sum()
            for g, d in zip(result.gradient, direction, strict=True)
        )
        assert np.isclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("normalized", [True, False])
def test_hessian_free_error_falls_with_the_square_of_delta(normalized):
    model, by_hand, weights = networks()["two_layer"]
    batches = random_batches()
    exact = reference.meta_gradient(by_hand, weights, batches, CONFIG)
    deltas = np.array([1e-2, 5e-3, 2.5e-3, 1.25e-3])
    found = []
    for delta in deltas:
        config = dataclasses.replace(
            CONFIG,
            variant="hessian_free",
            hessian_free_delta=float(delta),
            hessian_free_normalized=normalized,
        )
        result = in_graph(
            model.batch_loss, weights, [batch_of(*b) for b in batches], config
        )
        found.append(relative_error(result.gradient, exact))
    order = np.polyfit(np.log(deltas), np.log(found), 1)[0]
    assert 1.9 < order < 2.1, found


def test_hessian_free_is_accurate_in_float32_at_the_default_delta():
    model, by_hand, weights = networks()["two_layer"]
    weights = [w.astype(np.float32) for w in weights]
    batches = [(x.astype(np.float32), y) for x, y in random_batches()]
    config = dataclasses.replace(CONFIG, variant="hessian_free")
    result = in_graph(
        model.batch_loss, weights, [batch_of(*b) for b in batches], config
    )
    exact = reference.meta_gradient(by_hand, weights, batches, CONFIG)
    assert relative_error(result.gradient, exact) < 1e-4


@tf.RegisterGradient("TestHalvedMatMul")
def _halved(op, of_product):
    x, w = op.inputs
    from_right = tf.matmul(of_product, w, transpose_b=True)
    return from_right, 0.5 * tf.matmul(x, of_product, transpose_a=True)


@tf.custom_gradient
def halved_in_reverse(x):
    return tf.identity(x), lambda of_result: 0.5 * of_result


@pytest.mark.parametrize("kind", ["operation", "function", "neither"])
def test_a_models_own_gradient_of_a_product_is_kept_where_rates_are_learned(kind):
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=[5, 4]), rng.normal(size=[4, 3])
    rows = Batch(tf.constant(x), tf.zeros([5]), tf.ones([5]))

    def loss(weights, batch):
        graph = tf.compat.v1.get_default_graph()
        replaced = {"MatMul": "TestHalvedMatMul"} if kind == "operation" else {}
        with graph.gradient_override_map(replaced):
            product = tf.matmul(batch.x, weights[0])
        if kind == "function":
            product = halved_in_reverse(product)
        return tf.reduce_sum(product**2) / 2

    @tf.function
    def compute():
        scales = [tf.constant(3.0, tf.float64)]
        return loss_and_gradient(loss, [tf.constant(kernel)], rows, 0.1, scales)[1]

    half = 1.0 if kind == "neither" else 0.5
    expected = half * 0.1 * 3 * x.T @ (x @ kernel)
    assert relative_error(compute(), [expected]) < 1e-12


def test_plain_differences_take_a_rate_that_a_graph_alone_knows():
    model, by_hand, weights = networks()["two_layer"]
    batches = random_batches()
    config = dataclasses.replace(
        CONFIG, variant="hessian_free", hessian_free_normalized=False
    )

    @tf.function(input_signature=[tf.TensorSpec([], tf.float64)])
    def compute(rate):
        algorithm = config.build(outer_learning_rate=rate)
        rows = zip(algorithm.roles, (batch_of(*b) for b in batches), strict=True)
        point = [tf.constant(w) for w in weights]
        return algorithm.step(model.batch_loss, point, dict(rows))[0]

    expected = reference.meta_gradient(by_hand, weights, batches, config)
    for rate in (0.3, 0.0):
        found = compute(tf.constant(rate, tf.float64))
        step = reference.axpy(-rate, expected, weights)
        assert relative_error(found, step) < 1e-9


def test_hessian_free_of_a_zero_gradient_is_zero():
    support, query, hessian = quadratic_batches()
    # Adapting from the centre of a shared quadratic stays there: v = 0.
    batches = [Batch(support.x, b.y, None) for b in (support, query, hessian)]
    config = dataclasses.replace(CONFIG, variant="hessian_free")
    result = in_graph(quadratic, [support.x.numpy()], batches, config)
    assert np.array_equal(result.gradient[0], np.zeros(4))


def test_padding_rows_have_no_influence():
    model, _, weights = networks()["two_layer"]
    batches = [batch_of(*b) for b in random_batches()]
    padded = [
        Batch(
            tf.concat([b.x, tf.fill([3, 4], tf.constant(1e3, b.x.dtype))], 0),
            tf.concat([b.y, tf.zeros([3], b.y.dtype)], 0),
            tf.concat([b.mask, tf.zeros([3], b.mask.dtype)], 0),
        )
        for b in batches
    ]
    plain = in_graph(model.batch_loss, weights, batches, CONFIG)
    result = in_graph(model.batch_loss, weights, padded, CONFIG)
    assert relative_error(result.gradient, plain.gradient) < 1e-12
