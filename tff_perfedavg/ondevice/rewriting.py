"""SavedModel rewriting for conversion to built-in TensorFlow Lite operations alone."""

from __future__ import annotations

import pathlib

import tensorflow as tf
from tensorflow.core.framework import function_pb2, node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2

# By it the converter makes one operation of a recurrent layer, which keeps its state
# from call to call: an answer would depend on the rows asked about before.
_FUSED = "api_implements"
# Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 7.1.26: an absolute
# error of at most 1.5e-7, which is that of float32.
_ERF_SHIFT = 0.3275911
_ERF_POLYNOMIAL = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _softsign(x):
    return x / (1.0 + tf.abs(x))


def _erf(x):
    size = tf.abs(x)
    t = 1.0 / (1.0 + _ERF_SHIFT * size)
    polynomial = tf.zeros_like(t)
    for coefficient in _ERF_POLYNOMIAL:
        polynomial = (polynomial + coefficient) * t
    return tf.sign(x) * (1.0 - polynomial * tf.exp(-tf.square(size)))


# What is put in the place of operations that are not built in.
_INSTEAD = {"Softsign": _softsign, "Erf": _erf}
REWRITTEN = frozenset(_INSTEAD)


def rewrite(directory: pathlib.Path | str) -> None:
    """Rewrites the functions of a saved model in place.

    Args:
      directory: where `tf.saved_model.save` wrote it.
    """
    path = pathlib.Path(directory) / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    library = saved.meta_graphs[0].graph_def.library
    needed = set()
    for function in library.function:
        function.attr.pop(_FUSED, None)
        for node in function.node_def:
            if node.op in _INSTEAD:
                needed.add(node.op)
                _call(node, function)
    library.function.extend(_definition(op_type) for op_type in sorted(needed))
    path.write_bytes(saved.SerializeToString())


def _name(op_type: str) -> str:
    return f"tff_perfedavg_{op_type.lower()}"


def _definition(op_type: str) -> function_pb2.FunctionDef:
    """Returns the replacement function of an operation."""
    function = tf.function(_INSTEAD[op_type], autograph=False)
    # Of any shape, so that one serves all.
    traced = function.get_concrete_function(tf.TensorSpec(None, tf.float32))
    definition = function_pb2.FunctionDef()
    definition.CopyFrom(traced.function_def)
    definition.signature.name = _name(op_type)
    return definition


def _call(node: node_def_pb2.NodeDef, function: function_pb2.FunctionDef) -> None:
    """Turns an operation of one input and one output into a call of a function."""
    dtype, name = node.attr["T"].type, _name(node.op)
    node.op = "PartitionedCall"
    del node.attr["T"]
    node.attr["f"].func.name = name
    for attribute in ("Tin", "Tout"):
        node.attr[attribute].list.type.append(dtype)
    # Outputs are known by a name that is the operation's own.
    for other in function.node_def:
        for place, given in enumerate(other.input):
            other.input[place] = _output_of_call(given, node.name)
    for key, given in function.ret.items():
        function.ret[key] = _output_of_call(given, node.name)


def _output_of_call(tensor: str, name: str) -> str:
    """Returns an output tensor's name after its operation became a call."""
    return f"{name}:output:0" if tensor.startswith(f"{name}:") else tensor
