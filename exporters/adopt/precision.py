"""How a foreign file is quantized, read off its products: which weights of how many bits, and what they multiply."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from clipq.bundle import TowerName
from clipq.onnx_graph import read_graph
from clipq.scheme import FP32, Arithmetic, Scheme

# Products of floats, whose factors may come from integers; and of integers, by the place of the weights.
_FLOAT = {"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedConv", "FusedGemm", "Attention"}
_INTEGER = {
    "MatMulInteger": 1, "ConvInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QAttention": 1,
    "QLinearMatMul": 3, "QLinearConv": 3, "QGemm": 3,
}  # fmt: skip
_DYNAMIC = {"MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
# Their weights stay in few bits, and are widened for the product.
_BLOCKS = {"MatMulNBits": None, "MatMulBnb4": 4, "MatMulFpQ4": 4}
# What a constant passes on its way to a product as it is.
_PASSES = {"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Cast", "Flatten"}
_TYPES = onnx.TensorProto
_BITS: dict[int, int] = {
    _TYPES.FLOAT: 32, _TYPES.DOUBLE: 64, _TYPES.FLOAT16: 16, _TYPES.BFLOAT16: 16, _TYPES.INT8: 8, _TYPES.UINT8: 8,
    _TYPES.INT16: 16, _TYPES.UINT16: 16, _TYPES.INT4: 4, _TYPES.UINT4: 4, _TYPES.FLOAT8E4M3FN: 8, _TYPES.FLOAT8E5M2: 8,
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A product with a constant: how many weights, of how many bits; bits of what they multiply; by which means."""

    weights: int
    weight_bits: int
    activation_bits: int
    method: str


def read_scheme(paths: dict[TowerName, Path]) -> tuple[Scheme, tuple[TowerName, ...], dict[str, Any]]:
    """The scheme of an engine's towers, which of them are quantized, and what was found in each, in words.

    Where several kinds are found, the one of most weights counts that is not 32 bits; mixtures are said in the words.
    """
    found = {tower: tuple(products(path)) for tower, path in paths.items()}
    kinds: Counter[tuple[int, int, str]] = Counter()
    for one in (one for some in found.values() for one in some):
        kinds[one.weight_bits, one.activation_bits, one.method] += one.weights
    quantized = Counter({kind: count for kind, count in kinds.items() if kind[:2] != (32, 32)})
    said: dict[str, Any] = {f"{tower}_products": _in_words(some) for tower, some in found.items()}
    towers = tuple(
        tower for tower, some in found.items() if any((p.weight_bits, p.activation_bits) != (32, 32) for p in some)
    )
    if not quantized:
        return FP32, tuple(paths), said
    (weights, activations, method), _ = quantized.most_common(1)[0]
    arithmetic: Arithmetic = "integer" if activations <= 8 and method != "fp8" else "float"
    return Scheme(weight_bits=weights, activation_bits=activations, arithmetic=arithmetic, method=method), towers, said


def products(path: Path) -> Iterator[Product]:
    """Every product of a file with constant weights."""
    model = read_graph(path)
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    yield from _Graph(model.graph).products()


class _Graph:
    """A graph's constants, and which node gives each value; those of the graph around it, too."""

    def __init__(self, graph: onnx.GraphProto, around: _Graph | None = None):
        self._nodes = graph.node
        self._constants: dict[str, tuple[tuple[int, ...], int]] = {} if around is None else dict(around._constants)
        self._constants |= {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer}
        self._makers: dict[str, onnx.NodeProto] = {} if around is None else dict(around._makers)
        self._makers |= {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value":
                    self._constants[node.output[0]] = (tuple(attribute.t.dims), attribute.t.data_type)

    def products(self) -> Iterator[Product]:
        for node in self._nodes:
            # Of branches and loops, where their weights may lie.
            for attribute in node.attribute:
                for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    yield from _Graph(inner, self).products()
            if node.op_type in _BLOCKS:
                yield self._of_blocks(node)
            elif node.op_type in _INTEGER:
                stored = self._constant(node.input[_INTEGER[node.op_type]])
                if stored is not None:
                    method = "dynamic" if node.op_type in _DYNAMIC else "static"
                    yield Product(math.prod(stored[0]), _BITS.get(stored[1], 0), 8, method)
            elif node.op_type in _FLOAT:
                for weights, other in ((node.input[1], node.input[0]), (node.input[0], node.input[1])):
                    if (stored := self._constant(weights)) is not None:
                        yield self._of_floats(stored, other)
                        break

    def _of_blocks(self, node: onnx.NodeProto) -> Product:
        said = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        bits = _BLOCKS[node.op_type] or int(said.get("bits", 4))
        # What it multiplies is known by the type of its scales.
        scales = self._constants.get(node.input[2])
        return Product(int(said["K"]) * int(said["N"]), bits, _BITS.get(scales[1], 32) if scales else 32, node.op_type)

    def _of_floats(self, stored: tuple[tuple[int, ...], int], other: str) -> Product:
        bits, (activations, how) = _BITS.get(stored[1], 0), self._width(other)
        if activations <= 8:
            return Product(math.prod(stored[0]), bits, activations, how)
        if bits < 16:
            return Product(math.prod(stored[0]), bits, activations, "weight-only")
        return Product(
            math.prod(stored[0]), bits, activations if bits == 32 else bits, "fp32" if bits == 32 else f"fp{bits}"
        )

    def _constant(self, name: str) -> tuple[tuple[int, ...], int] | None:
        """Shape and type in which the file stores a factor; None where it is no constant."""
        for _ in range(16):
            if name in self._constants:
                return self._constants[name]
            node = self._makers.get(name)
            if node is not None and node.op_type == "QuantizeLinear":
                # Weights that are stored as floats and rounded when the file is loaded, as ModelOpt leaves them.
                stored, kind = self._constants.get(node.input[0]), self._constants.get(node.input[2])
                return None if stored is None or kind is None else (stored[0], kind[1])
            if node is None or node.op_type not in (*_PASSES, "DequantizeLinear"):
                return None
            name = node.input[0]
        return None

    def _width(self, name: str) -> tuple[int, str]:
        """Bits of an activation, and how it came to so few."""
        for _ in range(16):
            node = self._makers.get(name)
            if node is not None and node.op_type == "DequantizeLinear":
                return self._quantized(node)
            if node is None or node.op_type not in _PASSES:
                return 32, ""
            name = node.input[0]
        return 32, ""

    def _quantized(self, dequantize: onnx.NodeProto) -> tuple[int, str]:
        """Of a DequantizeLinear behind an activation."""
        zero = self._constants.get(dequantize.input[2]) if len(dequantize.input) > 2 else None
        scale = self._constants.get(dequantize.input[1])
        kind = _TYPES.UINT8 if zero is None else zero[1]
        method = (
            "fp8" if kind in (_TYPES.FLOAT8E4M3FN, _TYPES.FLOAT8E5M2) else "static" if scale is not None else "dynamic"
        )
        return _BITS.get(kind, 8), method


def _in_words(found: Iterable[Product]) -> str:
    """``97 % W8A8 static, 3 % W32A32 fp32``: shares of the weights."""
    kinds: Counter[str] = Counter()
    for one in found:
        kinds[f"W{one.weight_bits}A{one.activation_bits} {one.method}"] += one.weights
    total = sum(kinds.values())
    said = ", ".join(f"{100 * count / total:.0f} % {kind}" for kind, count in kinds.most_common())
    return said or "none with weights that the file holds"
