"""Insert QuantizeLinear / DequantizeLinear pairs around chosen linears and convolutions.

ONNX Runtime's own quantizer gives the quantized value of a tensor to *all* its readers, residual adds included; here
each chosen node has a pair of its own and everything else goes on reading floating point. A convolution's output is
quantized too, for no runtime has an integer convolution that writes floating point.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clipq.errors import RecipeError
from clipq.exporters.half import storable_in_half
from clipq.exporters.onnx_file import values_of
from clipq.exporters.placement import Placement
from clipq.exporters.recipes import Int8Static, Static

Range = tuple[float, float]
# From here on scales may be half precision.
HALF_SCALES_OPSET = 19


@dataclass(frozen=True)
class Quantizer:
    """Scale and zero point of a tensor, or one of each per index of ``axis``: real = scale · (integer − zero point)."""

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None = None

    def scale_beside(self, tensor: NDArray[Any]) -> NDArray[np.float32]:
        """The scale in the shape in which numpy multiplies it into ``tensor``."""
        if self.axis is None:
            return self.scale
        return self.scale.reshape([-1 if index == self.axis else 1 for index in range(tensor.ndim)])


def activation_quantizer(low: float, high: float, symmetric: bool, bits: int = 8) -> Quantizer:
    """Signed with zero point 0 over ``[-m, m]``, or unsigned over ``[low, high]``; 0 is exact in both."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        return Quantizer(np.array(max(-low, high, 1e-8) / top, np.float32), np.array(0, np.int8))
    top = 2**bits - 1
    scale = np.float32(max(high - low, 1e-8) / top)
    return Quantizer(np.array(scale), np.array(np.clip(np.rint(-low / scale), 0, top), np.uint8))


def weight_quantizer(
    weight: NDArray[np.float32], axis: int | None, bits: int = 8, least: NDArray[Any] | float = 0.0
) -> Quantizer:
    """Symmetric and signed, a scale per index of ``axis`` or one for all, and none below ``least``."""
    others = tuple(index for index in range(weight.ndim) if index != axis) if axis is not None else None
    peak = np.abs(weight).max(axis=others)
    scale = np.maximum(np.where(peak > 1e-30, peak, 1e-8) / (2 ** (bits - 1) - 1), least)
    return Quantizer(np.asarray(scale, np.float32), np.zeros(np.shape(scale), np.int8), axis)


class QdqInserter:
    """Rewrites one tower; ``tensors`` are the activations whose ranges ``insert`` will ask for."""

    def __init__(self, model: onnx.ModelProto, placement: Placement, recipe: Static):
        self._graph = model.graph
        self._chosen = set(placement.nodes)
        self._symmetric = recipe.activations == "symmetric"
        self._half = isinstance(recipe, Int8Static) and recipe.floats == "fp16"
        # In half precision a bias keeps floating point: its scale, a product of two, would vanish. So it does in files
        # for TensorRT 8.6 (opset 17), which takes no 32-bit integers.
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._float_bias = self._half or opset < HALF_SCALES_OPSET
        if self._half and opset < HALF_SCALES_OPSET:
            raise RecipeError(
                f"{recipe.name}: floats=fp16 needs ONNX opset {HALF_SCALES_OPSET}, the tower has {opset} (for "
                "TensorRT 8.6, which chooses half precision itself): use floats=fp32"
            )
        self._per_channel = recipe.granularity == "per-channel"
        self._weight_bits, self._activation_bits = recipe.weight_bits, recipe.activation_bits
        self._constants = {value.name: value for value in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._copies: dict[str, int] = defaultdict(int)

    @property
    def tensors(self) -> list[str]:
        """Inputs of the chosen nodes, and outputs of the chosen convolutions after a ReLU that follows."""
        names = []
        for node in self._graph.node:
            if node.name in self._chosen:
                names += [name for name in node.input[:2] if name not in self._constants]
                if node.op_type == "Conv":
                    names.append(self._clipped(node))
        return list(dict.fromkeys(names))

    def insert(self, ranges: dict[str, Range]) -> None:
        """Rewrite the graph in place."""
        nodes: list[onnx.NodeProto] = []
        absorbed: set[str] = set()
        quantized_outputs: set[str] = set()
        for node in list(self._graph.node):
            if node.name in absorbed:
                continue
            if node.name not in self._chosen:
                nodes.append(node)
                continue
            if node.input[1] not in self._constants:
                nodes += self._pairs_of_product(node, ranges)
                nodes.append(node)
                continue
            source = node.input[0]
            if source not in quantized_outputs or len(self._readers[source]) > 1:
                quantizer = self._activation_quantizer(ranges[source])
                pair, name = self._pair(source, f"{source}_for_{node.name}", self._apart(source, quantizer))
                nodes += pair
                node.input[0] = name
            else:
                quantizer = self._activation_quantizer(ranges[source])
            nodes += self._constants_of(node, quantizer)
            nodes.append(node)
            if node.op_type == "Conv":
                clipped = self._clipped(node)
                output = node.output[0]
                if clipped != output and not self._symmetric:
                    # Asymmetric ranges begin at 0 after a ReLU: saturating does what the node did.
                    absorbed.add(self._readers[output][0].name)
                    output = clipped
                node.output[0] = f"{output}_float"
                quantizer = self._activation_quantizer(ranges[clipped])
                pair, _ = self._pair(node.output[0], output, quantizer, result=output)
                nodes += pair
                quantized_outputs.add(output)
                self._copies[output] += 1
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _pairs_of_product(self, node: onnx.NodeProto, ranges: dict[str, Range]) -> list[onnx.NodeProto]:
        """Quantize both factors of a product of two activations."""
        nodes = []
        for position, source in enumerate(list(node.input)):
            quantizer = self._apart(source, self._activation_quantizer(ranges[source]))
            pair, node.input[position] = self._pair(source, f"{source}_for_{node.name}_{position}", quantizer)
            nodes += pair
        return nodes

    def _activation_quantizer(self, found: Range) -> Quantizer:
        return self._storable(activation_quantizer(*found, self._symmetric, self._activation_bits))

    def _storable(self, quantizer: Quantizer) -> Quantizer:
        """The quantizer with a scale that half precision holds exactly, where the tower will be half precision."""
        scale = storable_in_half(quantizer.scale) if self._half else quantizer.scale
        return replace(quantizer, scale=np.asarray(scale, np.float32))

    def _clipped(self, convolution: onnx.NodeProto) -> str:
        """The convolution's output, or that of the ReLU that alone reads it: what it cuts off needs no range."""
        readers = self._readers[convolution.output[0]]
        if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
            return str(readers[0].output[0])
        return str(convolution.output[0])

    def _apart(self, source: str, quantizer: Quantizer) -> Quantizer:
        """A scale one float32 step larger for every further pair on a tensor.

        ONNX Runtime merges equal pairs, and then neither turns the merged one to uint8 nor fuses its readers.
        """
        scale = quantizer.scale
        if self._half:
            return quantizer
        for _ in range(self._copies[source]):
            scale = np.nextafter(scale, np.float32(np.inf))
        self._copies[source] += 1
        return replace(quantizer, scale=np.asarray(scale, np.float32))

    def _pair(
        self, source: str, stem: str, quantizer: Quantizer, result: str | None = None
    ) -> tuple[list[onnx.NodeProto], str]:
        result = result or f"{stem}_dequantized"
        scale = self._constant(f"{stem}_scale", quantizer.scale)
        parameters = [scale, self._constant(f"{stem}_zero", quantizer.zero_point)]
        quantize = helper.make_node("QuantizeLinear", [source, *parameters], [f"{stem}_quantized"], name=f"{stem}_Q")
        dequantize = helper.make_node(
            "DequantizeLinear", [f"{stem}_quantized", *parameters], [result], name=f"{stem}_DQ"
        )
        return [quantize, dequantize], result

    def _constants_of(self, node: onnx.NodeProto, source: Quantizer) -> list[onnx.NodeProto]:
        """Dequantized weight, and for a convolution its bias (int32, scale = input scale · weight scale)."""
        weight = values_of(self._constants[node.input[1]]).astype(np.float32)
        axis = (0 if node.op_type == "Conv" else 1) if self._per_channel else None
        bias = self._integer_bias(node)
        least: Any = 0.0
        if bias is not None:
            # At the scale of weights that are next to nothing beside the bias, as in a pruned channel, 32 bits would
            # cut the bias off.
            least = np.abs(bias) / (2**30 * source.scale)
            least = least if self._per_channel else least.max()
        quantizer = self._storable(weight_quantizer(weight, axis, self._weight_bits, least))
        top = 2 ** (self._weight_bits - 1) - 1
        integers = np.clip(np.rint(weight / quantizer.scale_beside(weight)), -top, top).astype(np.int8)
        nodes = [*self._dequantized(node, 1, "weight", integers, quantizer)]
        if bias is not None:
            scale = np.broadcast_to(source.scale * quantizer.scale, bias.shape).astype(np.float32)
            limit = np.iinfo(np.int32)
            levels = np.clip(np.rint(bias / scale), limit.min, limit.max).astype(np.int32)
            of_bias = Quantizer(scale, np.zeros(bias.shape, np.int32), axis=0)
            nodes.extend(self._dequantized(node, 2, "bias", levels, of_bias))
        return nodes

    def _integer_bias(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        """A convolution's constant bias, where it is to be integers."""
        if node.op_type != "Conv" or self._float_bias or len(node.input) < 3 or node.input[2] not in self._constants:
            return None
        return values_of(self._constants[node.input[2]]).astype(np.float64)

    def _dequantized(
        self, node: onnx.NodeProto, position: int, part: str, integers: NDArray[Any], quantizer: Quantizer
    ) -> list[onnx.NodeProto]:
        stem = f"{node.name}_{part}"
        inputs = [
            self._constant(f"{stem}_quantized", integers),
            self._constant(f"{stem}_scale", quantizer.scale),
            self._constant(f"{stem}_zero", quantizer.zero_point),
        ]
        node.input[position] = f"{stem}_dequantized"
        attributes: dict[str, Any] = {} if quantizer.axis is None else {"axis": quantizer.axis}
        name = f"{stem}_DQ"
        return [helper.make_node("DequantizeLinear", inputs, [f"{stem}_dequantized"], name=name, **attributes)]

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name


class FakeQuantInserter(QdqInserter):
    """The same places and levels at any width, in floating point: weights rounded, activations by Round and Clip.

    Runtimes have no Q/DQ of 3 or 6 bits, and none of theirs could be told apart from an integer engine.
    """

    def _pair(
        self, source: str, stem: str, quantizer: Quantizer, result: str | None = None
    ) -> tuple[list[onnx.NodeProto], str]:
        result = result or f"{stem}_dequantized"
        zero = float(quantizer.zero_point)
        lowest, highest = -zero, 2**self._activation_bits - 1 - zero
        if self._symmetric:
            lowest, highest = -(2 ** (self._activation_bits - 1)), 2 ** (self._activation_bits - 1) - 1
        scale = self._constant(f"{stem}_scale", quantizer.scale)
        bounds = [
            self._constant(f"{stem}_{end}", np.array(value, np.float32))
            for end, value in (("lowest", lowest), ("highest", highest))
        ]
        names = [f"{stem}_{part}" for part in ("scaled", "rounded", "clipped")]
        nodes = [
            helper.make_node("Div", [source, scale], [names[0]], name=f"{stem}_Div"),
            helper.make_node("Round", [names[0]], [names[1]], name=f"{stem}_Round"),
            helper.make_node("Clip", [names[1], *bounds], [names[2]], name=f"{stem}_Clip"),
            helper.make_node("Mul", [names[2], scale], [result], name=f"{stem}_Mul"),
        ]
        return nodes, result

    def _dequantized(
        self, node: onnx.NodeProto, position: int, part: str, integers: NDArray[Any], quantizer: Quantizer
    ) -> list[onnx.NodeProto]:
        values = integers * quantizer.scale_beside(integers)
        node.input[position] = self._constant(f"{node.name}_{part}_rounded", values.astype(np.float32))
        return []
