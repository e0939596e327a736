"""Compiler for TFF's workers: fuses a computation's parts into one for each stage.

A worker pays for each part: it costs some 0.1 ms, an aggregation as much again for
every client, and TFF's own compiler leaves a round in some fifteen parts, with an
aggregation for each thing summed. `consolidate` leaves one part for each thing done:
what the server sends, what a client does, how results are summed, what the server makes
of the sum.
"""

from __future__ import annotations

import logging

import tensorflow as tf
import tensorflow_federated as tff

_mapreduce = tff.backends.mapreduce
# Reasons for which a round was left as it is, and how much of one is told.
_told: set[str] = set()
_SHOWN = 200


def compile_computation(
    computation: tff.framework.ConcreteComputation,
) -> tff.framework.ConcreteComputation:
    """Compiles for a worker; secure sums become plain sums, as in TFF's test context.

    TFF's runtime has no secure sum. What users would send is that of one, its value
    types and its modular arithmetic included, but nothing is hidden.
    """
    plain = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    return tff.backends.native.desugar_and_transform_to_native(consolidate(plain))


def consolidate(
    computation: tff.framework.ConcreteComputation,
) -> tff.framework.ConcreteComputation:
    """Fuses a round's computation into the map-reduce form, one part for each stage.

        prepare at the server -> broadcast -> work at the clients -> one aggregation
        -> update at the server

    Args:
      computation: any; a round's takes the server's state and the clients' values, and
        returns the new state and something else at the server.

    Returns:
      A computation with the same type, and the same values; `computation` itself where
      it is no round, or where this would give something else: what the server computes
      before the broadcast is computed anew after it, so it must not be random.
    """
    if not _is_round(computation.type_signature):
        return computation
    try:
        form = _mapreduce.get_map_reduce_form_for_computation(computation, _untouched())
    except Exception as e:
        # A broadcast that depends on an aggregation, for one; TFF has many ways to say
        # so, without a class in common. What is left as it is, is right in any case.
        _tell_once(e)
        return computation
    if form.securely_aggregates_tensors or _is_stateful(form.prepare):
        return computation

    @tff.federated_computation(computation.type_signature.parameter)
    def one_round(arg):
        state, values = arg[0], arg[1]
        sent = tff.federated_broadcast(tff.federated_map(form.prepare, state))
        results = tff.federated_map(form.work, (values, sent))
        aggregated = tff.federated_aggregate(
            results[0], form.zero(), form.accumulate, form.merge, form.report
        )
        # The empty structures stand for what is summed securely.
        output = tff.federated_map(form.update, (state, (aggregated, (), (), ())))
        names = tff.structure.name_list_with_nones(computation.type_signature.result)
        return tff.structure.Struct(zip(names, (output[0], output[1]), strict=True))

    # As annotated, Python containers included.
    return tff.framework.ConcreteComputation.with_type(
        one_round, computation.type_signature
    )


def _tell_once(error: Exception) -> None:
    reason = f"{type(error).__name__}: {str(error)[:_SHOWN]}"
    if reason not in _told:
        _told.add(reason)
        logging.getLogger(__name__).warning(
            "A round runs in TFF's parts, which is slower, since it could not be made "
            "four (%s).",
            reason,
        )


def _is_round(signature: tff.FunctionType) -> bool:
    return _placements(signature.parameter) == [tff.SERVER, tff.CLIENTS] and (
        _placements(signature.result) == [tff.SERVER, tff.SERVER]
    )


def _placements(type_spec: tff.Type | None) -> list:
    if not isinstance(type_spec, tff.StructType):
        return []
    elements = [element for _, element in tff.structure.iter_elements(type_spec)]
    return [getattr(element, "placement", None) for element in elements]


def _untouched() -> tf.compat.v1.ConfigProto:
    """The worker optimizes graphs itself; TFF's aggressive settings only take time."""
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config


def _is_stateful(computation: tff.framework.ConcreteComputation) -> bool:
    """Whether a TensorFlow computation may give something else when it runs again."""
    proto = tff.framework.ConcreteComputation.get_proto(computation)
    graph_def = tf.compat.v1.GraphDef()
    proto.tensorflow.graph_def.Unpack(graph_def)
    if graph_def.library.function:
        # Not looked into.
        return True
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
    return any(operation.op_def.is_stateful for operation in graph.get_operations())
