"""Graphs in the operators of ONNX opset 17, the last that TensorRT 8.6 reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clipq.engines.tensorrt_library import TensorRtLibrary
from clipq.errors import BuildError
from clipq.exporters.onnx_file import exceeds_a_file, load, save

OPSET, IR_VERSION = 17, 8
_REFUSALS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    RuntimeError,
)
_LATER_TYPES = {
    kind for name, kind in onnx.TensorProto.DataType.items() if name in ("INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2")
}
_CONSTANTS = {"half": 0.5, "one": 1.0, "root_half": 0.5**0.5}


@contextmanager
def readable(path: Path, library: TensorRtLibrary) -> Iterator[Path]:
    """An ONNX file in operators that the library reads: the file itself, or the same function written for 8.6.

    Raises BuildError where there is no such form.
    """
    if library.features.recent_opsets:
        yield path
        return
    with TemporaryDirectory() as folder:
        written = Path(folder) / path.name
        try:
            model = load(path)
            if exceeds_a_file(model):
                raise BuildError("ONNX's converter takes no weights beside the graph; build with TensorRT 10 or later")
            save(as_opset_17(model), written)
        except BuildError as error:
            raise BuildError(f"{library.name}, {path.name}: {error}") from error
        yield written


def as_opset_17(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function in opset 17: ``Gelu`` written out by ``Erf``, integer weights as floats that are quantized.

    The rest is ONNX's own converter's.

    Changes the model it is given. Raises BuildError where an operator, or a type it is given, came later.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    _keep_weights_as_floats(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Gelu" and node.domain in ("", "ai.onnx"):
            nodes += _written_out(node, types.get(node.input[0], onnx.TensorProto.FLOAT), graph)
        elif node.op_type == "Shape" and node.attribute:
            nodes += _sliced_shape(node, graph)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        for attribute in list(node.attribute):
            # Reductions have it from opset 18 on; the converter leaves it, though it only says the default.
            if attribute.name == "noop_with_empty_axes" and attribute.i == 0:
                node.attribute.remove(attribute)
    try:
        converted = onnx.version_converter.convert_version(model, OPSET)
        converted.ir_version = IR_VERSION
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(converted, check_type=True, strict_mode=True))
    except _REFUSALS as error:
        first = " ".join(str(error).split())[:300]
        raise BuildError(
            f"not a graph of ONNX opset {OPSET}, which is what TensorRT 8.6 reads ({first}); {_way_out(model)}"
        ) from error
    return converted


def _way_out(model: onnx.ModelProto) -> str:
    """What to do about a graph that has no form in opset 17."""
    values = {value.name: value.data_type for value in model.graph.initializer}
    if set(values.values()) & _LATER_TYPES:
        return "it has no such weights: take fp16 or int8-static:floats=fp32,activations=symmetric"
    scales = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    if any(values.get(scale) == onnx.TensorProto.FLOAT16 for scale in scales):
        return "half-precision scales came later: take int8-static:floats=fp32,activations=symmetric"
    return f"export the checkpoint with --opset {OPSET}"


def _keep_weights_as_floats(graph: onnx.GraphProto) -> None:
    """INT8 weights behind ``DequantizeLinear``, as floats with both operators behind: the same integers come of them.

    TensorRT 8.6 takes no integers as constants where it compiles whole transformers (``convertMyelinWeightsToFp32``).
    """
    held = {value.name: value for value in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    turned: set[str] = set()
    for node in graph.node:
        constant = node.op_type == "DequantizeLinear" and all(name in held for name in node.input)
        # Blocks with scales of their own came later than opset 17, and are refused as they are.
        if constant and held[node.input[0]].data_type == onnx.TensorProto.INT8 and len(held[node.input[1]].dims) < 2:
            turned.add(node.input[0])
            settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            integers, scale, *zeros = (numpy_helper.to_array(held[name]) for name in node.input)
            floats = _dequantized(integers, scale, zeros[0] if zeros else None, settings.get("axis", 1))
            graph.initializer.append(numpy_helper.from_array(floats, f"{node.output[0]}_floats"))
            inputs, node.input[0] = [f"{node.output[0]}_floats", *node.input[1:]], f"{node.output[0]}_integers"
            nodes.append(helper.make_node("QuantizeLinear", inputs, [node.input[0]], f"{node.name}_again", **settings))
        nodes.append(node)
    # Those that something else reads too.
    read = {name for node in nodes for name in node.input}
    kept = [value for value in graph.initializer if value.name not in turned or value.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _dequantized(
    integers: NDArray[np.int8], scale: NDArray[np.float32], zero: NDArray[np.int8] | None, axis: int
) -> NDArray[np.float32]:
    """``DequantizeLinear`` with one scale, or one along an axis."""
    along = [-1 if place == axis % integers.ndim else 1 for place in range(integers.ndim)] if scale.ndim else []
    shifted = integers.astype(np.float32)
    if zero is not None:
        shifted -= zero.astype(np.float32).reshape(along)
    return shifted * scale.reshape(along)


def _sliced_shape(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Part of a shape, which TensorRT 8.6 takes for the whole: it does not read where the part begins and ends."""
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    (y,) = node.output
    names = {name: f"{y}_{name}" for name in ("start", "end")}
    for name, default in (("start", 0), ("end", 2**31 - 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([bounds.get(name, default)], np.int64), names[name]))
    return [
        helper.make_node("Shape", [node.input[0]], [f"{y}_whole"], name=f"{node.name}_whole"),
        helper.make_node("Slice", [f"{y}_whole", names["start"], names["end"]], [y], name=node.name),
    ]


def _written_out(node: onnx.NodeProto, kind: int, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """x · ½ · (1 + erf(x · √½))."""
    if any(attribute.name == "approximate" and attribute.s == b"tanh" for attribute in node.attribute):
        raise BuildError(f"{node.name}: Gelu by tanh is not written out; export the checkpoint with --opset {OPSET}")
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    known = {value.name for value in graph.initializer}
    names = {}
    for name, number in _CONSTANTS.items():
        names[name] = f"gelu_{name}_{np.dtype(dtype).name}"
        if names[name] not in known:
            graph.initializer.append(numpy_helper.from_array(np.array(number, dtype), names[name]))
    (x,), (y,) = node.input, node.output
    return [
        helper.make_node("Mul", [x, names["root_half"]], [f"{y}_scaled"], name=f"{node.name}_scaled"),
        helper.make_node("Erf", [f"{y}_scaled"], [f"{y}_erf"], name=f"{node.name}_erf"),
        helper.make_node("Add", [f"{y}_erf", names["one"]], [f"{y}_shifted"], name=f"{node.name}_shifted"),
        helper.make_node("Mul", [x, names["half"]], [f"{y}_halved"], name=f"{node.name}_halved"),
        helper.make_node("Mul", [f"{y}_halved", f"{y}_shifted"], [y], name=f"{node.name}_product"),
    ]
