"""Split of a trained model for export: frozen constants and trainable weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Model
from tff_perfedavg.ondevice.config import FLOAT16, ExportConfig
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm
from tff_perfedavg.optimization.moves import EVERYTHING


class Deployment:
    """A trained model, split for a device into frozen and trainable weights.

    Attributes:
      model: the model of the weights that adapt; the others are constants of it.
      weights: those that adapt, float32 arrays.
      adaptation: of `model`. Learned rates are in it as they are, and its learning rate
        is a factor of them.
      sent_model: the model of which `meta_update` computes a user's part.
      sent: what a server sends to it.
    """

    def __init__(
        self, model: Model, parameters: Sequence[np.ndarray], config: ExportConfig
    ):
        """Takes a trained model apart.

        Args:
          model: the model.
          parameters: what was trained: its weights, with learned rates behind them.
          config: what is exported.

        Raises:
          ConfigError: if the model has no weights for what is to stay, or learned
            rates that the file's storage cannot hold.
        """
        algorithm = config.algorithm.build()
        trained = config.adaptation.build()
        if config.max_local_steps and algorithm.adaptation.learned != trained.learned:
            raise errors.ConfigError(
                f"ExportConfig.variant is {config.method}, whose learned rates "
                f"{model.name!r} does not have as they were trained; leave out "
                "variant, or set max_local_steps to 0."
            )
        weights, own = trained.of([tf.constant(p) for p in parameters])
        weights = [w.numpy() for w in weights]
        moves = own.moves
        moves.check(model)
        algorithm.check(model)

        def apply(moving, x):
            joined = moves.join(weights, moving)
            return model.apply([tf.convert_to_tensor(w) for w in joined], x)

        factors = own.factors
        if factors is not None:
            rate = np.float32(own.learning_rate)
            factors = [rate * f.numpy() for f in moves.chosen(factors)]
            if config.storage == FLOAT16:
                factors = _in_float16(factors, model.name)
        self.model = dataclasses.replace(model, apply=apply)
        self.weights = moves.chosen(weights)
        self.adaptation = Adaptation(
            1.0, moves=EVERYTHING, pull=own.pull, factors=factors
        )
        # Where a file freezes what its algorithm learns, it computes the part that is
        # not frozen; where the algorithm itself tells what adapts from what is
        # learned, all of it.
        whole = _is_of_all(algorithm)
        self.sent_model = model if whole else self.model
        self.sent = list(parameters) if whole else self.weights


def _is_of_all(algorithm: LocalAlgorithm) -> bool:
    adaptation = algorithm.adaptation
    is_split = algorithm.num_fixed > 0 or not adaptation.moves.are_all
    return is_split or adaptation.learned is not None


def _in_float16(rates: Sequence[np.ndarray], name: str) -> list[np.ndarray]:
    """Returns learned rates as a file of float16 has them, all to its precision."""
    kept = np.finfo(np.float16)
    least, most = min(r.min() for r in rates), max(r.max() for r in rates)
    if least < kept.tiny or most > kept.max:
        raise errors.ConfigError(
            f"ExportConfig.storage is {FLOAT16!r}, but {name!r} has learned rates from "
            f"{least:.2g} to {most:.2g}, and float16 keeps its precision from "
            f"{kept.tiny:.2g} to {kept.max:.6g} alone; export with storage 'float32'."
        )
    return [r.astype(np.float16).astype(np.float32) for r in rates]
