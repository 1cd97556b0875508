"""What TensorRT's ONNX parser says of a bundle, node by node, before anyone rents a GPU."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import onnx
from pydantic import BaseModel

from clipq.bundle import TOWERS, Bundle, TowerName
from clipq.engines.tensorrt_library import TensorRtLibrary, TensorRtRuntime, open_library
from clipq.errors import BuildError, RuntimeUnavailable
from clipq.exporters.build import count_layers, create_network
from clipq.exporters.opset import readable
from clipq.onnx_graph import read_graph

# Whose parser answers where a library's own does not work here.
STAND_INS: dict[TensorRtRuntime, TensorRtRuntime] = {"tensorrt": "tensorrt-rtx"}


class RefusedNodes(BaseModel):
    """Nodes of one operator that the parser refuses for one reason."""

    op: str
    nodes: tuple[str, ...]
    reason: str


class TowerVerdict(BaseModel):
    """How many nodes the parser read, which it refused, and what the network would quantize and multiply."""

    tower: str
    nodes: int
    refused: tuple[RefusedNodes, ...]
    layers: dict[str, int]


class Verdict(BaseModel):
    """A parser's verdict on both towers."""

    parser: str
    towers: tuple[TowerVerdict, ...]

    @property
    def accepted(self) -> bool:
        """Whether nothing was refused."""
        return not any(tower.refused for tower in self.towers)


def check_bundle(bundle: Bundle, runtime: TensorRtRuntime) -> Verdict:
    """Parse both towers; raises RuntimeUnavailable where no parser is installed.

    TensorRT's own parser wants a GPU to begin with. Where it has none, TensorRT-RTX's parser, of the same source
    (onnx-tensorrt) and for the same operators as TensorRT 10 and 11, answers in its stead, and the verdict says so.
    """
    if bundle.built_for is not None:
        raise BuildError(f"{bundle.path} is built already, for {bundle.built_for}; check the ONNX bundle it came from")
    library, said = _parser(runtime)
    return Verdict(parser=said, towers=tuple(_check_tower(bundle, name, library) for name in TOWERS))


def _parser(runtime: TensorRtRuntime) -> tuple[TensorRtLibrary, str]:
    try:
        library = open_library(runtime)
        library.make(library.trt.Builder)
        return library, library.name
    except RuntimeUnavailable as error:
        reason = str(error)
    if runtime not in STAND_INS:
        raise RuntimeUnavailable(reason)
    other = STAND_INS[runtime]
    try:
        library = open_library(other)
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(f"{reason}; or pip install {other}, whose parser needs no GPU") from error
    return library, f"{library.name}, in place of TensorRT's, which does not work here"


def _check_tower(bundle: Bundle, name: TowerName, library: TensorRtLibrary) -> TowerVerdict:
    path = bundle.tower_path(name)
    builder = library.trt.Builder(library.logger)
    network, _ = create_network(library, builder)
    parser = library.trt.OnnxParser(network, library.logger)
    refused: tuple[RefusedNodes, ...] = ()
    layers: dict[str, int] = {}
    try:
        with readable(path, library) as file:
            graph = read_graph(file).graph
            if parser.parse_from_file(str(file)):
                layers = count_layers(network)
            else:
                refused = _refused(library, parser, graph)
    except BuildError as error:
        graph = read_graph(path).graph
        refused = (RefusedNodes(op="model", nodes=("",), reason=str(error)),)
    library.log.take_errors()
    return TowerVerdict(tower=name, nodes=len(graph.node), refused=refused, layers=layers)


def _refused(library: TensorRtLibrary, parser: Any, graph: onnx.GraphProto) -> tuple[RefusedNodes, ...]:
    """Each refused node with its reason; the parser stops early, so what it supports is asked for as well."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    seen: set[str] = set()
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        op, node = "node", str(error.node())
        if library.features.parser_names_nodes:
            op, node = error.node_operator() or op, error.node_name() or node
        if node not in seen:
            seen.add(node)
            said = " ".join(error.desc().split())[:300]
            # Where the parser's own table lacks an operator, its assertion is the bare word "false".
            reasons[op, "not supported by this parser" if said in ("", "false") else said].append(node)
    unknown = {node.op_type for node in graph.node if not parser.supports_operator(node.op_type)}
    for node in graph.node:
        if node.op_type in unknown and node.name not in seen:
            reasons[node.op_type, "the parser does not know this operator"].append(node.name)
    if not reasons:
        reasons["model", library.log.take_errors() or "no reason given"].append("")
    return tuple(RefusedNodes(op=op, nodes=tuple(nodes), reason=reason) for (op, reason), nodes in reasons.items())
