"""Which kernels really ran, and how much of the matrix-multiply work they did in integers.

The evidence is the runtime's own profile of a real batch, joined with the graph it optimized; nothing is read off the
recipe. Work is counted in multiply-accumulates, and time is what the profile measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from clipq.engines.base import Array
from clipq.engines.ort import ON_CPU, OrtEngine, trace_kernels
from clipq.engines.ort_providers import PROVIDERS, OrtRuntime

Arithmetic = Literal["integer", "float", "unknown"]
Verdict = Literal["integer", "mixed", "float", "unknown"]

INTEGER_KERNELS = {
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
FLOAT_KERNELS = {"Attention", "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MultiHeadAttention"}
CONVOLUTIONS = {"Conv", "ConvInteger", "FusedConv", "QLinearConv"}
BLOCKWISE = "MatMulNBits"

INTEGER_VERDICT_SHARE = 0.9
PROFILED_RUNS = 3
EVIDENCE = "ONNX Runtime profile (kernel names after fusion) joined with the optimized graph"


@dataclass(frozen=True)
class KernelGroup:
    """All matrix-multiply kernels of one operator: how many, their work per batch, and their time per batch.

    ``macs`` is 0 where the runtime does not say; ``precision`` and ``kernels`` are empty where it names none.
    """

    op: str
    arithmetic: Arithmetic
    count: int
    macs: int
    milliseconds: float
    precision: str = ""
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Census:
    """The kernels of one tower.

    ``integer_share`` is the part of the multiply-accumulates done in integers, 0 to 1 (of the matrix-multiply time,
    where the runtime counts no operations); ``integer_time_share`` the part of the matrix-multiply time;
    ``matmul_time_share`` the part of all kernel time that is matrix multiplication; ``reformat_share`` the part that
    only changes layouts and types.
    """

    tower: str
    groups: tuple[KernelGroup, ...]
    other_milliseconds: dict[str, float]
    evidence: str

    def _share(self, arithmetic: Arithmetic, measure: str) -> float:
        total = sum(getattr(group, measure) for group in self.groups)
        part = sum(getattr(group, measure) for group in self.groups if group.arithmetic == arithmetic)
        return part / total if total else 0.0

    @property
    def integer_share(self) -> float:
        """Part of the multiply-accumulates (else of the matrix-multiply time) done in integer kernels."""
        return self._share("integer", self._measure)

    @property
    def _measure(self) -> str:
        return "macs" if any(group.macs for group in self.groups) else "milliseconds"

    @property
    def precision_time_shares(self) -> dict[str, float]:
        """Part of the matrix-multiply time by precision, where kernels say theirs."""
        total = sum(group.milliseconds for group in self.groups)
        shares: dict[str, float] = defaultdict(float)
        for group in self.groups:
            if group.precision and total:
                shares[group.precision] += group.milliseconds / total
        return dict(shares)

    @property
    def reformat_share(self) -> float:
        """Part of all kernel time spent on changing layouts and types."""
        total = sum(group.milliseconds for group in self.groups) + sum(self.other_milliseconds.values())
        return self.other_milliseconds.get("Reformat", 0.0) / total if total else 0.0

    @property
    def integer_time_share(self) -> float:
        """Part of the matrix-multiply time spent in integer kernels."""
        return self._share("integer", "milliseconds")

    @property
    def matmul_time_share(self) -> float:
        """Part of all kernel time that is matrix multiplication."""
        products = sum(group.milliseconds for group in self.groups)
        total = products + sum(self.other_milliseconds.values())
        return products / total if total else 0.0

    @property
    def verdict(self) -> Verdict:
        """``integer`` from 90 % of the work on, ``float`` at none, ``mixed`` between; ``unknown`` has no proof."""
        if not sum(getattr(group, self._measure) for group in self.groups):
            return "unknown"
        if self._share("unknown", self._measure) > 1 - INTEGER_VERDICT_SHARE:
            return "unknown"
        if self.integer_share >= INTEGER_VERDICT_SHARE:
            return "integer"
        return "mixed" if self.integer_share > 0 else "float"


def unknown_census(tower: str, reason: str) -> Census:
    """A census without proof, and why there is none."""
    return Census(tower=tower, groups=(), other_milliseconds={}, evidence=reason)


def take_census(
    path: Path,
    tower: str,
    feed: Mapping[str, Array],
    *,
    runtime: OrtRuntime = ON_CPU,
    **options: Any,
) -> Census:
    """Profile a tower in ONNX Runtime on a batch and sort its matrix-multiply kernels into integer and floating point.

    ``options`` are those of ``OrtEngine``. On a GPU the profile proves which operators ran there, and its times are
    those of launching them.
    """
    on_gpu = PROVIDERS[runtime].on_gpu
    events, model = trace_kernels(path, feed, runs=PROFILED_RUNS, runtime=runtime, **options)
    nodes = {node.name: node for node in model.graph.node}
    weights = {value.name: tuple(value.dims) for value in model.graph.initializer}
    groups: dict[tuple[str, Arithmetic], list[tuple[str, int, float]]] = defaultdict(list)
    other: dict[str, float] = defaultdict(float)
    for event in events:
        op = event["op"]
        if op not in INTEGER_KERNELS | FLOAT_KERNELS | {BLOCKWISE}:
            other[op] += event["microseconds"] / 1e3 / PROFILED_RUNS
            continue
        node = nodes.get(event["name"])
        arithmetic: Arithmetic = "integer" if op in INTEGER_KERNELS else "float"
        if op == BLOCKWISE:
            # The CUDA provider dequantizes the weights, or multiplies them with half-precision activations.
            arithmetic = "float"
            if not on_gpu:
                arithmetic = "unknown" if node is None else _blockwise_arithmetic(node, weights, model)
        macs = _multiply_accumulates(event, node, weights)
        groups[op, arithmetic].append((event["name"], macs, event["microseconds"] / 1e3))
    return Census(
        tower=tower,
        groups=tuple(
            KernelGroup(
                op=op,
                arithmetic=arithmetic,
                count=len({name for name, _, _ in rows}),
                macs=round(sum(macs for _, macs, _ in rows) / PROFILED_RUNS),
                milliseconds=sum(time for _, _, time in rows) / PROFILED_RUNS,
            )
            for (op, arithmetic), rows in sorted(groups.items(), key=lambda item: -sum(row[1] for row in item[1]))
        ),
        other_milliseconds=dict(sorted(other.items(), key=lambda item: -item[1])),
        evidence=f"{EVIDENCE}; times are launch times, not kernel times" if on_gpu else EVIDENCE,
    )


def _multiply_accumulates(event: Mapping[str, Any], node: Any, weights: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of one kernel run, from the shapes the profile recorded."""
    output = prod(event["outputs"][0][1])
    op = event["op"]
    if op in CONVOLUTIONS:
        # The profile lists QLinearConv's weight fourth, Conv's second; both are (out, in / groups, height, width).
        position = 3 if op == "QLinearConv" else 1
        shape = weights.get(node.input[position]) if node is not None else None
        shape = shape or tuple(event["inputs"][position][1])
        return int(output * prod(shape[1:]))
    if op in ("Attention", "QAttention", "MultiHeadAttention"):
        batch, tokens, width = event["outputs"][0][1]
        projections = 3 * width * width * tokens if op != "MultiHeadAttention" else 0
        return int(batch * (projections + 2 * tokens * tokens * width))
    inner = event["inputs"][0][1][-1]
    if node is not None and op in ("Gemm", "FusedGemm") and any(a.name == "transA" and a.i for a in node.attribute):
        inner = event["inputs"][0][1][0]
    return int(output * inner)


def _blockwise_arithmetic(node: Any, weights: Mapping[str, tuple[int, ...]], model: Any) -> Arithmetic:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    types = {value.name: value.data_type for value in model.graph.initializer}
    zero_points = node.input[3] if len(node.input) > 3 else ""
    float_zero_points = zero_points != "" and types.get(zero_points) != 2  # TensorProto.UINT8
    return probe_blockwise(
        attributes["bits"], attributes["block_size"], attributes.get("accuracy_level", 0), float_zero_points
    )


@cache
def probe_blockwise(bits: int, block_size: int, accuracy_level: int, float_zero_points: bool) -> Arithmetic:
    """Whether this machine's MatMulNBits kernel computes in integers, found out by running it.

    The profile names one operator for two kernels. They differ in what they do to activations: the integer kernel
    rounds them to 8 bits, so its result is off by about 5e-3 where the float kernel's is by about 5e-7.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    inner, outputs = 4 * block_size, 32
    blocks = inner // block_size
    levels = rng.integers(0, 2**bits, (outputs, blocks, block_size), dtype=np.uint8)
    per_byte = 8 // bits
    packed = np.zeros((outputs, blocks, block_size // per_byte), dtype=np.uint8)
    for position in range(per_byte):
        packed |= levels[..., position::per_byte] << (bits * position)
    middle = 2 ** (bits - 1)
    scales = rng.uniform(0.5, 1.5, (outputs, blocks)).astype(np.float32)
    weight = ((levels.astype(np.float64) - middle) * scales[..., None]).reshape(outputs, inner)
    initializers = [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales.reshape(-1), "s")]
    inputs = ["x", "w", "s"]
    if float_zero_points:
        initializers.append(numpy_helper.from_array(np.full(outputs * blocks, middle, np.float32), "z"))
        inputs.append("z")
    node = helper.make_node(
        BLOCKWISE, inputs, ["y"], domain="com.microsoft",
        K=inner, N=outputs, bits=bits, block_size=block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, outputs])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, str(path))
        x = rng.standard_normal((16, inner)).astype(np.float32)
        with OrtEngine(path) as engine:
            y = engine.run({"x": x})["y"]
    exact = x.astype(np.float64) @ weight.T
    error = float(np.abs(y - exact).max() / np.abs(exact).max())
    if error < 2e-5:
        return "float"
    return "integer" if error < 5e-2 else "unknown"
