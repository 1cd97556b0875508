"""Which nodes of a tower are quantized, and why the others are not.

Linears with a constant weight (QKV, output projection, both MLP layers) and convolutions carry nearly all the work.
Left in floating point, by name of the reason:

* ``attention product``: both factors are activations; softmax output and scores are sensitive, the work is small.
  (``int8-static:attention=true`` quantizes them all the same, to compare.)
* ``first convolution``: it reads the image itself (patch embedding or stem).
* ``final projection``: it makes the embedding, on one token an image.
* everything that is no matrix multiplication: softmax, LayerNorm, GELU, residual adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx


@dataclass(frozen=True)
class Placement:
    """Node names to quantize, and the matrix multiplications left alone with the reason of each."""

    linears: tuple[str, ...]
    convolutions: tuple[str, ...]
    left: dict[str, str] = field(default_factory=dict)
    products: tuple[str, ...] = ()

    @property
    def nodes(self) -> list[str]:
        """All nodes to quantize."""
        return [*self.linears, *self.products, *self.convolutions]


def place(model: onnx.ModelProto, *, attention: bool = False) -> Placement:
    """Choose the nodes of a tower to quantize; with ``attention``, products of two activations too."""
    graph = model.graph
    constants = {initializer.name for initializer in graph.initializer}
    images = {value.name for value in graph.input}
    final = _final_product(graph, constants)
    linears: list[str] = []
    products: list[str] = []
    convolutions: list[str] = []
    left: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Gemm":
            left[node.name] = "final projection" if node.name == final else "Gemm: not a MatMul with a constant weight"
        elif node.op_type == "MatMul":
            if node.input[1] not in constants and attention:
                products.append(node.name)
            elif node.input[1] not in constants:
                left[node.name] = "attention product"
            elif node.name == final:
                left[node.name] = "final projection"
            else:
                linears.append(node.name)
        elif node.op_type == "Conv":
            if node.input[0] in images:
                left[node.name] = "first convolution"
            else:
                convolutions.append(node.name)
    return Placement(tuple(linears), tuple(convolutions), left, tuple(products))


def _final_product(graph: onnx.GraphProto, constants: set[str]) -> str | None:
    """The matrix multiplication nearest to the output."""
    producer = {output: node for node in graph.node for output in node.output}
    frontier = [graph.output[0].name]
    seen: set[str] = set()
    while frontier:
        name = frontier.pop(0)
        node = producer.get(name)
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in ("MatMul", "Gemm"):
            return str(node.name)
        if node.op_type == "Conv":
            return None
        frontier.extend(value for value in node.input if value not in constants)
    return None
