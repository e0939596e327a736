import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.helpers import batch_of, relative_error, toy_user
from tff_perfedavg import errors
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.models.convolutional import char_cnn, cnn, conv1d
from tff_perfedavg.models.dense import logistic_regression, mlp, mlp_regressor
from tff_perfedavg.models.four_blocks import conv4
from tff_perfedavg.models.keras_model import from_keras
from tff_perfedavg.optimization.inner_steps import meta_gradient

layers = tf.keras.layers


def test_mlp_is_the_papers():
    weights = mlp((28, 28), 10).init(0)
    assert [w.shape for w in weights] == [
        (784, 80),
        (80,),
        (80, 60),
        (60,),
        (60, 10),
        (10,),
    ]
    assert all(w.dtype == np.float32 for w in weights)
    # Glorot uniform fills its range and no more.
    limit = np.sqrt(6 / (784 + 80))
    assert 0.99 * limit < np.abs(weights[0]).max() <= limit
    assert not weights[1].any()


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (mlp((8, 8), 10), np.ones([3, 8, 8])),
        (logistic_regression((8, 8), 10), np.ones([3, 8, 8])),
        (cnn((8, 8), 10), np.ones([3, 8, 8])),
        (cnn((9, 13, 3), 10), np.ones([3, 9, 13, 3])),
        (conv4((28, 28), 10, filters=4), np.ones([3, 28, 28])),
        (conv4((9, 13, 3), 10, filters=4), np.ones([3, 9, 13, 3])),
        (conv1d((128, 9), 10), np.ones([3, 128, 9])),
        (char_cnn((40,), 10), np.ones([3, 40])),
        (mlp_regressor((1,), 10), np.ones([3, 1])),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_models_compute_logits_in_the_dtype_given(model, x, dtype):
    logits = model.apply([w.astype(dtype) for w in model.init(0)], x.astype(dtype))
    assert logits.shape == (3, 10)
    assert logits.dtype == dtype


def test_initial_weights_repeat_by_seed():
    for model in (mlp((4,), 3), logistic_regression((4,), 3), cnn((8, 8), 3)):
        first, again, other = model.init(1), model.init(1), model.init(2)
        assert relative_error(first, again) == 0
        assert relative_error(first, other) > 0.1


def test_mlp_and_logistic_regression_equal_the_reference():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[6, 4])
    two_layer = reference.TwoLayerNetwork()
    weights = two_layer.init(rng, 4, 5, 3)
    logits = mlp((4,), 3, hidden=(5,)).apply(weights, x)
    assert np.allclose(logits, two_layer.logits(weights, x))
    kernel, bias = reference.SoftmaxClassifier().init(rng, 4, 3)
    logits = logistic_regression((4,), 3).apply([kernel, bias], x)
    assert np.allclose(logits, x @ kernel + bias)


def test_cnn_equals_keras():
    model = cnn((8, 8, 2), 5, filters=(3, 4), hidden=6)
    twin = tf.keras.Sequential(
        [
            tf.keras.Input([8, 8, 2]),
            layers.Conv2D(3, 3, padding="same", activation="relu"),
            layers.MaxPool2D(),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.MaxPool2D(),
            layers.Flatten(),
            layers.Dense(6, activation="relu"),
            layers.Dense(5),
        ]
    )
    weights = model.init(0)
    twin.set_weights(weights)
    x = np.random.default_rng(0).normal(size=[4, 8, 8, 2]).astype(np.float32)
    assert np.allclose(model.apply(weights, x), twin(x), atol=1e-6)


def test_conv4_equals_keras():
    model = conv4((11, 8, 2), 5, filters=6)
    blocks = []
    for _ in range(4):
        blocks += [
            layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False),
            layers.GroupNormalization(1, epsilon=1e-5),
            layers.ReLU(),
        ]
    twin = tf.keras.Sequential(
        [tf.keras.Input([11, 8, 2]), *blocks, layers.Flatten(), layers.Dense(5)]
    )
    rng = np.random.default_rng(0)
    weights = [w + rng.normal(scale=0.3, size=w.shape) for w in model.init(0)]
    weights = [w.astype(np.float32) for w in weights]
    twin.set_weights(weights)
    x = rng.normal(size=[4, 11, 8, 2]).astype(np.float32)
    assert np.allclose(model.apply(weights, x), twin(x), atol=1e-5)
    # A row's answer is its own, whatever the others are.
    alone = model.apply(weights, x[:1])
    assert np.allclose(model.apply(weights, x)[:1], alone, atol=1e-6)


def test_conv4_prefers_no_class_before_adapting():
    model = conv4((28, 28), 5)
    x = np.random.default_rng(0).random([3, 28, 28], np.float32)
    assert not np.any(model.apply(model.init(3), x))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp((8, 8), 10), (8, 8)),
        (logistic_regression((4,), 3), (4,)),
        (cnn((8, 8), 10), (8, 8)),
        (conv4((28, 28), 5, filters=4), (28, 28)),
        (conv1d((128, 9), 6), (128, 9)),
        (char_cnn((40,), 10), (40,)),
    ],
)
def test_features_are_what_the_last_layer_sees(model, shape):
    weights = model.init(0)
    x = np.ones([3, *shape], np.float32)
    seen = np.asarray(model.features(weights, x))
    expected = seen @ weights[-2] + weights[-1]
    assert np.allclose(model.apply(weights, x), expected, atol=1e-6)


def test_conv1d_equals_keras():
    model = conv1d((30, 2), 5, filters=(3, 4), hidden=6)
    twin = tf.keras.Sequential(
        [
            tf.keras.Input([30, 2]),
            layers.Conv1D(3, 8, strides=4, padding="same", activation="relu"),
            layers.Conv1D(4, 8, strides=4, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(6, activation="relu"),
            layers.Dense(5),
        ]
    )
    weights = model.init(0)
    twin.set_weights(weights)
    x = np.random.default_rng(0).normal(size=[4, 30, 2]).astype(np.float32)
    assert np.allclose(model.apply(weights, x), twin(x), atol=1e-6)


def test_char_cnn_equals_keras():
    model = char_cnn((12,), 7)
    twin = tf.keras.Sequential(
        [
            tf.keras.Input([12]),
            layers.Embedding(7, 16),
            layers.Conv1D(32, 5, strides=2, padding="same", activation="relu"),
            layers.Conv1D(48, 5, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(7),
        ]
    )
    weights = model.init(0)
    twin.set_weights(weights)
    x = np.random.default_rng(0).integers(0, 7, [4, 12]).astype(np.float32)
    assert np.allclose(model.apply(weights, x), twin(x), atol=1e-6)


def test_squared_error_counts_only_rows_that_count():
    model = mlp_regressor((1,), 2)
    outputs = np.array([[1, 2], [3, 5], [9, 9]], np.float32)
    labels = np.array([[1, 0], [2, 2], [0, 0]], np.float32)
    loss = model.loss(outputs, labels, np.array([1, 1, 0], np.float32))
    assert np.isclose(loss, (4 / 2 + 10 / 2) / 2)


def test_evaluate_counts_only_rows_that_count():
    model = logistic_regression((2,), 2)
    weights = [np.eye(2, dtype=np.float32), np.zeros(2, np.float32)]
    x = np.array([[1, 0], [0, 1], [1, 0], [9, 0]], np.float32)
    y = np.array([0, 1, 1, 0], np.int32)
    batch = batch_of(x, y)._replace(mask=tf.constant([1.0, 1.0, 1.0, 0.0]))
    loss, accuracy = model.evaluate(weights, batch).numpy()
    right, wrong = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert np.isclose(accuracy, 2 / 3)
    assert np.isclose(loss, (2 * right + wrong) / 3)


def test_a_cnn_for_too_small_images_is_refused():
    with pytest.raises(errors.ModelError, match="3x8 cannot be halved 2 times"):
        cnn((3, 8), 10)
    with pytest.raises(errors.ModelError, match=r"input_shape is \(64,\)"):
        cnn((64,), 10)
    with pytest.raises(errors.ModelError, match="window of 5 readings is shorter"):
        conv1d((5, 3), 10)
    with pytest.raises(errors.ModelError, match=r"input_shape is \(5,\); give \(time"):
        conv1d((5,), 10)
    with pytest.raises(errors.ModelError, match=r"input_shape is \(5, 3\); give \(con"):
        char_cnn((5, 3), 10)
    with pytest.raises(errors.ModelError, match=r"conv4: input_shape is \(64,\)"):
        conv4((64,), 10)


KERAS_MODELS = {
    "dense": lambda: [
        tf.keras.Input([8, 4]),
        layers.Flatten(),
        layers.Dense(6, activation="tanh"),
        layers.LayerNormalization(),
        layers.Dense(3),
    ],
    "convolution": lambda: [
        tf.keras.Input([8, 4]),
        layers.Conv1D(5, 3, activation="relu"),
        layers.SeparableConv1D(4, 3),
        layers.GroupNormalization(2),
        layers.GlobalAveragePooling1D(),
        layers.Dense(3),
    ],
    "recurrent": lambda: [
        tf.keras.Input([8, 4]),
        layers.Bidirectional(layers.LSTM(5, return_sequences=True)),
        layers.GRU(4, unroll=True),
        layers.Dense(3),
    ],
}


@pytest.mark.parametrize("name", KERAS_MODELS)
def test_from_keras_computes_what_keras_computes(name):
    keras_model = tf.keras.Sequential(KERAS_MODELS[name]())
    model = from_keras(keras_model)
    weights = model.init(0)
    moved = [w + 0.1 for w in weights]
    x = np.random.default_rng(0).normal(size=[5, 8, 4]).astype(np.float32)
    before = keras_model(x)

    @tf.function
    def apply(*weights):
        with tf.init_scope():
            variables_before = len(keras_model.weights)
        logits = model.apply(weights, x)
        assert len(keras_model.weights) == variables_before
        return logits

    graph = apply.get_concrete_function(*[tf.TensorSpec(w.shape) for w in weights])
    assert not graph.graph.variables
    assert not graph.captured_inputs
    assert np.allclose(apply(*weights), before, atol=1e-6)
    ours = apply(*moved)
    assert np.allclose(keras_model(x), before, atol=0)  # Left as it was.
    keras_model.set_weights(moved)
    assert np.allclose(ours, keras_model(x), atol=1e-5)
    assert model.num_classes == 3
    assert model.input_spec.shape.as_list() == [None, 8, 4]


def test_from_keras_has_the_meta_gradient_of_its_twin():
    keras_model = tf.keras.Sequential(
        [tf.keras.Input([4]), layers.Dense(5, "elu"), layers.Dense(3)]
    )
    ours, twin = from_keras(keras_model), mlp((4,), 3, hidden=(5,))
    rng = np.random.default_rng(0)
    batches = [batch_of(*toy_user(rng, 6)) for _ in range(3)]

    @tf.function
    def gradient(model):
        weights = [tf.constant(w) for w in ours.init(0)]
        config = PerFedAvgConfig(0.3, 0.1, hessian_batch="own")
        by_role = dict(zip(config.roles, batches, strict=True))
        inner = config.build().adaptation
        found = meta_gradient(model.batch_loss, weights, by_role, inner, config.product)
        return found.of_weights

    assert relative_error(gradient(ours), gradient(twin)) < 1e-5


def test_from_keras_keeps_frozen_layers_constant():
    keras_model = tf.keras.Sequential(
        [
            tf.keras.Input([4]),
            layers.Dense(5, trainable=False),
            layers.BatchNormalization(trainable=False),
            layers.Dense(3),
        ]
    )
    model = from_keras(keras_model)
    assert [w.shape for w in model.init(0)] == [(5, 3), (3,)]
    x = np.ones([2, 4], np.float32)
    assert np.allclose(model.apply(model.init(0), x), keras_model(x), atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.5, name="chance"),
        layers.GaussianNoise(0.5, name="chance"),
        layers.RandomFlip(name="chance"),
        layers.LSTM(4, dropout=0.1, name="chance"),
    ],
    ids=["Dropout", "GaussianNoise", "RandomFlip", "LSTM"],
)
def test_from_keras_warns_of_layers_whose_chance_is_inactive(layer):
    shape = [4, 2] if isinstance(layer, layers.LSTM) else [4, 4, 1]
    stack = [tf.keras.Input(shape), layer, layers.Flatten(), layers.Dense(3)]
    with pytest.warns(UserWarning, match="at random is inactive.*: .*chance"):
        from_keras(tf.keras.Sequential(stack))


def test_recurrent_dropout_is_refused_with_its_name():
    stack = [tf.keras.Input([4, 2]), layers.LSTM(4, recurrent_dropout=0.1)]
    with pytest.raises(errors.ModelError, match="recurrent_dropout=0"):
        from_keras(tf.keras.Sequential([*stack, layers.Dense(3)]))


def test_from_keras_does_not_warn_of_a_rate_of_zero():
    stack = [tf.keras.Input([4]), layers.Dropout(0.0), layers.Dense(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Keras's own, once a seed was set in this process.
        warnings.filterwarnings("ignore", "non-integer arguments", DeprecationWarning)
        from_keras(tf.keras.Sequential(stack))


class Probabilities(layers.Layer):
    """A softmax that no attribute tells of."""

    def call(self, x):
        return tf.nn.softmax(x)


def test_a_softmax_within_a_custom_layer_is_refused():
    stack = [tf.keras.Input([4]), layers.Dense(3), Probabilities(name="out")]
    with pytest.raises(errors.ModelError, match=r"out.* ends in a softmax"):
        from_keras(tf.keras.Sequential(stack))


@pytest.mark.parametrize("num_classes", [-1, 0, 1])
def test_a_classifier_of_less_than_two_classes_is_refused(num_classes):
    with pytest.raises(errors.ModelError, match=f"has {num_classes} classes; a class"):
        mlp((4,), num_classes)


class InList(layers.Layer):
    """Keeps its weight where it cannot be replaced."""

    def build(self, input_shape):
        self.kernels = [self.add_weight("kernel", [4, 3])]

    def call(self, x):
        return x @ self.kernels[0]


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (
            lambda: [layers.BatchNormalization(name="bn"), layers.Dense(3)],
            "'bn' is a batch normalization.*GroupNormalization.*trainable = False",
        ),
        (
            lambda: [
                layers.Reshape([4, 1]),
                layers.LSTM(3, stateful=True, name="memory"),
            ],
            "'memory' keeps state",
        ),
        (
            lambda: [layers.Dense(3, kernel_regularizer="l2", name="shy")],
            "'shy' adds a loss of its own",
        ),
        (lambda: [layers.Dense(3, "softmax", name="out")], "'out' ends in a softmax"),
        (lambda: [layers.Dense(3), layers.Softmax(name="out")], "'out' ends in a sof"),
        (
            lambda: [layers.Dense(3, tf.nn.softmax, name="out")],
            "'out' ends in a softmax",
        ),
        (
            lambda: [layers.Dense(3), layers.Lambda(tf.nn.softmax, name="out")],
            "'out' ends in a softmax",
        ),
        (lambda: [layers.Dense(1)], "single number.*End it with Dense\\(2\\)"),
        (
            lambda: [layers.Reshape([2, 2]), layers.Dense(3)],
            "shape \\[2, 2, 3\\]; it must be logits",
        ),
        (
            lambda: [layers.Dense(3, kernel_constraint="non_neg", name="tied")],
            "'tied' has a kernel_constraint, which local training would not keep",
        ),
        (lambda: [layers.Flatten()], "no trainable weight"),
        (lambda: [InList(name="listed")], "'listed' keeps its weight"),
    ],
)
def test_from_keras_refuses_naming_the_layer(stack, message):
    keras_model = tf.keras.Sequential([tf.keras.Input([4], batch_size=2), *stack()])
    with pytest.raises(errors.ModelError, match=message):
        from_keras(keras_model)


def test_from_keras_refuses_what_is_no_single_built_model():
    with pytest.raises(errors.ModelError, match="a Dense was given"):
        from_keras(layers.Dense(3))
    with pytest.raises(errors.ModelError, match="no input shape yet"):
        from_keras(tf.keras.Sequential([layers.Dense(3)]))
    a, b = tf.keras.Input([2]), tf.keras.Input([2])
    two = tf.keras.Model([a, b], layers.Dense(3)(layers.Concatenate()([a, b])))
    with pytest.raises(errors.ModelError, match="2 inputs and 1 outputs"):
        from_keras(two)


def test_conversion_to_and_from_tff(tff):
    from tff_perfedavg.federated.functional_model import from_tff, to_tff

    model = mlp((4,), 3, hidden=(5,))
    there = to_tff(model, seed=3)
    back = from_tff(there, num_classes=3)
    x, y = toy_user(np.random.default_rng(0), 6)
    weights = model.init(3)
    assert relative_error(back.init(0), weights) == 0
    assert back.input_spec == model.input_spec
    logits = model.apply(weights, x)
    assert np.allclose(there.predict_on_batch((tuple(weights), ()), x), logits)
    assert np.allclose(back.apply(weights, x), logits)
    assert np.isclose(there.loss(logits, y), model.loss(logits, y, np.ones(6, "f")))
    mask = np.array([1, 0, 1, 1, 0, 1], np.float32)
    assert np.isclose(back.loss(logits, y, mask), model.loss(logits, y, mask))


def test_a_tff_model_trains_as_its_origin_does(tff):
    from tff_perfedavg.federated.builders import build_per_fed_avg
    from tff_perfedavg.federated.client_data import client_dataset
    from tff_perfedavg.federated.functional_model import from_tff, to_tff

    model = mlp((4,), 3, hidden=(5,))
    config = PerFedAvgConfig(0.3, 0.1, num_local_steps=2)
    clients = [client_dataset(0, *toy_user(np.random.default_rng(0), 12))]
    found = []
    for one in (model, from_tff(to_tff(model, seed=0), num_classes=3)):
        process = build_per_fed_avg(one, config)
        state = process.next(process.initialize(), clients).state
        found.append(process.get_model_weights(state).trainable)
    assert relative_error(found[1], found[0]) < 1e-5


def test_our_model_trains_in_tffs_own_fed_avg(tff):
    from tff_perfedavg.federated.functional_model import to_tff

    model = mlp((4,), 3, hidden=(5,))
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        to_tff(model), tff.learning.optimizers.build_sgdm(0.1)
    )
    x, y = toy_user(np.random.default_rng(0), 6)
    dataset = tf.data.Dataset.from_tensors((x, y))
    state = process.next(process.initialize(), [dataset]).state
    by_hand = reference.TwoLayerNetwork()
    weights = [w.astype(np.float64) for w in model.init(0)]
    expected = reference.axpy(-0.1, by_hand.gradient(weights, x, y), weights)
    ours = process.get_model_weights(state).trainable
    assert relative_error(ours, expected) < 1e-5
