"""A model of the layers that phones' models have, to be replayed in every runtime."""

import tensorflow as tf

from tff_perfedavg.models.keras_model import from_keras

layers = tf.keras.layers


def phone_layers():
    """A classifier of ten classes of `[8, 8]`, by branches of layers of each kind."""
    # Keras draws the weights, the same every time.
    tf.keras.utils.set_random_seed(3)
    inputs = tf.keras.Input((8, 8))
    branches = [_image(inputs), _sequence(inputs), _recurrent(inputs), _volume(inputs)]
    x = layers.Concatenate()([layers.Flatten()(branch) for branch in branches])
    for activation in ("softsign", "gelu", "selu", "softplus"):
        x = layers.Dense(8, activation)(x)
    return from_keras(tf.keras.Model(inputs, layers.Dense(10)(x), name="phone_layers"))


def _image(x):
    x = layers.Conv2D(4, 3, padding="same")(layers.Reshape((8, 8, 1))(x))
    x = layers.Conv2D(4, 3, groups=2, padding="same")(x)
    x = layers.GroupNormalization(2)(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu6")(x)
    x = layers.Conv2D(4, 3, dilation_rate=2, padding="same")(x)
    x = layers.LayerNormalization(axis=[1, 2, 3])(x)
    x = layers.MaxPool2D(3, 2, padding="same")(x)
    return layers.AveragePooling2D(2, 1, padding="same")(x)


def _sequence(x):
    rolled = layers.LSTM(4, return_sequences=True)
    rolled.trainable = False
    x = rolled(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    x = layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d")(x)
    return layers.Dot(2)([x, x])


def _recurrent(x):
    x = layers.Masking()(layers.Reshape((4, 16))(x))
    one_way = layers.SimpleRNN(3, unroll=True, return_sequences=True)
    return layers.GRU(3, unroll=True)(layers.Bidirectional(one_way)(x))


def _volume(x):
    x = layers.Reshape((4, 4, 4, 1))(x)
    return layers.Conv3D(2, 2, strides=2, padding="same")(x)
