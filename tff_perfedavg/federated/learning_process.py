"""Composes a client work with TFF's own parts into a learning process."""

from __future__ import annotations

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.federated.client_work import model_weights_type
from tff_perfedavg.models.model import Model

_State = tff.learning.templates.LearningAlgorithmState


def compose(
    model: Model,
    client_work: tff.templates.MeasuredProcess,
    server_optimizer: tff.learning.optimizers.Optimizer | None,
    model_aggregator: tff.aggregators.AggregationFactory | None,
    seed: int,
) -> tff.learning.templates.LearningProcess:
    """Composes distributor, client work, aggregator and finalizer.

    This is `tff.learning.templates.compose_learning_process`, state and metrics
    alike, for client data of any form: TFF's own insists on sequences.

        distributor -> client work -> aggregator -> finalizer

    Args:
      model: gives the initial weights, `model.init(seed)`.
      client_work: gives each user's update and weight.
      server_optimizer: applies the aggregated update; by default SGD with a rate
        of 1, so that the mean of the users' weights becomes the server's.
      model_aggregator: aggregates updates; by default their weighted mean. An
        unweighted factory counts every user alike, and a user left out as an
        update of zeros.
      seed: of the initial weights.
    """
    if server_optimizer is None:
        server_optimizer = tff.learning.optimizers.build_sgdm(1.0)
    if model_aggregator is None:
        model_aggregator = tff.aggregators.MeanFactory()
    elif isinstance(model_aggregator, tff.aggregators.UnweightedAggregationFactory):
        model_aggregator = tff.aggregators.as_weighted_aggregator(model_aggregator)
    weights_type = model_weights_type(model)
    distributor = tff.learning.templates.build_broadcast_process(weights_type)
    aggregator = model_aggregator.create(
        weights_type.trainable, tff.TensorType(np.float32)
    )
    finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
        server_optimizer, weights_type
    )
    initial = model.init(seed)

    @tff.tensorflow.computation
    def initial_weights():
        return tff.learning.models.ModelWeights(
            trainable=tuple(tf.constant(w) for w in initial), non_trainable=()
        )

    @tff.federated_computation
    def initialize():
        return tff.federated_zip(
            _State(
                tff.federated_eval(initial_weights, tff.SERVER),
                distributor.initialize(),
                client_work.initialize(),
                aggregator.initialize(),
                finalizer.initialize(),
            )
        )

    @tff.federated_computation(
        initialize.type_signature.result, client_work.next.type_signature.parameter[2]
    )
    def next_fn(state, clients):
        distributed = distributor.next(state.distributor, state.global_model_weights)
        worked = client_work.next(state.client_work, distributed.result, clients)
        aggregated = aggregator.next(
            state.aggregator, worked.result.update, worked.result.update_weight
        )
        finalized = finalizer.next(
            state.finalizer, state.global_model_weights, aggregated.result
        )
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

    state_type = initialize.type_signature.result.member

    @tff.tensorflow.computation(state_type)
    def get_model_weights(state):
        return state.global_model_weights

    @tff.tensorflow.computation(state_type, weights_type)
    def set_model_weights(state, weights):
        return _State(
            weights,
            state.distributor,
            state.client_work,
            state.aggregator,
            state.finalizer,
        )

    @tff.tensorflow.computation(state_type)
    def get_hparams(state):
        return finalizer.get_hparams(state.finalizer)

    @tff.tensorflow.computation(state_type, get_hparams.type_signature.result)
    def set_hparams(state, hparams):
        return _State(
            state.global_model_weights,
            state.distributor,
            state.client_work,
            state.aggregator,
            finalizer.set_hparams(state.finalizer, hparams),
        )

    return tff.learning.templates.LearningProcess(
        initialize,
        next_fn,
        get_model_weights,
        set_model_weights,
        get_hparams_fn=get_hparams,
        set_hparams_fn=set_hparams,
    )
