"""Diagnostics of a trained model: the theory's quantities, and users' curvature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.algorithms.curvature import CurvatureGuard, largest_eigenvalue
from tff_perfedavg.algorithms.diagnostics import (
    Diagnostics,
    population_diagnostics,
    user_diagnostics,
)
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.algorithms.registry import LocalSettings
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.models.model import Batch, Model
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.hessian import hessian_vector_product
from tff_perfedavg.optimization.moves import ALL, Moves
from tff_perfedavg.progress import progress

# Keys the start vectors, which no other draw shares.
_CURVATURE = 1


def diagnose(
    model: Model,
    parameters: Sequence[np.ndarray],
    population: UserStore,
    users: Sequence[int] | np.ndarray,
    config: PerFedAvgConfig,
    probes: Sequence[Sequence[np.ndarray]],
) -> Diagnostics:
    """Measures the theory's quantities on all of users' adaptation rows.

    Args:
      model: the model.
      parameters: what the server holds: w, and learned rates behind it.
      population: the users' store.
      users: which users; those without adaptation rows are left out.
      config: the local steps, and how users adapt.
      probes: for the Hessians, from `draw_probes`.

    Raises:
      DataError: if no user has adaptation rows.
    """

    @tf.function(input_signature=[model.input_spec, model.label_spec])
    def of_user(x, y):
        rows = Batch(x, y, tf.ones([tf.shape(x)[0]], x.dtype))
        point = [tf.constant(p) for p in parameters]
        return user_diagnostics(model.batch_loss, point, rows, probes, config)

    return population_diagnostics(
        [
            of_user(x, y)
            for _, x, y in _users_with_rows(model, population, users, "measuring")
        ],
        config,
    )


def measure_curvature(
    model: Model,
    parameters: Sequence[np.ndarray],
    population: UserStore,
    users: Sequence[int] | np.ndarray,
    seed: int,
    adaptation: AdaptationConfig | None = None,
) -> pd.DataFrame:
    """Measures the largest Hessian eigenvalue of users, each on all adaptation rows.

    A batch of a user's rows has, in the mean, one at least as large.

    Args:
      model: the model.
      parameters: what the server holds: w, where the Hessians are taken, and learned
        rates behind it.
      population: the users' store.
      users: which users; those without adaptation rows are left out.
      seed: of the start vectors; a user's does not depend on the others.
      adaptation: the inner steps: the Hessian is that of the weights that they move,
        scaled by learned rates and shifted by the pull, as in `curvature`. By default
        all weights, at one rate, without a pull.

    Returns:
      A line for each user: `user`, `num_rows`, and `curvature` and `residual`, of
      `Eigenvalue`.

    Raises:
      DataError: if no user has adaptation rows.
    """
    how = (adaptation or AdaptationConfig(1.0)).build()
    weights, how = how.of(parameters)
    hessian = _hessian_product(model, weights, how.moves)
    roots = _roots(weights, how)
    # At its start the pull has no gradient: the first step does not feel it.
    pull = how.pull if how.num_steps > 1 else 0.0

    def product(x, y, vector):
        scaled = roots * vector
        return roots * (hessian(x, y, scaled) + pull * scaled)

    lines = []
    for user, x, y in _users_with_rows(model, population, users, "curvature"):
        rng = np.random.default_rng([seed, user, _CURVATURE])
        start = rng.normal(size=len(roots))
        found = largest_eigenvalue(functools.partial(product, x, y), start)
        lines.append((user, len(y), found.value, found.residual))
    return pd.DataFrame(lines, columns=["user", "num_rows", "curvature", "residual"])


def _roots(weights: Sequence[np.ndarray], how: Adaptation) -> np.ndarray:
    """Square roots of the factors of alpha, `[d]`, of all weights that move."""
    moving = how.moves.chosen(weights)
    factors = (
        [1.0] * len(moving) if how.factors is None else how.moves.chosen(how.factors)
    )
    pairs = zip(factors, moving, strict=True)
    full = [np.broadcast_to(np.float64(f), w.shape).ravel() for f, w in pairs]
    return np.sqrt(np.concatenate(full))


def theory_of(local: LocalSettings) -> tuple[PerFedAvgConfig | None, str]:
    """Returns the Per-FedAvg configuration of a run's diagnostics, and a note.

    They are Per-FedAvg's and of those that vary its inner steps. Where users adapt like
    Per-FedAvg's, but train otherwise, they are what they would be at these weights.

    Args:
      local: what a user of the run does in a round.

    Returns:
      The configuration, None where the theory does not speak of such a run, and a
      sentence where it is not the run's own, else ''.
    """
    config = local.config
    if isinstance(config, PerFedAvgConfig):
        return config, ""
    how = local.adaptation
    is_alike = how.moves == ALL and not (how.pull or how.learned)
    if is_alike and not config.build().num_fixed:
        return PerFedAvgConfig.of(local), (
            "The theory's quantities are those of Per-FedAvg at these weights; "
            f"{config.label} trains in another way."
        )
    return None, (
        f"The theory speaks of Per-FedAvg and not of {config.label}: curvature alone "
        "is measured."
    )


def curvature_in_words(adaptation: AdaptationConfig) -> str:
    """Describes what curvature is measured of; '' if of all weights as they are."""
    found = []
    if adaptation.moves != ALL:
        found.append(f"of the {adaptation.moves} alone")
    if adaptation.learned:
        found.append("scaled by the learned rates")
    if adaptation.pull and adaptation.num_steps > 1:
        found.append(f"with the pull's {adaptation.pull:g}")
    return f"Curvature is {', '.join(found)}." if found else ""


def guard_in_words(
    guard: CurvatureGuard, alpha: float, eigenvalues: Sequence[float] | pd.Series
) -> str:
    """Describes the finding of a curvature guard, in some lines.

    Args:
      guard: of the users.
      alpha: the inner learning rate that it was asked about.
      eigenvalues: each user's largest.
    """
    count = len(eigenvalues)

    def users(share):
        number = round(share * count)
        if not number:
            return f"none of {count} users"
        return f"{100 * share:.0f} % of users ({number} of {count})"

    lines = [
        f"with alpha {alpha:g}, curvature is above",
        f"1 / alpha, where first-order points the wrong way, for "
        f"{users(guard.share_above_one)};",
        f"2 / alpha, where the inner step raises the loss, for "
        f"{users(guard.share_above_two)}.",
    ]
    unknown = int(np.sum(~np.isfinite(eigenvalues)))
    if unknown:
        lines.append(f"Not finite, and counted as above both: {unknown}.")
    if guard.curvature_max <= 0:
        lines.append("None is positive, so that no alpha is too large for it.")
    elif guard.proposed_alpha != alpha and unknown < count:
        # Weights trained with another alpha have another curvature.
        proposal = f"{guard.proposed_alpha:g} would keep all below 1 / alpha"
        if guard.alpha_for_most > guard.proposed_alpha:
            proposal += f", {guard.alpha_for_most:g} nine in ten"
        lines.append(f"At these weights {proposal}.")
    return "\n  ".join(lines)


def _hessian_product(
    model: Model, weights: Sequence[np.ndarray], moves: Moves
) -> Callable[[tf.Tensor, tf.Tensor, np.ndarray], np.ndarray]:
    """Returns a function from rows, their labels and a vector `[d]` to H times it."""
    shapes = [w.shape for w in moves.chosen(weights)]
    sizes = [w.size for w in moves.chosen(weights)]

    @tf.function(
        input_signature=[
            model.input_spec,
            model.label_spec,
            tf.TensorSpec([sum(sizes)], weights[0].dtype),
        ]
    )
    def product(x, y, vector):
        rows = Batch(x, y, tf.ones([tf.shape(x)[0]], x.dtype))
        parts = zip(tf.split(vector, sizes), shapes, strict=True)
        direction = [tf.reshape(part, shape) for part, shape in parts]
        point = [tf.constant(w) for w in weights]
        loss = moves.restrict(model.batch_loss, point)
        found = hessian_vector_product(loss, moves.chosen(point), direction, rows)
        return tf.concat([tf.reshape(t, [-1]) for t in found], 0)

    return lambda x, y, vector: product(x, y, vector.astype(weights[0].dtype)).numpy()


def _users_with_rows(
    model: Model,
    population: UserStore,
    users: Sequence[int] | np.ndarray,
    doing: str,
) -> Iterator[tuple[int, tf.Tensor, tf.Tensor]]:
    """Yields users with their adaptation rows and labels; tells how far it is.

    Raises:
      DataError: at the end, if no user has adaptation rows.
    """
    is_empty = True
    with progress(total=len(users), desc=doing, unit="user") as bar:
        for user in users:
            rows = population.scaled(population.adaptation(user))
            if len(rows.y):
                is_empty = False
                y = np.asarray(rows.y, model.label_spec.dtype.as_numpy_dtype)
                yield int(user), tf.constant(rows.x), tf.constant(y)
            bar.update()
    if is_empty:
        raise errors.DataError(
            f"{population.path}: not one of the {len(users)} users chosen has "
            "adaptation rows."
        )
