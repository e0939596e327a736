"""The family of algorithms in float64 NumPy, written from their papers' formulas.

`model` has the `loss`, `gradient` and `hessian_vector` of `tests.reference`. Weights
are lists of arrays; `moving` are the numbers of those that a user's steps change.
"""

import numpy as np

from tests.reference import axpy


def user_steps(model, start, rows, alpha, steps, moving, pull=0.0, factors=None):
    """All points of w <- w - alpha phi (g(w; D) + pull (w - start)), start first."""
    points = [start]
    for _ in range(steps):
        weights = [w.copy() for w in points[-1]]
        gradient = model.gradient(points[-1], *rows)
        for i in moving:
            phi = 1.0 if factors is None else factors[i]
            away = points[-1][i] - start[i]
            weights[i] = weights[i] - alpha * phi * (gradient[i] + pull * away)
        points.append(weights)
    return points


def meta_objective(model, start, support, query, **how):
    """What a user experiences: its query loss behind its own steps."""
    return model.loss(user_steps(model, start, support, **how)[-1], *query)


def central_differences(function, weights, step=1e-5):
    """The gradient of a scalar function of a list of arrays, entry by entry."""
    found = []
    for i, tensor in enumerate(weights):
        slopes = np.zeros(np.shape(tensor))
        for place in np.ndindex(slopes.shape):
            ends = []
            for sign in (1, -1):
                moved = [np.array(w, np.float64) for w in weights]
                moved[i][place] += sign * step
                ends.append(function(moved))
            slopes[place] = (ends[0] - ends[1]) / (2 * step)
        found.append(slopes)
    return found


def meta_gradient(model, start, batches, alpha, steps, moving, product):
    """Back along the steps: v <- v - H alpha v of what moves, from v = g(w_m; D').

    `batches` are D, D' and D''; `product` is from (point, vector, rows) to H vector,
    or None for the first-order form.
    """
    support, query, hessian = batches
    points = user_steps(model, start, support, alpha, steps, moving)
    v = model.gradient(points[-1], *query)
    if product is None:
        return v
    for point in reversed(points[:-1]):
        vector = [alpha * t if i in moving else 0.0 * t for i, t in enumerate(v)]
        v = axpy(-1.0, product(point, vector, hessian), v)
    return v


def fed_prox(model, start, batches, rate, pull):
    weights = start
    for rows in batches:
        gradient = model.gradient(weights, *rows)
        away = axpy(-1.0, start, weights)
        weights = axpy(-rate, axpy(pull, away, gradient), weights)
    return weights


def p_fed_me(model, start, batches, rate, alpha, steps, pull):
    weights = start
    for rows in batches:
        own = weights
        for _ in range(steps):
            gradient = model.gradient(own, *rows)
            regularized = axpy(pull, axpy(-1.0, weights, own), gradient)
            own = axpy(-alpha, regularized, own)
        weights = axpy(-rate * pull, axpy(-1.0, own, weights), weights)
    return weights


def fed_babu(model, start, batches, rate, head):
    body, fixed = start[:-head], start[-head:]
    for rows in batches:
        gradient = model.gradient([*body, *fixed], *rows)
        body = axpy(-rate, gradient[:-head], body)
    return body


def fed_recon(model, start, support, queries, rate, alpha, steps, head):
    body, own = start[:-head], start[-head:]
    for _ in range(steps):
        gradient = model.gradient([*body, *own], *support)
        own = axpy(-alpha, gradient[-head:], own)
    for rows in queries:
        gradient = model.gradient([*body, *own], *rows)
        body = axpy(-rate, gradient[:-head], body)
    return body
