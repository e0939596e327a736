"""The mathematics again, in float64 NumPy, written from the paper's formulas.

Nothing here shares code with the library: gradients and Hessian-vector products
are worked out by hand (the latter by Pearlmutter's R operator).
"""

import numpy as np


class SoftmaxClassifier:
    """logits = x W + b with the mean cross-entropy of integer labels."""

    def init(self, rng, num_inputs, num_classes):
        return [
            rng.normal(size=[num_inputs, num_classes]),
            rng.normal(size=[num_classes]),
        ]

    def loss(self, weights, x, y):
        kernel, bias = weights
        return _cross_entropy(x @ kernel + bias, y)

    def gradient(self, weights, x, y):
        kernel, bias = weights
        error = _error(x @ kernel + bias, y)
        return [x.T @ error, error.sum(0)]

    def hessian_vector(self, weights, vector, x, y):
        kernel, bias = weights
        v_kernel, v_bias = vector
        error = _error_derivative(x @ kernel + bias, x @ v_kernel + v_bias)
        return [x.T @ error, error.sum(0)]


class TwoLayerNetwork:
    """logits = elu(x W1 + b1) W2 + b2 with the mean cross-entropy."""

    def init(self, rng, num_inputs, num_hidden, num_classes):
        return [
            rng.normal(size=[num_inputs, num_hidden]),
            rng.normal(size=[num_hidden]),
            rng.normal(size=[num_hidden, num_classes]),
            rng.normal(size=[num_classes]),
        ]

    def logits(self, weights, x):
        w1, b1, w2, b2 = weights
        return _elu(x @ w1 + b1) @ w2 + b2

    def loss(self, weights, x, y):
        return _cross_entropy(self.logits(weights, x), y)

    def gradient(self, weights, x, y):
        w1, b1, w2, b2 = weights
        z = x @ w1 + b1
        h = _elu(z)
        d2 = _error(h @ w2 + b2, y)
        d1 = d2 @ w2.T * _elu_first(z)
        return [x.T @ d1, d1.sum(0), h.T @ d2, d2.sum(0)]

    def hessian_vector(self, weights, vector, x, y):
        w1, b1, w2, b2 = weights
        v1, c1, v2, c2 = vector
        z = x @ w1 + b1
        h = _elu(z)
        logits = h @ w2 + b2
        d2 = _error(logits, y)
        # R{.}: the derivative along the vector of each quantity above.
        r_z = x @ v1 + c1
        r_h = _elu_first(z) * r_z
        r_d2 = _error_derivative(logits, r_h @ w2 + h @ v2 + c2)
        r_d1 = (r_d2 @ w2.T + d2 @ v2.T) * _elu_first(z)
        r_d1 += d2 @ w2.T * _elu_second(z) * r_z
        return [
            x.T @ r_d1,
            r_d1.sum(0),
            r_h.T @ d2 + h.T @ r_d2,
            r_d2.sum(0),
        ]


class Adam:
    """Algorithm 1 of arXiv 1412.6980, its epsilon as in section 2's last form."""

    def __init__(self, weights, learning_rate):
        self.weights = [np.asarray(w, np.float64) for w in weights]
        self.learning_rate = learning_rate
        self._m = [np.zeros_like(w) for w in self.weights]
        self._v = [np.zeros_like(w) for w in self.weights]
        self._t = 0

    def step(self, gradient):
        self._t += 1
        self._m = [0.9 * m + 0.1 * g for m, g in zip(self._m, gradient, strict=True)]
        self._v = [
            0.999 * v + 0.001 * g**2 for v, g in zip(self._v, gradient, strict=True)
        ]
        rate = self.learning_rate * np.sqrt(1 - 0.999**self._t) / (1 - 0.9**self._t)
        self.weights = [
            w - rate * m / (np.sqrt(v) + 1e-7)
            for w, m, v in zip(self.weights, self._m, self._v, strict=True)
        ]


def train_to_convergence(model, weights, x, y):
    """Full-batch Adam at 0.01, then at 0.001, each until 100 steps gain less than 5 %.

    No longer than 3000 steps, nor than the loss is above 1e-4 of the first one. Returns
    the best of the points that a step started from, and the number of steps.
    """
    adam = Adam(weights, 0.01)
    losses, points = [], []
    first = lowest_before = model.loss(adam.weights, x, y)
    for number in range(1, 3001):
        losses.append(model.loss(adam.weights, x, y))
        points.append(adam.weights)
        if min(losses) <= 1e-4 * first:
            break
        adam.step(model.gradient(adam.weights, x, y))
        if number % 100 == 0:
            if min(losses) >= 0.95 * lowest_before:
                if adam.learning_rate == 0.001:
                    break
                adam.learning_rate = 0.001
            lowest_before = min(losses)
    return points[int(np.argmin(losses))], number


def meta_gradient(model, weights, batches, config):
    """v - alpha H(w; D'') v with v = g(w - alpha g(w; D); D')."""
    support, query, *hessian = batches
    alpha = config.inner_learning_rate
    adapted = axpy(-alpha, model.gradient(weights, *support), weights)
    v = model.gradient(adapted, *query)
    if config.variant == "first_order":
        return v
    if config.variant == "exact":
        product = model.hessian_vector(weights, v, *hessian[0])
    else:
        delta = config.hessian_free_delta
        if config.hessian_free_normalized:
            delta = delta / np.sqrt(sum((t**2).sum() for t in v))
        ahead = model.gradient(axpy(delta, v, weights), *hessian[0])
        behind = model.gradient(axpy(-delta, v, weights), *hessian[0])
        product = [(a - b) / (2 * delta) for a, b in zip(ahead, behind, strict=True)]
    return axpy(-alpha, product, v)


def local_weights(model, weights, steps, config):
    """Algorithm 1, lines 4 to 8: one local step per entry of `steps`."""
    for batches in steps:
        gradient = meta_gradient(model, weights, batches, config)
        weights = axpy(-config.outer_learning_rate, gradient, weights)
    return weights


def mean(per_user, user_weights):
    """The server's line: the weighted mean of the users' weights."""
    total = sum(user_weights)
    return [
        sum(u * t for u, t in zip(user_weights, tensors, strict=True)) / total
        for tensors in zip(*per_user, strict=True)
    ]


def axpy(a, xs, ys):
    return [y + a * x for x, y in zip(xs, ys, strict=True)]


def _softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _cross_entropy(logits, y):
    return -np.log(_softmax(logits)[np.arange(len(y)), y]).mean()


def _error(logits, y):
    """d loss / d logits."""
    error = _softmax(logits)
    error[np.arange(len(y)), y] -= 1
    return error / len(y)


def _error_derivative(logits, direction):
    p = _softmax(logits)
    return p * (direction - (p * direction).sum(1, keepdims=True)) / len(p)


def _elu(z):
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


def _elu_first(z):
    return np.where(z > 0, 1.0, np.exp(np.minimum(z, 0)))


def _elu_second(z):
    return np.where(z > 0, 0.0, np.exp(np.minimum(z, 0)))
