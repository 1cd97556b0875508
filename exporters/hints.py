"""What the files of a quantized tower show that whoever runs it should know (``clipq.hints``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx

from clipq.bundle import TowerName
from clipq.cpu import MOST_SAFE_BITS
from clipq.exporters.onnx_file import size
from clipq.exporters.recipes import Recipe
from clipq.hints import Hint

# Of what a tower takes: a smaller token table is no news.
NOTABLE_SHARE = 0.5

# The least and the most of docs/gpu, ÷ the time of fp16 at batch 32 and 128, by what the rest is computed in.
MATMULINTEGER_TIMES = {"fp16": (1.9, 3.1), "fp32": (3.2, 5.0)}


def hints_of(model: onnx.ModelProto, recipe: Recipe, tower: TowerName) -> Iterator[Hint]:
    """Read off a quantized tower; what only its making shows, the quantizer adds to its ``TowerSource``."""
    options = recipe.options()
    # Half-precision pairs, and MatMulInteger, are for GPUs.
    for_cpu = options.get("floats", "fp32") == "fp32" and options.get("form", "qdq") == "qdq"
    if recipe.scheme.arithmetic == "integer" and for_cpu:
        if relus := _relus_between_pairs(model):
            yield Hint(code="float-relus", tower=tower, numbers={"relus": relus})
        weights, activations = _integer_products(model)
        if weights and recipe.scheme.weight_bits > MOST_SAFE_BITS:
            yield Hint(code="saturating-weights", tower=tower, numbers={"products": weights})
        if activations:
            yield Hint(code="saturating-attention", tower=tower, numbers={"products": activations})
    if options.get("form") == "matmulinteger":
        least, most = MATMULINTEGER_TIMES[options["floats"]]
        yield Hint(code="slow-matmulinteger", tower=tower, numbers={"least": least, "most": most})
    if recipe.scheme.weight_bits <= 8 and recipe.scheme.arithmetic != "simulated":
        yield from _token_table(model, tower)


def _relus_between_pairs(model: onnx.ModelProto) -> int:
    """How many ReLUs alone read a dequantized tensor and are quantized again behind them."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    dequantized = {node.output[0] for node in pairs if readers[node.output[0]] == 1}
    quantized = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return sum(
        node.op_type in ("Relu", "Clip") and node.input[0] in dequantized and node.output[0] in quantized
        for node in model.graph.node
    )


def _integer_products(model: onnx.ModelProto) -> tuple[int, int]:
    """How many products have integers on both sides: with a constant weight, and with another activation."""
    constants = {value.name for value in model.graph.initializer}
    pairs = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    factors = []
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            factors.append(node.input[1])
        elif node.op_type in ("MatMul", "Conv") and node.input[1] in pairs:
            factors.append(pairs[node.input[1]])
    weights = sum(factor in constants for factor in factors)
    return weights, len(factors) - weights


def _token_table(model: onnx.ModelProto, tower: TowerName) -> Iterator[Hint]:
    """The table of a tower most of whose bytes stay floating point in it."""
    bits = {onnx.TensorProto.FLOAT: 32, onnx.TensorProto.FLOAT16: 16}
    read = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    tables = [
        one for one in model.graph.initializer if one.name in read and one.data_type in bits and len(one.dims) == 2
    ]
    whole = sum(size(value) for value in model.graph.initializer)
    for table in tables:
        if size(table) > NOTABLE_SHARE * whole:
            megabytes = {"table_mb": round(size(table) / 1e6, 1), "tower_mb": round(whole / 1e6, 1)}
            numbers = {"bits": bits[table.data_type], **megabytes}
            yield Hint(code="float-token-table", tower=tower, numbers=numbers)
