"""An ONNX file's graph, and which files beside it hold its weights; the weights themselves are not read."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from clipq.errors import BundleError
from clipq.text_files import pointer_of_git_lfs

if TYPE_CHECKING:
    import onnx

# The key under which a tensor names the file that it lies in.
_LOCATION = "location"


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file, the weights that lie in other files left there; raises BundleError where it is no such file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        if (pointer := pointer_of_git_lfs(path)) is not None:
            raise BundleError(pointer) from error
        raise BundleError(f"{path}: is no ONNX file, or a damaged one ({error}); export the bundle again") from error
    # Protobuf takes much for a message: nothing at all, and many bytes that mean nothing.
    if not model.graph.node or not model.graph.output:
        raise BundleError(f"{path}: is an ONNX file without a graph; export the bundle again")
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
            raise BundleError(f"{path}: keeps weights in {name!r}, which lies outside the bundle; export it again")
        found.append(str(within))
    return tuple(found)


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
