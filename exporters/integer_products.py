"""Q/DQ linears rewritten as MatMulInteger, for runtimes that have no integer kernel for Q/DQ.

ONNX Runtime's CUDA provider runs Q/DQ as quantize and dequantize kernels around a floating-point GEMM, but it has
``MatMulInteger`` on int8: ``DQ(Q(x)) · DQ(w)`` becomes ``Cast(MatMulInteger(Q(x), w)) · (scale of x · scale of w)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from clipq.exporters.onnx_file import values_of


def with_integer_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite, in place, every MatMul of a symmetric int8 Q/DQ pair and a symmetric int8 constant; returns the model.

    The sums are rescaled in float32 even where the tower is half precision: they reach 10 ** 7, half ends at 65504.
    """
    graph = model.graph
    constants = {value.name: value for value in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        found = _quantized_factors(node, producer, constants) if node.op_type == "MatMul" else None
        if found is None:
            nodes.append(node)
            continue
        left, right = found
        # In float64 first: the product of two small scales is smaller still.
        scale = _values(constants, left.input[1]).astype(np.float64) * _values(constants, right.input[1])
        half = _values(constants, left.input[1]).dtype == np.float16
        name, output = f"{node.name}_scale", node.output[0]
        rescaled = f"{output}_float32" if half else output
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), name))
        factors = [left.input[0], right.input[0]]
        nodes += [
            helper.make_node("MatMulInteger", factors, [f"{output}_int32"], name=f"{node.name}_integer"),
            helper.make_node(
                "Cast", [f"{output}_int32"], [f"{output}_cast"], name=f"{node.name}_cast", to=onnx.TensorProto.FLOAT
            ),
            helper.make_node("Mul", [f"{output}_cast", name], [rescaled], name=f"{node.name}_rescaled"),
        ]
        if half:
            to = onnx.TensorProto.FLOAT16
            nodes.append(helper.make_node("Cast", [rescaled], [output], name=f"{node.name}_half", to=to))
    del graph.node[:]
    graph.node.extend(_used(nodes, {value.name for value in graph.output}))
    return model


def _quantized_factors(
    node: onnx.NodeProto, producer: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The two DequantizeLinear nodes before a product, where integers can be multiplied in their stead."""
    left, right = (producer.get(name) for name in node.input)
    if left is None or right is None or {left.op_type, right.op_type} != {"DequantizeLinear"}:
        return None
    quantize = producer.get(left.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear" or right.input[0] not in constants:
        return None
    zeros = [_values(constants, quantize.input[2]), _values(constants, right.input[2])]
    symmetric = all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    return (left, right) if symmetric else None


def _values(constants: dict[str, onnx.TensorProto], name: str) -> NDArray[Any]:
    return values_of(constants[name])


def _used(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in their order (which need not be that of the values)."""
    producer = {output: node for node in nodes for output in node.output}
    waiting, reached = list(wanted), set(wanted)
    while waiting:
        node = producer.get(waiting.pop())
        fresh = set(node.input) - reached if node is not None else set()
        reached |= fresh
        waiting += fresh
    return [node for node in nodes if reached & set(node.output)]
