"""ONNX files of any size: weights beside the graph where one file cannot hold them, and read when they are asked for.

Protobuf ends at 2 GB, and Python's keeps every value that a message ever had. So the weights of a large tower stay in
their file: ``load`` leaves them there, ``values_of`` reads one tensor, ``save`` copies them on one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from clipq.errors import BundleError
from clipq.onnx_graph import location, read_graph, tensors

# Weights of more bytes lie beside the graph: torch's own limit, with room for what runtimes add before 2 GB.
MOST_INLINE = 1536 * 2**20
# Smaller tensors stay in the graph all the same: shapes are inferred from them.
LEAST_OUTSIDE = 1024
# Where a tensor begins in its file: on a page, so that runtimes map it as it lies.
PAGE = 4096
# Says in memory, and never in a file, in which folder a tensor's file is.
_FOLDER = "basepath"
_NARROW = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "STRING": 0}


def load(path: Path) -> onnx.ModelProto:
    """A model, to be changed; where more than MOST_INLINE bytes of its weights lie outside, they stay there.

    Its initializers are read by ``values_of``. Raises BundleError where it is no ONNX file, or weights are missing.
    """
    model = read_graph(path)
    _require_constants(model)
    outside = [tensor for tensor in tensors(model) if location(tensor) is not None]
    for tensor in outside:
        tensor.external_data.add(key=_FOLDER, value=str(path.parent.absolute()))
    initializers = len(model.graph.initializer) if sum(map(size, outside)) > MOST_INLINE else 0
    # Those of attributes and subgraphs are few, and nobody who reads them asks where they lie.
    _inline(islice(tensors(model), initializers, None))
    return model


def values_of(tensor: onnx.TensorProto) -> NDArray[Any]:
    """A tensor's values, wherever they lie."""
    return numpy_helper.to_array(_read(tensor))


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Read all weights into the model, in place, for libraries that look for them there; returns the model."""
    _inline(tensors(model))
    return model


def without_weights(model: onnx.ModelProto, but: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a model whose larger initializers are inputs, all but some: enough to infer shapes from and to check.

    Libraries that read all weights into memory, several times over, are given a model so, and ``put_back`` undoes it.
    """
    copy = _without_initializers(model)
    for tensor in model.graph.initializer:
        if tensor.name in but or _stays_in_graph(tensor):
            copy.graph.initializer.append(_read(tensor))
        else:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def put_back(part: onnx.ModelProto, weights: Iterable[onnx.TensorProto]) -> onnx.ModelProto:
    """Make inputs that ``without_weights`` made of weights initializers again, in place; returns the model."""
    inputs = {value.name: value for value in part.graph.input}
    for tensor in weights:
        if tensor.name in inputs:
            part.graph.input.remove(inputs[tensor.name])
            part.graph.initializer.append(tensor)
    return part


def exceeds_a_file(model: onnx.ModelProto) -> bool:
    """Whether a model's weights are more than MOST_INLINE, wherever they lie."""
    return sum(map(size, model.graph.initializer)) > MOST_INLINE


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, which stays as it is: in one file, or with its weights in ``path.data`` above MOST_INLINE."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not exceeds_a_file(model):
        onnx.save(inline(model), str(path))
        return
    copy, data = _without_initializers(model), path.with_name(f"{path.name}.data")
    with data.open("wb") as stream:
        for tensor in model.graph.initializer:
            read = _read(tensor)
            copy.graph.initializer.append(read if _stays_in_graph(tensor) else _written(read, stream, data.name))
    onnx.save(copy, str(path))


def _require_constants(model: onnx.ModelProto) -> None:
    """Take weights from a graph's inputs, where files of old exporters list them: nobody gives them other values."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
        # Older files must list them.
        model.ir_version = max(model.ir_version, 4)


def _inline(some: Iterable[onnx.TensorProto]) -> None:
    for tensor in some:
        if location(tensor) is not None:
            tensor.CopyFrom(_read(tensor))


def _written(tensor: onnx.TensorProto, stream: IO[bytes], file: str) -> onnx.TensorProto:
    """Append a tensor's values to a file; the tensor that says where they are."""
    stream.seek(-(-stream.tell() // PAGE) * PAGE)
    start = stream.tell()
    # Whole bytes as they lie, for types of 4 bits; numpy knows the others.
    stream.write(tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes())
    stored = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stored.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", start), ("length", stream.tell() - start)):
        stored.external_data.add(key=key, value=str(value))
    return stored


def _read(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor with its values, wherever they lie."""
    if location(tensor) is None:
        return tensor
    said = {entry.key: entry.value for entry in tensor.external_data}
    path, most = Path(said[_FOLDER], said.get("location", "")), size(tensor)
    try:
        with path.open("rb") as stream:
            stream.seek(int(said.get("offset", 0)))
            data = stream.read(int(said.get("length", most)))
    except ValueError as error:
        raise BundleError(f"{path}: {tensor.name} lies nowhere in it ({error}); make the bundle again") from error
    if len(data) != most:
        raise BundleError(f"{path}: has {len(data)} of {tensor.name}'s {most} bytes; make the bundle again")
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data)


def size(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values as a file holds them; of texts, which stay in the graph, none."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    bits = _NARROW.get(onnx.TensorProto.DataType.Name(tensor.data_type))
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-count * bits // 8)


def _stays_in_graph(tensor: onnx.TensorProto) -> bool:
    return size(tensor) < LEAST_OUTSIDE


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    copy: onnx.ModelProto = _copied_but(model, "graph")
    copy.graph.MergeFrom(_copied_but(model.graph, "initializer"))
    return copy


def _copied_but(message: Any, field: str) -> Any:
    """A copy of a protobuf message without one of its fields, which is not copied on the way."""
    copy = type(message)()
    for described, value in message.ListFields():
        if described.name != field:
            mine = getattr(copy, described.name)
            mine.MergeFrom(value) if hasattr(mine, "MergeFrom") else setattr(copy, described.name, value)
    return copy
