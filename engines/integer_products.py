"""The integer products of a tower as ONNX Runtime runs it on x86, with something of ours between its parts.

The graph that ONNX Runtime optimized is cut at its products of unsigned activations and signed weights. The parts run
in ONNX Runtime; the products are ours, from the integers that enter them, and so is the scaling behind them, as ONNX
Runtime's kernels do it step by step: with exact products the outputs have the bits of the engine itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clipq.engines.base import Array
from clipq.engines.ort import ON_CPU, OrtEngine
from clipq.engines.pair_sums import Weights
from clipq.errors import EngineError

# Operators with one signed factor, and where their inputs stand: activations, their scale and zero point, weights and
# theirs, what a number of the output is worth and its zero point, bias.
_LAYOUTS: dict[str, tuple[int | None, ...]] = {
    "QLinearConv": (0, 1, 2, 3, 4, 5, 6, 7, 8),
    "QLinearMatMul": (0, 1, 2, 3, 4, 5, 6, 7, None),
    "QGemm": (0, 1, 2, 3, 4, 5, 7, 8, 6),
    "MatMulIntegerToFloat": (0, 2, 4, 1, 3, 5, None, None, 6),
    "MatMulInteger": (0, None, 2, 1, None, 3, None, None, None),
}
_PARTS = ("activations", "scale", "zero", "weights", "weight_scale", "weight_zero", "out_scale", "out_zero", "bias")

# What ONNX Runtime puts behind the name of a node that it made anew.
_TOKEN = re.compile(r"(_token_\d+)+$")

# What multiplies: called with a product, its weights (one of its groups) and the rows of activations that meet them.
Multiply = Callable[["Product", Weights, Array], Array]


@dataclass(frozen=True)
class Product:
    """One node with an integer product that is exact on some CPUs and saturates on others; ``parts`` names inputs."""

    name: str
    op: str
    output: str
    parts: Mapping[str, str]
    attributes: Mapping[str, Any]
    constants: Mapping[str, Array]

    @cached_property
    def groups(self) -> tuple[Weights, ...]:
        """The weights of each group, inner × outputs."""
        values = self.constants[self.parts["weights"]]
        if self.op != "QLinearConv":
            return (Weights(np.ascontiguousarray(values.T if self.attributes.get("transB") else values)),)
        # ONNX Runtime's order in a kernel's window: position by position, channels within.
        inner = values.reshape(len(values), values.shape[1], -1).transpose(0, 2, 1).reshape(len(values), -1)
        return tuple(Weights(np.ascontiguousarray(part.T)) for part in np.split(inner, self.attributes.get("group", 1)))

    def compute(self, values: Mapping[str, Array], multiply: Multiply) -> Array:
        """The node's output, from the values of its inputs that are no constants."""
        given = {part: self.constants[name] if name in self.constants else values[name] for part, name in self._named}
        activations = given["activations"]
        zero = int(given["zero"].item()) if "zero" in given else 0
        if self.op == "QLinearConv":
            rows, spatial = _windows(activations, self, zero)
        else:
            if self.attributes.get("transA"):
                activations = activations.T
            rows = [activations.reshape(-1, activations.shape[-1])]
            spatial = activations.shape[:-1]
        sums = np.concatenate(
            [
                _without_zero_points(multiply(self, weights, own), weights, own, zero, given.get("weight_zero"))
                for weights, own in zip(self.groups, rows, strict=True)
            ],
            axis=1,
        )
        found = self._scaled(sums, given).reshape(*spatial, -1)
        channels_first = self.op == "QLinearConv" and not self.attributes.get("channels_last")
        return np.ascontiguousarray(np.moveaxis(found, -1, 1)) if channels_first else found

    @property
    def _named(self) -> Iterator[tuple[str, str]]:
        return ((part, name) for part, name in self.parts.items() if name)

    def _scaled(self, sums: Array, given: Mapping[str, Array]) -> Array:
        """Integer sums as the node's output: as they are, as floating point, or quantized again."""
        bias = given.get("bias")
        if bias is not None and bias.dtype == np.int32:
            sums, bias = sums + bias, None
        if "scale" not in given:
            return sums
        scale = given["scale"].reshape(-1) * given["weight_scale"].reshape(-1)
        if self.op == "QGemm":
            scale = scale * np.float32(self.attributes.get("alpha", 1.0))
        if "out_scale" not in given:
            floats = sums.astype(np.float32) * scale
            return floats if bias is None else floats + bias
        kind = given["out_zero"].dtype
        zero, limits = int(given["out_zero"].item()), np.iinfo(kind)
        floats = sums.astype(np.float32) * (scale / given["out_scale"].reshape(-1))
        whole = np.rint(np.clip(floats, np.float32(limits.min - zero), np.float32(limits.max - zero)))
        return (whole.astype(np.int32) + zero).astype(kind)


def _without_zero_points(sums: Array, weights: Weights, rows: Array, zero: int, weight_zero: Array | None) -> Array:
    """Sums of (activation − zero) · (weight − zero), from those of the bytes themselves."""
    if zero:
        sums = sums - np.int32(zero) * weights.values.sum(axis=0, dtype=np.int32)
    if weight_zero is not None and weight_zero.any():
        of_rows = rows.sum(axis=1, dtype=np.int32) - np.int32(zero * rows.shape[1])
        sums = sums - of_rows[:, None] * weight_zero.astype(np.int32).reshape(-1)
    return sums


def _windows(images: Array, product: Product, fill: int) -> tuple[list[Array], tuple[int, ...]]:
    """What each place of a convolution's output looks at, a row each, by group; and the output's shape but channels.

    Beyond the image is the zero point, as ONNX Runtime has it.
    """
    attributes = product.attributes
    if not attributes.get("channels_last"):
        images = np.moveaxis(images, 1, -1)
    kernel = product.constants[product.parts["weights"]].shape[2:]
    rank = len(kernel)
    strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads = attributes.get("pads") or [0] * (2 * rank)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    around = [(0, 0), *zip(pads[:rank], pads[rank:], strict=True), (0, 0)]
    padded = np.pad(images, around, constant_values=fill)
    axes = tuple(range(1, rank + 1))
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    every = (slice(None), *(slice(None, None, step) for step in strides), slice(None))
    seen = seen[(*every, *(slice(None, None, step) for step in dilations))]
    seen = np.moveaxis(seen, rank + 1, -1)
    spatial = seen.shape[: rank + 1]
    groups = np.split(seen, attributes.get("group", 1), axis=-1)
    return [np.ascontiguousarray(part).reshape(int(np.prod(spatial)), -1) for part in groups], spatial


class IntegerProducts:
    """A tower cut at its integer products; ``products`` are those whose kernels are not exact on every x86 CPU.

    Raises EngineError where ONNX Runtime refuses the tower, or it has products that are not understood.
    """

    def __init__(self, path: Path, *, config: Mapping[str, str] | None = None):
        import onnx
        from onnx import numpy_helper

        with TemporaryDirectory() as folder:
            with OrtEngine(path, ON_CPU, threads=1, trace=Path(folder), config=config) as engine:
                self.inputs, self.outputs = engine.inputs, engine.outputs
            self._model = onnx.load(str(Path(folder) / "optimized.onnx"))
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        operators = {node.output[0]: node.op_type for node in self._model.graph.node}
        nodes = list(_spelled_out(self._model.graph.node))
        found: list[Product] = []
        for node in nodes:
            names = _parts_of(node)
            constants = {
                name: numpy_helper.to_array(self._tensors[name]) for name in names.values() if name in self._tensors
            }
            if _saturates(path, node, names, constants):
                attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
                name = _TOKEN.sub("", node.name or node.output[0])
                found.append(Product(name, operators[node.output[0]], node.output[0], names, attributes, constants))
        self.products = tuple(found)
        self._steps = _cut(nodes, self.products, {spec.name for spec in self.outputs}, set(self._tensors))
        self._sessions: dict[int, Any] = {}

    def run(self, feed: Mapping[str, Array], multiply: Multiply) -> dict[str, Array]:
        """The tower's outputs for one batch, with ``multiply`` in the place of its integer products."""
        values = dict(feed)
        for step in self._steps:
            if step.nodes:
                session = self._session(step, values)
                given = {entry.name: values[entry.name] for entry in session.get_inputs()}
                values.update(zip(step.wanted, session.run(list(step.wanted), given), strict=True))
            for product in step.products:
                values[product.output] = product.compute(values, multiply)
        return {spec.name: values[spec.name] for spec in self.outputs}

    def _session(self, step: _Step, values: Mapping[str, Array]) -> Any:
        """The session of a part; the types of its inputs are known when the first batch gets to it."""
        if step.index in self._sessions:
            return self._sessions[step.index]
        import onnxruntime
        from onnx import ValueInfoProto, helper

        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None)
            for name in step.needed
        ]
        constants = {name for node in step.nodes for name in node.input if name in self._tensors}
        graph = helper.make_graph(
            step.nodes,
            f"part {step.index}",
            inputs,
            [ValueInfoProto(name=name) for name in step.wanted],
            [self._tensors[name] for name in sorted(constants)],
        )
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # It is optimized already, and a pool of threads for each part would be many.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions share no public base
            raise EngineError(f"a part of the optimized tower does not load by itself: {error}") from error
        return self._sessions.setdefault(step.index, session)

    def close(self) -> None:
        """Free the parts' sessions."""
        self._sessions.clear()


@dataclass(frozen=True)
class _Step:
    """Nodes that run in one session, and the products that are computed behind them."""

    index: int
    nodes: list[Any]
    products: list[Product]
    needed: tuple[str, ...]
    wanted: tuple[str, ...]


def _parts_of(node: Any) -> dict[str, str]:
    layout = _LAYOUTS.get(node.op_type, ())
    return {
        part: node.input[place]
        for part, place in zip(_PARTS, layout, strict=False)
        if place is not None and place < len(node.input) and node.input[place]
    }


def _saturates(path: Path, node: Any, names: Mapping[str, str], constants: Mapping[str, Array]) -> bool:
    """Whether a node's kernel adds pairs in 16 bits on CPUs without VNNI: unsigned times signed, and not depthwise."""
    if not names:
        if node.op_type == "QAttention":
            raise EngineError(f"{path}: products within {node.op_type} ({node.name}) are not looked into")
        return False
    zero, weight_zero = constants.get(names.get("zero", "")), constants.get(names.get("weight_zero", ""))
    weights = constants.get(names["weights"])
    kind = weights if weights is not None else weight_zero
    if (zero is not None and zero.dtype != np.uint8) or (kind is not None and kind.dtype != np.int8):
        return False
    if weights is None:
        raise EngineError(f"{path}: {node.name} multiplies by signed activations, which is not looked into")
    attributes = {entry.name: entry for entry in node.attribute}
    if "auto_pad" in attributes and attributes["auto_pad"].s not in (b"", b"NOTSET"):
        raise EngineError(f"{path}: {node.name} leaves its padding to the runtime, which is not looked into")
    outputs_per_group = len(weights) // (attributes["group"].i if "group" in attributes else 1)
    return not (node.op_type == "QLinearConv" and outputs_per_group == 1 and weights.shape[1] == 1)


def _spelled_out(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes with the two halves of every DynamicQuantizeMatMul apart: its kernel does the same one after the other."""
    from onnx import helper

    for node in nodes:
        if node.op_type != "DynamicQuantizeMatMul":
            yield node
            continue
        source, weights, weight_scale, weight_zero, bias = [*node.input, *[""] * 5][:5]
        integers, scale, zero = (f"{node.name}_{part}" for part in ("integers", "scale", "zero"))
        yield helper.make_node("DynamicQuantizeLinear", [source], [integers, scale, zero], name=f"{node.name}_quantize")
        inputs = [integers, weights, scale, weight_scale, zero, weight_zero, bias]
        yield helper.make_node("MatMulIntegerToFloat", inputs, node.output, name=node.name, domain="com.microsoft")


def _cut(nodes: list[Any], products: tuple[Product, ...], outputs: set[str], constants: set[str]) -> list[_Step]:
    """Nodes in as few steps as there are products one behind the other."""
    ours = {product.output: product for product in products}
    depth: dict[str, int] = {}
    at: dict[int, int] = {}
    for index, node in enumerate(nodes):
        at[index] = max((depth.get(name, 0) for name in node.input), default=0)
        behind = at[index] + (node.output[0] in ours)
        depth.update(dict.fromkeys(node.output, behind))
    _with_readers(nodes, at, constants, outputs)
    steps = []
    made_in = {name: at[index] for index, node in enumerate(nodes) for name in node.output}
    last: dict[str, int] = dict.fromkeys(outputs, len(nodes))
    for index, node in enumerate(nodes):
        for name in node.input:
            # A product reads what its own step made.
            last[name] = max(last.get(name, 0), at[index] + (node.output[0] in ours))
    for level in range(max(at.values()) + 1):
        members = [node for index, node in enumerate(nodes) if at[index] == level]
        inside = [node for node in members if node.output[0] not in ours]
        made = {name for node in inside for name in node.output}
        read = dict.fromkeys(name for node in inside for name in node.input if name)
        needed = tuple(name for name in read if name not in made and name not in constants)
        wanted = tuple(name for name in made_in if name in made and last.get(name, 0) > level)
        steps.append(
            _Step(level, inside, [ours[node.output[0]] for node in members if node.output[0] in ours], needed, wanted)
        )
    return steps


def _with_readers(nodes: list[Any], at: dict[int, int], constants: set[str], outputs: set[str]) -> None:
    """Move nodes of constants alone to the step of their first reader: else their outputs are handed on every batch."""
    fixed = set(constants)
    alone = []
    for index, node in enumerate(nodes):
        if node.input and all(name in fixed or not name for name in node.input):
            fixed.update(node.output)
            alone.append(index)
    first: dict[str, int] = {}
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if index in alone and not outputs & set(node.output):
            at[index] = min((first[name] for name in node.output if name in first), default=at[index])
        for name in node.input:
            first[name] = min(first.get(name, at[index]), at[index])
