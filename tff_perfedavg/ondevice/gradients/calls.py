"""Replacement gradients of function calls (`PartitionedCall`).

TensorFlow differentiates a called function (`tf.function` in a layer, and Keras'
convolutions of groups) by itself, with its own gradients; here the operations that it
consists of are differentiated.
"""

from __future__ import annotations

import tensorflow as tf

from tff_perfedavg.ondevice.gradients.registry import OVERRIDES, replaces


@replaces("PartitionedCall")
@replaces("StatefulPartitionedCall")
def _call(op, *dys):
    """Computes the function once more, in its caller's graph, and differentiates it."""
    inner = op.graph._get_function(op.get_attr("f").name).graph
    content = inner.as_graph_def()
    for node in content.node:
        if node.op in OVERRIDES:
            node.attr["_gradient_op_type"].s = OVERRIDES[node.op].encode()
    outputs = tf.graph_util.import_graph_def(
        content,
        input_map={
            t.name: given for t, given in zip(inner.inputs, op.inputs, strict=True)
        },
        # Behind the call's own are others once TensorFlow has differentiated it.
        return_elements=[t.name for t in inner.outputs[: len(op.outputs)]],
        name="call",
    )
    pairs = [(y, dy) for y, dy in zip(outputs, dys, strict=True) if dy is not None]
    return tf.gradients(
        [y for y, _ in pairs],
        list(op.inputs),
        grad_ys=[dy for _, dy in pairs],
        name="derivative",
    )
