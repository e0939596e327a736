"""Which operations a device's runtime has: a model is refused before conversion."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.ondevice.gradients import FREEZE, layer_of

_IMAGES_AS_SEQUENCES = (
    "reshape images to [height * width, channels] before a GroupNormalization and back "
    "behind it, which normalizes the same numbers"
)
# What to do about layers known to be out of a device's reach. A test holds that each
# works.
_ALTERNATIVES = {
    "FusedBatchNorm": "use GroupNormalization in the place of LayerNormalization "
    f"({_IMAGES_AS_SEQUENCES}), and freeze BatchNormalization with layer.trainable = "
    "False",
    "TensorList": "use Conv1D layers, or an LSTM or SimpleRNN with unroll=True",
    "SplitV": "use an LSTM or SimpleRNN with unroll=True in the place of a GRU",
    "Erf": "use tf.keras.activations.gelu with approximate=True",
    "Softplus": "use elu or relu",
    "Softsign": "use tanh",
    "Selu": "use elu",
    "Sum": f"a device sums over at most four axes: {_IMAGES_AS_SEQUENCES}",
    "Einsum": "use Attention in the place of MultiHeadAttention, and Dense in that of "
    "EinsumDense",
    "NotEqual": "leave out Masking and mask_zero",
    "ShapeN": "use a convolution without groups",
    "Conv3D": "use Conv2D layers",
    "SpaceToBatchND": "use a convolution without dilation",
    "ResizeNearestNeighborGrad": "use Conv2DTranspose with a stride",
    "ResizeBilinearGrad": "use Conv2DTranspose with a stride",
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
        remedy = next(
            (
                text
                for start, text in _ALTERNATIVES.items()
                if operation.type.startswith(start)
            ),
            "replace the layer" if is_forward else f"replace the layer, or {FREEZE}",
        )
        raise errors.ModelError(
            f"{model_name!r}: layer {layer_of(name)!r} needs the operation "
            f"{operation.type}, which a device's runtime lacks; {remedy}."
        )


def _is_convertible(operation: tf.Operation) -> bool:
    if operation.type == "FusedBatchNormV3":
        return not operation.get_attr("is_training")
    if operation.type == "Sum":
        # XNNPACK, which LiteRT uses, fails to take over sums of more axes.
        return operation.inputs[0].shape.rank <= 4
    return operation.type in _CONVERTIBLE


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
    Abs AddN AddV2 All AssignVariableOp AvgPool BatchMatMulV2 BiasAdd
    BroadcastGradientArgs BroadcastTo Cast ConcatOffset ConcatV2 Const Conv2D
    Conv2DBackpropInput DepthwiseConv2dNative DivNoNan DynamicStitch Elu Equal Exp
    ExpandDims Fill FloorDiv FloorMod GatherV2 Greater GreaterEqual Identity
    IdentityN InvertPermutation LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd
    LogicalNot LogicalOr MatMul Max MaxPool Maximum Mean Min Minimum MirrorPad Mul
    Neg NoOp OneHot OnesLike Pack Pad PadV2 PartitionedCall Placeholder Pow
    PreventGradient Prod Range Rank ReadVariableOp RealDiv Relu Relu6 Reshape
    ResizeBilinear ResizeNearestNeighbor Rsqrt Select SelectV2 Shape Sigmoid Sign
    Size Slice Softmax Split Sqrt Square SquaredDifference Squeeze
    StatefulPartitionedCall StatelessWhile StopGradient StridedSlice Sub Sum Tanh
    Tile Transpose Unpack VarHandleOp While ZerosLike
    """.split()  # noqa: SIM905 - a hundred lines otherwise
)
