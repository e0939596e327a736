"""The theory's quantities of a trained model on its own population."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.algorithms.diagnostics import (
    Diagnostics,
    population_diagnostics,
    user_diagnostics,
)
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.models.model import Batch, Model
from tff_perfedavg.progress import progress


def diagnose(
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    users: Sequence[int] | np.ndarray,
    config: PerFedAvgConfig,
    probes: Sequence[Sequence[np.ndarray]],
) -> Diagnostics:
    """Measures users on all of their adaptation rows.

    Args:
      model: the model.
      weights: w.
      population: the users' store.
      users: which users; those without adaptation rows are left out.
      config: gives alpha, delta and the support batch.
      probes: for the Hessians, from `draw_probes`.

    Raises:
      DataError: if no user has adaptation rows.
    """

    @tf.function(input_signature=[model.input_spec, model.label_spec])
    def of_user(x, y):
        rows = Batch(x, y, tf.ones([tf.shape(x)[0]], x.dtype))
        point = [tf.constant(w) for w in weights]
        return user_diagnostics(model.batch_loss, point, rows, probes, config)

    measured = []
    with progress(total=len(users), desc="measuring", unit="user") as bar:
        for user in users:
            rows = population.scaled(population.adaptation(user))
            if len(rows.y):
                y = np.asarray(rows.y, model.label_spec.dtype.as_numpy_dtype)
                measured.append(of_user(rows.x, y))
            bar.update()
    if not measured:
        raise errors.DataError(
            f"{population.path}: not one of the {len(users)} users chosen has "
            "adaptation rows."
        )
    return population_diagnostics(measured, config)
