"""Reads and finishes TensorFlow Lite files. Loads no TensorFlow."""

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
    """Returns the model of a file's content."""
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


def share_buffers(model: schema.ModelT) -> None:
    """Keeps constants that occur several times once, initial weights above all."""
    first: dict[object, int] = {}
    moved: dict[int, int] = {}
    kept: list[schema.BufferT] = []
    for number, buffer in enumerate(model.buffers):
        # Empty ones stay apart: number 0 has a meaning, others may be variables.
        content = None if buffer.data is None else np.asarray(buffer.data).tobytes()
        key = hashlib.sha256(content).digest() if content else number
        if key not in first:
            first[key] = len(kept)
            kept.append(buffer)
        moved[number] = first[key]
    model.buffers = kept
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = moved[tensor.buffer]
    for entry in model.metadata or ():
        entry.buffer = moved[entry.buffer]


def drop_names(model: schema.ModelT) -> None:
    """Forgets the names of tensors inside, a quarter of a small model's file."""
    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for number, tensor in enumerate(graph.tensors):
            if number not in ends:
                tensor.name = None


def add_metadata(model: schema.ModelT, name: str, content: bytes) -> None:
    """Adds a named entry to `Model.metadata`."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = name
    entry.buffer = len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]


def metadata(model: schema.ModelT, name: str) -> bytes | None:
    """Returns a named entry of `Model.metadata`, None if there is none."""
    for entry in model.metadata or ():
        if entry.name == name.encode():
            return np.asarray(model.buffers[entry.buffer].data, np.uint8).tobytes()
    return None


def pack(model: schema.ModelT) -> bytes:
    """Returns the content of a file."""
    for buffer in model.buffers:
        buffer.__class__ = _AlignedBuffer
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


class _AlignedBuffer(schema.BufferT):
    """A constant that begins where the runtime may read it without copying."""

    def Pack(self, builder):
        data = None
        if self.data is not None and len(self.data):
            content = np.asarray(self.data, np.uint8).tobytes()
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)
