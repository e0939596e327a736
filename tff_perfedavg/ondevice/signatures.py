"""Signatures of an exported file, as TensorFlow functions.

The mathematics is that of `tff_perfedavg.optimization`, differentiated with the
gradients of `ondevice.gradients`. No input or output is a scalar and every signature
has an input, since some runtimes take nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Batch, Model, masked_cross_entropy
from tff_perfedavg.ondevice import gradients
from tff_perfedavg.ondevice.config import MAX_ADAPT_STEPS, ExportConfig
from tff_perfedavg.ondevice.deployment import Deployment
from tff_perfedavg.ondevice.supported import check_operations
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.gradients import Weights, replaced_gradients
from tff_perfedavg.optimization.local_update import local_update

_UNUSED = tf.TensorSpec([1], tf.float32)
_RATE = tf.TensorSpec([1], tf.float32)
_COUNT = tf.TensorSpec([1], tf.int32)
# Runtimes round infinity down to float32's largest number, 3.4e38, in some operations.
_LARGEST = 1e38


class FixedModule(tf.Module):
    """A model with constant weights and the signatures for inference."""

    def __init__(
        self,
        model: Model,
        weights: Sequence[np.ndarray],
        config: ExportConfig,
        card: bytes,
    ):
        """Prepares the signatures.

        Args:
          model: the model.
          weights: its weights, float32.
          config: what is exported.
          card: what `describe` returns.
        """
        super().__init__()
        self.model_name = model.name
        self._model = model
        self._initial = [np.asarray(w, np.float32) for w in weights]
        self._config = config
        self._card = np.frombuffer(card, np.uint8)

    @property
    def names(self) -> list[str]:
        """The signatures' names."""
        return list(self._functions())

    def signatures(
        self, done: Callable[[str], None] = lambda name: None
    ) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Returns the signatures by name.

        Args:
          done: called with the name of each that is traced.

        Raises:
          ModelError: naming the layer, if one needs an operation that a device's
            runtime lacks.
        """
        # The forward pass comes first, so that a layer is refused for what it is.
        traced = {}
        for name, (function, inputs) in self._functions().items():
            traced[name] = self._trace(name, function, inputs)
            done(f"traced {name}")
        return traced

    def infer(self, x):
        """Returns class probabilities, or the outputs of a regressor."""
        outputs = self._model.apply(self._read(), x)
        if self._model.num_classes is None:
            return {"outputs": outputs}
        return {"probabilities": tf.nn.softmax(outputs)}

    def describe(self, unused):
        """Returns the card, JSON in UTF-8."""
        return {"card": tf.constant(self._card)}

    def _functions(self) -> dict[str, tuple[Callable, dict[str, tf.TensorSpec]]]:
        """Every signature's function and its inputs."""
        return {
            "infer": (self.infer, {"x": self._rows(self._config.infer_batch_size)[0]}),
            "describe": (self.describe, {"unused": _UNUSED}),
        }

    def _read(self) -> list[tf.Tensor]:
        return [tf.constant(w) for w in self._initial]

    def _rows(self, count: int, *steps: int) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        x, y = self._model.input_spec, self._model.label_spec
        return (
            tf.TensorSpec([*steps, count, *x.shape[1:]], x.dtype),
            tf.TensorSpec([*steps, count, *y.shape[1:]], y.dtype),
        )

    def _trace(self, name, function, inputs):
        named = {
            key: tf.TensorSpec(spec.shape, spec.dtype, name=key)
            for key, spec in inputs.items()
        }
        try:
            # Without AutoGraph, which would wrap our errors in its own.
            traced = tf.function(function, autograph=False)
            concrete = traced.get_concrete_function(**named)
        except LookupError as e:
            raise errors.ModelError(
                f"{self.model_name!r}: an operation has no second derivative ({e}). "
                "Replace its layer, or export with variant 'first_order' or "
                "'hessian_free'."
            ) from e
        check_operations(concrete, self.model_name, is_forward=name == "infer")
        return concrete


class DeviceModule(FixedModule):
    """A model with variable personal weights and the signatures for training."""

    def __init__(
        self,
        model: Model,
        weights: Sequence[np.ndarray],
        config: ExportConfig,
        card: bytes,
    ):
        """As `FixedModule`; learned rates stand behind the weights."""
        loss = _BUILT_IN_LOSSES.get(model.loss, model.loss)
        model = dataclasses.replace(model, loss=loss)
        deployed = Deployment(model, weights, config)
        super().__init__(deployed.model, deployed.weights, config, card)
        self._deployed = deployed
        self._weights = [
            tf.Variable(w, name=f"weight_{i}") for i, w in enumerate(self._initial)
        ]

    def _functions(self):
        config = self._config
        x, y = self._rows(config.batch_size)
        weights, sent = (
            {f"weight_{i}": tf.TensorSpec(w.shape, w.dtype) for i, w in enumerate(held)}
            for held in (self._initial, self._deployed.sent)
        )
        functions = super()._functions() | {
            "adapt": (self.adapt, {"x": x, "y": y, "learning_rate": _RATE}),
            "adapt_steps": (
                self.adapt_steps,
                {"x": x, "y": y, "learning_rate": _RATE, "num_steps": _COUNT},
            ),
            "reset": (self.reset, {"unused": _UNUSED}),
            "get_weights": (self.get_weights, {"unused": _UNUSED}),
            "set_weights": (self.set_weights, weights),
        }
        if config.max_guarded_steps:
            guarded = {"x": x, "y": y, "x_check": x, "y_check": y}
            guarded |= {"learning_rate": _RATE, "num_steps": _COUNT}
            functions["adapt_guarded"] = (self.adapt_guarded, guarded)
        if config.max_local_steps:
            batches = {}
            for role in config.algorithm.roles:
                x, y = self._rows(config.batch_size, config.max_local_steps)
                batches |= {f"x_{role}": x, f"y_{role}": y}
            rates = dict.fromkeys(config.algorithm.RATES, _RATE)
            functions["meta_update"] = (
                self.meta_update,
                {**sent, **batches, **rates, "num_steps": _COUNT},
            )
        return functions

    def adapt(self, x, y, learning_rate):
        """Takes one gradient step on a batch; see `adapt_steps`.

        Args:
          x: `[batch_size, ...]` features.
          y: `[batch_size, ...]` labels; -1 (NaN for a regressor) for padding.
          learning_rate: float32 `[1]`, alpha.
        """
        batch, first = self._batch(x, y), self._read()
        # Not the loop of `adapt_steps`, which copies the weights in and out.
        with replaced_gradients(gradients.OVERRIDES):
            adaptation, start = self._adaptation(learning_rate)
            loss, adapted = adaptation.step(self._model.batch_loss, first, batch, start)
        return self._keep(batch, loss, first, adapted, tf.constant(1))

    def adapt_steps(self, x, y, learning_rate, num_steps):
        """Takes gradient steps on one batch.

        Returns its loss before the first step, and whether the steps were kept. The
        weights stay as they were if the new ones, what the model makes of the batch
        with them or its loss are not finite, if no row counts, or if `num_steps` is
        not from 1 to `MAX_ADAPT_STEPS`.

        Args:
          x: as `adapt`.
          y: as `adapt`.
          learning_rate: float32 `[1]`, alpha.
          num_steps: int32 `[1]`.
        """
        batch, first = self._batch(x, y), self._read()
        adaptation, start = self._adaptation(learning_rate)
        asked = num_steps[0]
        count = tf.where(asked <= MAX_ADAPT_STEPS, asked, 0)

        def body(number, weights, first_loss):
            loss, weights = adaptation.step(
                self._model.batch_loss, weights, batch, start
            )
            first_loss = tf.where(tf.equal(number, 0), loss, first_loss)
            return number + 1, weights, first_loss

        with replaced_gradients(gradients.OVERRIDES):
            _, adapted, loss = tf.while_loop(
                lambda number, *_: number < count,
                body,
                (tf.constant(0), first, tf.zeros([])),
            )
        return self._keep(batch, loss, first, adapted, count)

    def adapt_guarded(self, x, y, x_check, y_check, learning_rate, num_steps):
        """Takes gradient steps with early stopping on other rows.

        The weights become those after the step, none included, with which the loss on
        the rows to check is lowest. Returns that loss before and with the weights
        kept, the number of steps kept, whether there are any, and the loss after each
        step: `_LARGEST` where it or a weight is not finite, -1 for a step not taken.
        No step is taken if `num_steps` is not from 1 to `max_guarded_steps`, or if no
        row counts to learn from or to check on.

        Args:
          x: rows to learn from, as `adapt`.
          y: their labels.
          x_check: rows to check on, as `adapt`.
          y_check: their labels.
          learning_rate: float32 `[1]`, alpha.
          num_steps: int32 `[1]`, the most steps.
        """
        batch, check = self._batch(x, y), self._batch(x_check, y_check)
        first, model = self._read(), self._model
        adaptation, start = self._adaptation(learning_rate)
        asked, most = num_steps[0], self._config.max_guarded_steps
        have_rows = [tf.reduce_max(rows.mask) > 0.0 for rows in (batch, check)]
        is_sound = tf.logical_and(asked <= most, tf.reduce_all(tf.stack(have_rows)))
        count = tf.where(is_sound, asked, 0)

        def checked(weights):
            outputs = model.apply(weights, check.x)
            loss = model.loss(outputs, check.y, check.mask)
            return tf.where(_is_finite([*weights, outputs, loss]), loss, _LARGEST)

        def body(number, weights, best, kept, losses):
            _, weights = adaptation.step(model.batch_loss, weights, batch, start)
            number += 1
            loss = checked(weights)
            best_loss = tf.gather(losses, kept)
            is_best = loss < best_loss
            losses = tf.where(tf.equal(tf.range(most + 1), number), loss, losses)
            kept = tf.where(is_best, number, kept)
            return number, weights, _chosen(is_best, weights, best), kept, losses

        losses = tf.concat([checked(first)[tf.newaxis], tf.fill([most], -1.0)], 0)
        with replaced_gradients(gradients.OVERRIDES):
            _, _, best, kept, losses = tf.while_loop(
                lambda number, *_: number < count,
                body,
                (tf.constant(0), first, first, tf.constant(0), losses),
            )
        # The rows learned from have to have an answer, too.
        applied = self._keep(batch, losses[0], first, best, kept)["applied"]
        kept *= applied[0]
        return {
            "loss_before": losses[:1],
            "loss_after": tf.gather(losses, kept)[tf.newaxis],
            "steps_kept": kept[tf.newaxis],
            "applied": applied,
            "losses": losses,
        }

    def reset(self, unused):
        """Restores the initial weights."""
        return self._assign([tf.constant(w) for w in self._initial])

    def get_weights(self, unused):
        """Returns the personal weights."""
        return self._by_name("weight", self._read())

    def set_weights(self, **weights):
        """Replaces the personal weights; `done` is 0 if they are not finite."""
        # An app that passes a larger array resizes the input, and what is assigned has
        # to fit the variable's memory: a change of shape fails at another size.
        given = [
            tf.reshape(weights[f"weight_{i}"], [1, w.size])
            for i, w in enumerate(self._initial)
        ]
        first = [tf.reshape(w, [1, -1]) for w in self._read()]
        is_finite = _is_finite(given)
        chosen = _chosen(is_finite, given, first)
        self._assign(
            [tf.reshape(c, w.shape) for c, w in zip(chosen, self._initial, strict=True)]
        )
        return {"done": tf.cast(is_finite, tf.int32)[tf.newaxis]}

    def meta_update(self, num_steps, **given):
        """Computes the client update of a round from the weights given.

        Returns the update `w_k - w`, mean losses, and whether the update is one: it is
        zeros if it or a loss is not finite, if a batch of a step has no row that
        counts, or if `num_steps` is not from 1 to `max_local_steps`. The personal
        weights stay.

        Args:
          num_steps: int32 `[1]`, local steps.
          **given: `weight_0`, `weight_1` and so on, as the server sent them; of each
            role `x_ROLE` and `y_ROLE`, `[max_local_steps, batch_size, ...]`, padded as
            in `adapt`; each of the algorithm's rates by name, float32 `[1]`.
        """
        deployed = self._deployed
        sent = [given[f"weight_{i}"] for i in range(len(deployed.sent))]
        config, most = self._config.algorithm, self._config.max_local_steps

        def draw(step):
            return [
                self._batch(tf.gather(given[f"x_{r}"], step), given[f"y_{r}"][step])
                for r in config.roles
            ]

        asked = num_steps[0]
        count = tf.clip_by_value(asked, 1, most)
        rates = {field: _rate(given[name]) for name, field in config.RATES.items()}
        algorithm = config.build(num_local_steps=count, **rates)
        with replaced_gradients(gradients.OVERRIDES):
            trained = local_update(
                deployed.sent_model.batch_loss, sent, draw, algorithm
            )
        deltas = algorithm.update(sent, trained.state)
        is_sound = tf.logical_and(
            tf.equal(asked, count), _is_finite([*deltas, *trained.measures.values()])
        )
        is_beyond = tf.range(most) >= count
        for role in config.roles:
            has_rows = tf.reduce_max(self._mask(given[f"y_{role}"]), 1) > 0.0
            is_sound = tf.logical_and(
                is_sound, tf.reduce_all(tf.logical_or(has_rows, is_beyond))
            )
        # Zeros of their shapes would be constants in the file.
        deltas = [tf.where(is_sound, delta, 0.0) for delta in deltas]
        return {
            **self._by_name("delta", deltas),
            **{name: mean[tf.newaxis] for name, mean in trained.measures.items()},
            "applied": tf.cast(is_sound, tf.int32)[tf.newaxis],
        }

    def _adaptation(self, learning_rate) -> tuple[Adaptation, Weights]:
        """How a step adapts, and where it is pulled to."""
        rate = _rate(learning_rate)
        own = dataclasses.replace(self._deployed.adaptation, learning_rate=rate)
        # Constants of the file, if they are needed.
        start = [tf.constant(w) for w in self._initial] if own.pull else self._initial
        return own, start

    def _keep(self, batch, loss, first, adapted, num_steps) -> dict[str, tf.Tensor]:
        """Assigns the adapted weights if they are sound, else the first."""
        has_rows = tf.reduce_max(batch.mask) > 0.0
        outputs = self._model.apply(adapted, batch.x)
        loss_after = self._model.loss(outputs, batch.y, batch.mask)
        # Finite weights do not do: their products with the rows may overflow.
        is_sound = tf.logical_and(
            tf.logical_and(has_rows, num_steps > 0),
            _is_finite([*adapted, outputs, loss_after]),
        )
        self._assign(_chosen(is_sound, adapted, first))
        applied = tf.cast(is_sound, tf.int32)
        return {"loss": loss[tf.newaxis], "applied": applied[tf.newaxis]}

    def _batch(self, x, y) -> Batch:
        """Rows whose label is -1, no class or NaN count for nothing, nor does their x.

        A NaN times a mask of 0 is NaN, so another row stands in such a row's place: a
        copy of rows, where a choice by number takes as long as a small model's step.
        """
        mask = self._mask(y)
        counts = mask > 0.0
        numbers = tf.range(mask.shape[0])
        # 0 where no row counts; such a batch changes nothing.
        last = tf.reduce_max(numbers * tf.cast(counts, tf.int32))
        x = tf.gather(x, tf.where(counts, numbers, last))
        if self._model.num_classes is None:
            y = tf.where(tf.equal(y, y), y, tf.zeros_like(y))
        return Batch(x, y, mask)

    def _mask(self, y) -> tf.Tensor:
        """1 for each row of labels `[..., batch, ...]` that counts, else 0."""
        if self._model.num_classes is None:
            inner = self._model.label_spec.shape.rank - 1
            # The smallest of zeros and ones: numbers alone equal themselves.
            same = tf.cast(tf.equal(y, y), tf.float32)
            return tf.reduce_min(same, list(range(-inner, 0))) if inner else same
        counts = tf.logical_and(y >= 0, y < self._model.num_classes)
        return tf.cast(counts, tf.float32)

    def _read(self) -> list[tf.Tensor]:
        return [variable.read_value() for variable in self._weights]

    def _assign(self, weights) -> dict[str, tf.Tensor]:
        for variable, weight in zip(self._weights, weights, strict=True):
            variable.assign(weight)
        return {"done": tf.constant([1])}

    def _by_name(self, prefix, tensors) -> dict[str, tf.Tensor]:
        return {f"{prefix}_{i}": tensor for i, tensor in enumerate(tensors)}


def _is_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether entries are numbers whose magnitudes sum to less than `_LARGEST`."""
    # No operation of the runtime tells NaN and infinity, but a sum has them, and
    # comparisons with a number tell.
    total = tf.add_n([tf.reduce_sum(tf.abs(tensor)) for tensor in tensors])
    return total < _LARGEST


def _chosen(condition, tensors, others) -> list[tf.Tensor]:
    return [tf.where(condition, t, o) for t, o in zip(tensors, others, strict=True)]


def _rate(value: tf.Tensor) -> tf.Tensor:
    """A learning rate from its input; a negative one counts as 0."""
    return tf.maximum(value[0], 0.0)


def _cross_entropy(logits, labels, mask):
    """`masked_cross_entropy` in operations that a device's runtime has."""
    log_p = tf.nn.log_softmax(logits)
    chosen = tf.one_hot(labels, logits.shape[-1], dtype=log_p.dtype)
    losses = -tf.reduce_sum(chosen * log_p, -1)
    return tf.reduce_sum(losses * mask) / tf.maximum(tf.reduce_sum(mask), 1.0)


_BUILT_IN_LOSSES: dict[Callable, Callable] = {masked_cross_entropy: _cross_entropy}
