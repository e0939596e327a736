"""Check of a model's operations against those of TensorFlow Lite, before conversion."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.ondevice.gradients import FREEZE, layer_of
from tff_perfedavg.ondevice.rewriting import REWRITTEN

_UNROLL = f"Build recurrent layers with unroll=True, use Conv1D layers, or {FREEZE}"
# What to do about layers known to be out of a device's reach. A test holds that each
# works.
_ALTERNATIVES = {
    "EmptyTensorList": _UNROLL,
    "TensorListPop": _UNROLL,
    "BatchMatMulV2": "Multiply vectors by a Multiply layer and "
    "Lambda(lambda x: tf.reduce_sum(x, -1, keepdims=True)) in the place of Dot",
    "Sum": "A device sums over tensors of at most six axes: reshape to fewer before it",
    "ResizeNearestNeighborGrad": "Use Conv2DTranspose with a stride",
    "ResizeBilinearGrad": "Use Conv2DTranspose with a stride",
}


def check_operations(
    function: tf.types.experimental.ConcreteFunction,
    model_name: str,
    *,
    is_forward: bool = False,
) -> None:
    """Raises `ModelError`, naming the layer, if an operation would need Flex.

    Args:
      function: a signature's.
      model_name: for the message.
      is_forward: whether the function takes no gradient, so that a frozen layer needs
        the operation all the same.
    """
    for operation, name in _all_operations(function):
        if _is_convertible(operation):
            continue
        instead = remedy(operation.type, is_forward=is_forward)
        raise errors.ModelError(
            f"{model_name!r}: layer {layer_of(name)!r} needs the operation "
            f"{operation.type}, which a device's runtime lacks. {instead}."
        )


def remedy(op_type: str, *, is_forward: bool = False) -> str:
    """Returns advice on a layer whose operation is unsupported, a sentence.

    Args:
      op_type: the operation's.
      is_forward: whether a frozen layer needs it all the same.
    """
    for start, text in _ALTERNATIVES.items():
        if op_type.startswith(start):
            return text
    return "Replace the layer" if is_forward else f"Replace the layer, or {FREEZE}"


def _is_convertible(operation: tf.Operation) -> bool:
    if operation.type == "Sum":
        # XNNPACK, which LiteRT uses, fails to take over sums of more axes.
        return operation.inputs[0].shape.rank <= 6
    return operation.type in _CONVERTIBLE or operation.type in REWRITTEN


def _all_operations(function) -> Iterator[tuple[tf.Operation, str]]:
    """The operations of a function, then those within loops and calls, and names."""
    graphs = [(function.graph, "")]
    while graphs:
        graph, prefix = graphs.pop(0)
        for operation in graph.get_operations():
            yield operation, prefix + operation.name
            for attribute in ("body", "cond", "f"):
                if attribute in operation.node_def.attr:
                    inner = graph._get_function(operation.get_attr(attribute).name)
                    # Inside a call, names begin anew.
                    path = f"{operation.name}/" if attribute == "f" else ""
                    graphs.append((inner.graph, prefix + path))


# What TensorFlow's converter turns into built-in operations, or into none.
_CONVERTIBLE = frozenset(
    """
    Abs AddN AddV2 All Any AssignVariableOp AvgPool BatchMatMulV2 BatchToSpaceND
    BiasAdd BroadcastGradientArgs BroadcastTo Cast ConcatOffset ConcatV2 Const Conv2D
    Conv2DBackpropInput Conv3D DepthwiseConv2dNative DivNoNan DynamicStitch Einsum Elu
    Equal Exp ExpandDims Fill FloorDiv FloorMod FusedBatchNormV3 GatherV2 Greater
    GreaterEqual Identity IdentityN InvertPermutation LeakyRelu Less LessEqual Log
    LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool Maximum Mean Min
    Minimum MirrorPad Mul Neg NoOp NotEqual OneHot OnesLike Pack Pad PadV2
    PartitionedCall Placeholder Pow PreventGradient Prod Range Rank ReadVariableOp
    RealDiv Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Rsqrt
    Select SelectV2 Selu Shape Sigmoid Sign Size Slice Softmax Softplus SpaceToBatchND
    Split SplitV Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall
    StatelessWhile StopGradient StridedSlice Sub Sum Tanh TensorListFromTensor
    TensorListGetItem TensorListReserve TensorListSetItem TensorListStack Tile
    Transpose Unpack VarHandleOp While ZerosLike
    """.split()  # noqa: SIM905 - a hundred lines otherwise
)
