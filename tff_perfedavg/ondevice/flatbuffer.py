"""Flatbuffers of TensorFlow Lite files: metadata, deduplication, serialization.

Loads no TensorFlow.
"""

from __future__ import annotations

import hashlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

CARD = "TFF_PERFEDAVG_CARD"
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_BUILTIN_NAMES = {
    code: name
    for name, code in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}


def read(content: bytes) -> schema.ModelT:
    """Unpacks a file's content into the schema's object API."""
    return schema.ModelT.InitFromPackedBuf(content, 0)


def operations(model: schema.ModelT) -> list[str]:
    """Returns the names of the operations; custom ones, and Flex, as `CUSTOM name`."""
    names = set()
    for code in model.operatorCodes:
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = _BUILTIN_NAMES[builtin]
        if builtin == schema.BuiltinOperator.CUSTOM:
            name = f"{name} {code.customCode.decode()}"
        names.add(name)
    return sorted(names)


def shrink(model: schema.ModelT) -> None:
    """Deduplicates buffers and removes fields that no runtime needs, in place.

    That is a fifth of a small model's file. Constants that occur several times are kept
    once, initial weights above all.
    """
    first: dict[bytes, int] = {b"": 0}
    moved: dict[int, int] = {}
    # Number 0 is the buffer of all that has no content.
    kept: list[schema.BufferT] = [schema.BufferT()]
    for number, buffer in enumerate(model.buffers):
        content = b"" if buffer.data is None else np.asarray(buffer.data).tobytes()
        key = hashlib.sha256(content).digest() if content else b""
        if key not in first:
            first[key] = len(kept)
            kept.append(buffer)
        moved[number] = first[key]
    model.buffers = kept
    for entry in model.metadata or ():
        entry.buffer = moved[entry.buffer]
    entries = {signature.subgraphIndex for signature in model.signatureDefs}
    for index, graph in enumerate(model.subgraphs):
        ends = {*graph.inputs, *graph.outputs} if index in entries else set()
        for number, tensor in enumerate(graph.tensors):
            tensor.buffer = moved[tensor.buffer]
            if number not in ends:
                tensor.name = None
            if tensor.quantization is not None and tensor.quantization.scale is None:
                tensor.quantization = None
        for operator in graph.operators:
            operator.mutatingVariableInputs = None
            operator.intermediates = None


def add_metadata(model: schema.ModelT, name: str, content: bytes) -> None:
    """Adds a named entry to `Model.metadata`, in place.

    Args:
      model: the unpacked file.
      name: the entry's.
      content: the entry's bytes.
    """
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = name
    entry.buffer = len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]


def metadata(model: schema.ModelT, name: str) -> bytes | None:
    """Returns a named entry of `Model.metadata`, None if there is none.

    Args:
      model: the unpacked file.
      name: the entry's.
    """
    for entry in model.metadata or ():
        if entry.name == name.encode():
            return np.asarray(model.buffers[entry.buffer].data, np.uint8).tobytes()
    return None


def pack(model: schema.ModelT) -> bytes:
    """Serializes a model to the content of a `.tflite` file."""
    for buffer in model.buffers:
        buffer.__class__ = _AlignedBuffer
    builder = _SharingBuilder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """A flatbuffer builder that writes equal vectors, shapes above all, only once."""

    def __init__(self, initial_size: int):
        super().__init__(initial_size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x):
        if x.dtype == np.uint8:  # A constant's content: `shrink` has one of each.
            return super().CreateNumpyVector(x)
        key = x.dtype.str, x.tobytes()
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]


class _AlignedBuffer(schema.BufferT):
    """A buffer aligned to 16 bytes, which the runtime reads without copying."""

    def Pack(self, builder):
        if self.data is not None:
            builder.Prep(_ALIGNMENT, len(self.data))
        return super().Pack(builder)
