"""An ONNX file's graph, and which files beside it hold its weights; the weights themselves are not read."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from clipq.errors import BundleError
from clipq.text_files import pointer_of_git_lfs

if TYPE_CHECKING:
    import onnx

# The key under which a tensor names the file that it lies in.
_LOCATION = "location"

# Operators that draw random numbers whatever they are told; and those that draw, or learn from what they are fed, where
# an attribute or an input of theirs says that they train.
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_TRAINED = {"Dropout", "BatchNormalization"}
# The numbers that ONNX gives to the fields of a model and of a graph.
_GRAPH, _FUNCTIONS, _NODE = 7, 25, 1


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file, the weights that lie in other files left there; raises BundleError where it is no such file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        if (pointer := pointer_of_git_lfs(path)) is not None:
            raise BundleError(pointer) from error
        raise BundleError(f"{path}: is no ONNX file, or a damaged one ({error}); make it again") from error
    # Protobuf takes much for a message: nothing at all, and many bytes that mean nothing.
    if not model.graph.node or not model.graph.output:
        raise BundleError(f"{path}: is an ONNX file without a graph; make it again")
    return model


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a model stores: initializers, and those of attributes, subgraphs and functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function)


def location(tensor: onnx.TensorProto) -> str | None:
    """The file that a tensor lies in, relative to the model's folder; None where it lies in the model's own."""
    # 1 is TensorProto.EXTERNAL.
    if tensor.data_location != 1:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == _LOCATION), "")


def data_files(folder: Path, file: str) -> tuple[str, ...]:
    """The files with weights of ``file``, as ``file`` itself is given: relative to ``folder``.

    Raises BundleError where one lies outside ``folder``.
    """
    path = folder / file
    if not _mentions(path, _LOCATION.encode()):
        return ()
    found = []
    for name in sorted({name for tensor in tensors(read_graph(path)) if (name := location(tensor)) is not None}):
        within = PurePosixPath(file).parent / name
        if not name or within.is_absolute() or ".." in within.parts or "\\" in name:
            raise BundleError(f"{path}: keeps weights in {name!r}, which lies outside the bundle; make it again")
        found.append(str(within))
    return tuple(found)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with its functions' nodes where they are called."""
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    return inline_local_functions(model)


def require_repeatable(path: Path) -> None:
    """Raise BundleError where a tower was exported as it is trained, so that it answers otherwise every time."""
    if not _names_an_operator(path, _RANDOM | _TRAINED):
        return
    # What a function is told stands where it is called.
    model = inlined(read_graph(path))
    nodes = list(_nodes(model.graph))
    values = {tensor.name: tensor for tensor in _of_graph(model.graph)}
    values |= {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant" and node.attribute}
    for node in nodes:
        if node.op_type in _RANDOM or (node.op_type in _TRAINED and _trains(node, values)):
            raise BundleError(
                f"{path}: answers otherwise every time, for {node.op_type} {node.name!r} is exported as it is trained; "
                "export the tower in evaluation mode (model.eval() in torch) again"
            )


def _trains(node: onnx.NodeProto, values: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node is told to train: what is no constant counts as told."""
    from onnx import numpy_helper

    if node.op_type == "BatchNormalization":
        return any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    if len(node.input) < 3 or not node.input[2]:
        return False
    told = values.get(node.input[2])
    return told is None or location(told) is not None or bool(numpy_helper.to_array(told).any())


def _names_an_operator(path: Path, operators: set[str]) -> bool:
    """Whether a model's nodes or functions hold one of these words; its weights are passed over, not read."""
    words = [operator.encode() for operator in operators]
    # Damaged files are the runtime's to refuse, in its words.
    with (
        suppress(ValueError, IndexError),
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for number, start, end in _fields(content, 0, len(content)):
            if number in (_GRAPH, _FUNCTIONS):
                parts = _fields(content, start, end) if number == _GRAPH else [(_NODE, start, end)]
                nodes = (content[first:last] for kind, first, last in parts if kind == _NODE)
                if any(word in node for node in nodes for word in words):
                    return True
    return False


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a protobuf message that has a length; raises ValueError for no message."""

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = content[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    at = start
    while at < end:
        key, at = number(at)
        kind = key & 7
        if kind == 2:
            size, at = number(at)
            if at + size > end:
                raise ValueError("a field ends behind its message")
            yield key >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = number(at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("no protobuf message")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, those of graphs within it too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _mentions(path: Path, word: bytes) -> bool:
    """Whether a file holds a word: what parsing gigabytes of weights would tell, without the time and the memory."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph)


def _of_nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(inner)
