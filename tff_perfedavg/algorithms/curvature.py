"""A curvature guard: the largest Hessian eigenvalue of each user, against 1 / alpha.

The meta-gradient is (I - a H) v, v the gradient after the inner step (Fallah et al.,
2020, arXiv 2002.07948). Along an eigenvector of H whose eigenvalue l exceeds 1 / a the
factor 1 - a l is negative: v itself, the first-order meta-gradient, then points against
the exact one, and steps along it make a sharp direction sharper. Where l exceeds 2 / a
the inner step raises f itself, to second order. So it is the largest eigenvalue by sign
that counts: negative curvature, however strong, leaves I - a H positive there. The
paper's analysis takes a <= 1 / L, L the largest of the users' smoothness constants
(section 4).

Where a step is w - a phi (g + pull (w - start)), of some weights, with factors phi, its
derivative is I - a diag(phi) (H + pull I) of these weights. It has the eigenvalues of
I - a S, S = diag(phi)^1/2 (H + pull I) diag(phi)^1/2 symmetric: then it is the largest
eigenvalue of S that counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from tff_perfedavg import errors

# Twice what came within 1e-5 of dense Hessians, of users of trained models with 514 and
# 10,670 weights. Where the two largest were 19.2 and 18.0, thirty of power iteration
# stayed 5 % below.
_NUM_PRODUCTS = 20
# What float32 products are sure of, relative to the largest.
_NOISE = float(np.finfo(np.float32).eps)
# First digits of a proposed rate.
_DIGITS = (5, 3, 2, 1)
# The share of users that are most.
_MOST = 0.9
# Smaller eigenvalues bound no rate that a float64 holds.
_LEAST = 1e-300


class Eigenvalue(NamedTuple):
    """An estimate of a largest eigenvalue, never above it but for rounding.

    Attributes:
      value: the estimate; NaN if a product was not finite.
      residual: ||H u - value u|| of its unit vector u: H has an eigenvalue so near.
      num_products: Hessian-vector products taken.
    """

    value: float
    residual: float
    num_products: int


def largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    num_products: int = _NUM_PRODUCTS,
) -> Eigenvalue:
    """Estimates the algebraically largest eigenvalue of a symmetric matrix H.

    Power iteration that keeps its vectors, which is Lanczos' method: the largest
    Rayleigh quotient over the span of v, H v, H^2 v, ... (Golub and Van Loan, Matrix
    Computations, chapter 10), kept orthogonal in full. Power iteration proper finds the
    eigenvalue of largest magnitude, which may be negative, needs a shift then, and is
    slow where two eigenvalues are near each other: with random starts its mean relative
    error falls as ln(d) / k in k products, that of Lanczos' method as its square
    (Kuczynski and Wozniakowski, 1992). The number of products is fixed: a small
    residual may belong to the second eigenvalue before the first is found.

    Args:
      product: from a vector `[d]` to H times it, `[d]`.
      start: `[d]`, random, so that it has a part along every eigenvector.
      num_products: the most products taken; fewer where these find nothing new.
    """
    vectors = [start / np.linalg.norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    while True:
        image = np.asarray(product(vectors[-1]), np.float64)
        if not np.isfinite(image).all():
            return Eigenvalue(np.nan, np.nan, len(vectors))
        scale = max(scale, float(np.linalg.norm(image)))
        diagonal.append(float(image @ vectors[-1]))
        basis = np.stack(vectors)
        # Once leaves rounding errors that grow; twice is enough (Parlett).
        for _ in range(2):
            image = image - (basis @ image) @ basis
        rest = float(np.linalg.norm(image))
        is_spanned = rest <= _NOISE * scale or len(vectors) == len(start)
        if is_spanned or len(vectors) == num_products:
            break
        beside.append(rest)
        vectors.append(image / rest)
    values, coordinates = scipy.linalg.eigh_tridiagonal(diagonal, beside)
    # Exact products would have it smaller still.
    residual = max(rest * abs(coordinates[-1, -1]), _NOISE * scale)
    return Eigenvalue(float(values[-1]), float(residual), len(vectors))


@dataclasses.dataclass(frozen=True)
class CurvatureGuard:
    """Summary of users' largest Hessian eigenvalues against 1 / alpha.

    Attributes:
      curvature_median: of the eigenvalues that are finite; NaN if none is.
      curvature_max: the largest of these.
      share_above_one: of users, those with alpha times eigenvalue above 1, or with
        none that is finite.
      share_above_two: the same of 2.
      proposed_alpha: the largest rate of one digit, 1, 2, 3 or 5, that keeps all users
        whose eigenvalue is finite below 1, or alpha itself if it is larger and does;
        NaN if no user has positive curvature, which bounds no rate. All and not most:
        the paper's bound is that of the sharpest user, and one user whom first-order
        makes sharper is in the mean of its cohort.
      alpha_for_most: the same for nine users in ten.
    """

    curvature_median: float
    curvature_max: float
    share_above_one: float
    share_above_two: float
    proposed_alpha: float
    alpha_for_most: float


def curvature_guard(eigenvalues: Sequence[float], alpha: float) -> CurvatureGuard:
    """Aggregates users' largest eigenvalues, each user counting alike.

    Args:
      eigenvalues: each user's largest; NaN where it is not known.
      alpha: the inner learning rate.

    Raises:
      DataError: if there are no users.
    """
    found = np.asarray(eigenvalues, np.float64)
    if not found.size:
        raise errors.DataError("A curvature guard needs one user at least; none given.")
    finite = found[np.isfinite(found)]
    largest = finite.max() if finite.size else np.nan
    # The next user's and no value between two: of few users, all count.
    most = np.quantile(finite, _MOST, method="higher") if finite.size else np.nan
    return CurvatureGuard(
        curvature_median=float(np.median(finite)) if finite.size else np.nan,
        curvature_max=float(largest),
        # Not `> 1`, by which one that is not finite would be none.
        share_above_one=float(np.mean(~(alpha * found <= 1))),
        share_above_two=float(np.mean(~(alpha * found <= 2))),
        proposed_alpha=_largest_rate(largest, alpha),
        alpha_for_most=_largest_rate(most, alpha),
    )


def _largest_rate(eigenvalue: float, alpha: float) -> float:
    """The largest rate of one digit below 1 / eigenvalue, or alpha if it is larger."""
    if not eigenvalue > 0:
        return np.nan
    power = int(np.floor(-np.log10(max(eigenvalue, _LEAST))))
    rates = (float(f"{d}e{p}") for p in (power, power - 1) for d in _DIGITS)
    rate = next(rate for rate in rates if rate * eigenvalue < 1)
    return max(rate, alpha) if alpha * eigenvalue < 1 else rate
