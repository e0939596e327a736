"""Empirical constants of Per-FedAvg's convergence analysis: variances, bias, drift.

Symbols are those of Fallah et al., 2020 (arXiv 2002.07948), section 4: for user i with
rows j, loss l_ij of one row and f_i their mean,

    sigma_G^2   mean over rows of ||grad l_ij - grad f_i||^2       (assumption 4)
    sigma_H^2   the same of Hessians                               (assumption 4)
    gamma_G^2   mean over users of ||grad f_i - grad f||^2         (assumption 5)
    gamma_H^2   the same of Hessians                               (assumption 5)
    drift^2     mean over users of ||w_i - w||^2, w_i the weights after user i's
                tau local steps, w their mean                       (appendix)

The paper bounds the Hessians' differences in the operator norm; here they are measured
in the Frobenius norm, which is no smaller, by products with random probes: for probes
with E[z z^T] = I, E||A z||^2 = ||A||_F^2.

Gradients, Hessians and drift are of all weights of the model, whatever moves inside,
and of no learned rates. Meta-gradients are by these weights, through the inner steps
that the algorithm takes: of what moves in ANIL and BOIL, at Meta-SGD's learned rates,
with a pull. Graph code, like `meta_gradient`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.gradients import (
    Loss,
    Weights,
    loss_and_gradient,
    subtract,
)
from tff_perfedavg.optimization.hessian import (
    EXACT,
    FIRST_ORDER,
    HESSIAN_FREE,
    hessian_vector_product,
)
from tff_perfedavg.optimization.inner_steps import meta_gradient
from tff_perfedavg.optimization.local_update import local_update


class UserDiagnostics(NamedTuple):
    """One user's diagnostics, of all its rows; d weights, k probes.

    Attributes:
      gradient: `[d]`, grad f_i.
      hessian_products: `[k, d]`, the Hessian of f_i times each probe.
      gradient_variance: scalar, sigma_G^2 of this user.
      hessian_variance: scalar, sigma_H^2 of this user.
      meta_gradients: `[3, d]`: exact, first-order, Hessian-free, all rows in every
        batch.
      movement: `[d]`, what tau local steps from w add to it, all rows in every batch.
    """

    gradient: tf.Tensor
    hessian_products: tf.Tensor
    gradient_variance: tf.Tensor
    hessian_variance: tf.Tensor
    meta_gradients: tf.Tensor
    movement: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Diagnostics aggregated over users.

    Attributes:
      meta_gradient_norm: ||grad F(w)||, of the mean over users of exact meta-gradients
        on all rows: what training drives to zero.
      first_order_error: ||g_FO - g|| / ||g|| of that mean.
      hessian_free_error: the same of the Hessian-free form.
      sigma_g: square root of the mean over users of sigma_G^2.
      sigma_h: the same of sigma_H^2.
      gamma_g: gamma_G.
      gamma_h: gamma_H.
      bias_floor: alpha^2 sigma_G^2 / D for a support batch of D rows: the order to
        which a biased meta-gradient keeps its square from zero (theorem 4.5); NaN where
        the inner step is not the theorem's: one step, of all weights, at alpha.
      client_drift: root mean squared distance of the users' weights after their tau
        local steps from the mean of these, all rows in every batch.
    """

    meta_gradient_norm: float
    first_order_error: float
    hessian_free_error: float
    sigma_g: float
    sigma_h: float
    gamma_g: float
    gamma_h: float
    bias_floor: float
    client_drift: float


def user_diagnostics(
    loss: Loss,
    parameters: Weights,
    rows: Batch,
    probes: Sequence[Weights],
    config: PerFedAvgConfig,
) -> UserDiagnostics:
    """Computes one user's diagnostics.

    Args:
      loss: the user's loss, a mean over the rows that count.
      parameters: what the server holds: w, and learned rates behind it.
      rows: all of the user's rows, at least one; every one must count.
      probes: each shaped like the weights.
      config: the local steps: rates, tau, variant, delta, and how users adapt.
    """
    algorithm = config.build()
    weights, inner = algorithm.adaptation.of(parameters)
    everything = dict.fromkeys(("support", "query", "hessian"), rows)

    def meta_gradient_by(variant):
        product = dataclasses.replace(config, variant=variant).product
        found = meta_gradient(loss, weights, everything, inner, product)
        return _flat(found.of_weights)

    def gradient_of(batch):
        return loss_and_gradient(loss, weights, batch)[1]

    def of_probe(probe):
        def product_of(batch):
            return hessian_vector_product(loss, weights, probe, batch)

        product = _flat(product_of(rows))
        return product, _mean_square(_each_row(product_of, rows) - product)

    gradient = _flat(gradient_of(rows))
    products, variances = tf.map_fn(
        of_probe,
        [tf.stack(parts) for parts in zip(*probes, strict=True)],
        fn_output_signature=tuple(
            tf.TensorSpec(shape, gradient.dtype) for shape in (gradient.shape, ())
        ),
    )
    metas = [meta_gradient_by(v) for v in (EXACT, FIRST_ORDER, HESSIAN_FREE)]
    of_roles = [rows] * len(algorithm.roles)
    local = local_update(loss, parameters, lambda _: of_roles, algorithm)
    ended, _ = algorithm.adaptation.of(local.state)
    return UserDiagnostics(
        gradient,
        products,
        _mean_square(_each_row(gradient_of, rows) - gradient),
        tf.reduce_mean(variances),
        tf.stack(metas),
        _flat(subtract(ended, weights)),
    )


def population_diagnostics(
    users: Sequence[UserDiagnostics], config: PerFedAvgConfig
) -> Diagnostics:
    """Aggregates users' diagnostics, each user counting alike, as in the paper.

    Args:
      users: each user's diagnostics, at least one's, of the same weights and probes.
      config: the local steps that the diagnostics were taken with.
    """
    gradients, products, gradient_variances, hessian_variances, metas, movements = (
        np.stack([np.asarray(part, np.float64) for part in parts])
        for parts in zip(*users, strict=True)
    )
    exact, first_order, hessian_free = metas.mean(0)
    norm = np.linalg.norm(exact)
    sigma_g = np.sqrt(gradient_variances.mean())
    rate = config.inner_learning_rate
    floor = np.nan
    if config.adaptation == AdaptationConfig(rate):
        floor = rate**2 * sigma_g**2 / config.support_batch_size
    return Diagnostics(
        meta_gradient_norm=float(norm),
        first_order_error=float(np.linalg.norm(first_order - exact) / norm),
        hessian_free_error=float(np.linalg.norm(hessian_free - exact) / norm),
        sigma_g=float(sigma_g),
        sigma_h=float(np.sqrt(hessian_variances.mean())),
        gamma_g=_spread(gradients),
        # Over users and, as an expectation, over probes.
        gamma_h=_spread(products),
        bias_floor=float(floor),
        client_drift=_spread(movements),
    )


def draw_probes(
    weights: Sequence[np.ndarray], count: int, seed: int
) -> list[list[np.ndarray]]:
    """Draws Rademacher probes: entries 1 and -1, each with equal probability.

    Args:
      weights: what the probes are shaped like.
      count: how many.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    return [
        [rng.choice([-1.0, 1.0], w.shape).astype(w.dtype) for w in weights]
        for _ in range(count)
    ]


def _each_row(function: Callable, rows: Batch) -> tf.Tensor:
    """Returns `[rows, d]`, what a function of a batch makes of each row alone."""
    return tf.vectorized_map(
        lambda row: _flat(function(Batch(*(part[tf.newaxis] for part in row)))),
        tuple(rows),
    )


def _flat(tensors: Weights) -> tf.Tensor:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def _mean_square(vectors: tf.Tensor) -> tf.Tensor:
    """Mean over the first axis of squared lengths."""
    return tf.reduce_mean(tf.reduce_sum(vectors**2, -1))


def _spread(vectors: np.ndarray) -> float:
    """Root mean squared distance from the mean over the first axis."""
    squares = ((vectors - vectors.mean(0)) ** 2).sum(-1)
    return float(np.sqrt(squares.mean()))
