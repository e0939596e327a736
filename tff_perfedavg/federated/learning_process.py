"""Composition of a client work and TFF's own parts into a learning process."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.federated.client_work import server_weights, weights_type_of

_State = tff.learning.templates.LearningAlgorithmState


def compose(
    initial: Sequence[np.ndarray],
    client_work: tff.templates.MeasuredProcess,
    server_optimizer: tff.learning.optimizers.Optimizer | None,
    model_aggregator: tff.aggregators.AggregationFactory | None,
    num_fixed: int = 0,
) -> tff.learning.templates.LearningProcess:
    """Composes a learning process of distributor, client work, aggregator, finalizer.

    This is `tff.learning.templates.compose_learning_process`, state and metrics
    alike, for client data of any form: TFF's own insists on sequences.

        distributor -> client work -> aggregator -> finalizer

    Args:
      initial: what the server begins with, the model's weights as a rule.
      client_work: gives each user's update and weight.
      server_optimizer: applies the aggregated update; by default SGD with a rate
        of 1, so that the mean of the users' weights becomes the server's.
      model_aggregator: aggregates updates; by default their weighted mean. An
        unweighted factory counts every user alike, and a user left out as an
        update of zeros.
      num_fixed: how many of the last of `initial` never change.
    """
    weights_type = weights_type_of(initial, num_fixed)
    parts = _Parts.of(weights_type, client_work, server_optimizer, model_aggregator)
    initialize = _build_initialize(parts, server_weights(initial, num_fixed))
    state_type = initialize.type_signature.result.member

    @tff.tensorflow.computation(state_type)
    def get_model_weights(state):
        return state.global_model_weights

    @tff.tensorflow.computation(state_type, parts.weights_type)
    def set_model_weights(state, weights):
        return _State(
            weights,
            state.distributor,
            state.client_work,
            state.aggregator,
            state.finalizer,
        )

    get_hparams, set_hparams = _build_hparams(parts, state_type)
    return tff.learning.templates.LearningProcess(
        initialize,
        _build_next(parts, initialize.type_signature.result),
        get_model_weights,
        set_model_weights,
        get_hparams_fn=get_hparams,
        set_hparams_fn=set_hparams,
    )


def _build_hparams(
    parts: _Parts, state_type: tff.Type
) -> tuple[tff.Computation, tff.Computation]:
    @tff.tensorflow.computation(state_type)
    def get_hparams(state):
        return parts.finalizer.get_hparams(state.finalizer)

    @tff.tensorflow.computation(state_type, get_hparams.type_signature.result)
    def set_hparams(state, hparams):
        return _State(
            state.global_model_weights,
            state.distributor,
            state.client_work,
            state.aggregator,
            parts.finalizer.set_hparams(state.finalizer, hparams),
        )

    return get_hparams, set_hparams


class _Parts(NamedTuple):
    """The processes a learning process is composed of, and what they pass around."""

    weights_type: tff.StructWithPythonType
    distributor: tff.learning.templates.DistributionProcess
    client_work: tff.templates.MeasuredProcess
    aggregator: tff.templates.AggregationProcess
    finalizer: tff.learning.templates.FinalizerProcess

    @classmethod
    def of(cls, weights_type, client_work, server_optimizer, model_aggregator):
        """Builds TFF's own parts; None takes its defaults."""
        if server_optimizer is None:
            server_optimizer = tff.learning.optimizers.build_sgdm(1.0)
        if model_aggregator is None:
            model_aggregator = tff.aggregators.MeanFactory()
        elif isinstance(model_aggregator, tff.aggregators.UnweightedAggregationFactory):
            model_aggregator = tff.aggregators.as_weighted_aggregator(model_aggregator)
        templates = tff.learning.templates
        return cls(
            weights_type,
            templates.build_broadcast_process(weights_type),
            client_work,
            model_aggregator.create(weights_type.trainable, tff.TensorType(np.float32)),
            templates.build_apply_optimizer_finalizer(server_optimizer, weights_type),
        )


def _build_initialize(parts: _Parts, initial: Any) -> tff.Computation:
    @tff.tensorflow.computation
    def initial_weights():
        return tf.nest.map_structure(tf.constant, initial)

    @tff.federated_computation
    def initialize():
        return tff.federated_zip(
            _State(
                tff.federated_eval(initial_weights, tff.SERVER),
                parts.distributor.initialize(),
                parts.client_work.initialize(),
                parts.aggregator.initialize(),
                parts.finalizer.initialize(),
            )
        )

    return initialize


def _build_next(parts: _Parts, state_type: tff.Type) -> tff.Computation:
    @tff.federated_computation(
        state_type, parts.client_work.next.type_signature.parameter[2]
    )
    def next_fn(state, clients):
        weights = state.global_model_weights
        distributed = parts.distributor.next(state.distributor, weights)
        worked = parts.client_work.next(state.client_work, distributed.result, clients)
        aggregated = parts.aggregator.next(
            state.aggregator, worked.result.update, worked.result.update_weight
        )
        finalized = parts.finalizer.next(state.finalizer, weights, aggregated.result)
        new_state = tff.federated_zip(
            _State(
                finalized.result,
                distributed.state,
                worked.state,
                aggregated.state,
                finalized.state,
            )
        )
        metrics = tff.federated_zip(
            collections.OrderedDict(
                distributor=distributed.measurements,
                client_work=worked.measurements,
                aggregator=aggregated.measurements,
                finalizer=finalized.measurements,
            )
        )
        return tff.learning.templates.LearningProcessOutput(new_state, metrics)

    return next_fn
