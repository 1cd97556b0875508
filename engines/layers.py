"""The layers of a TensorRT engine: what the inspector says of each, how long it took, and what it computed in.

The inspector's JSON has two forms: up to 10.x a tensor has ``Format/Datatype``, in 11 ``Format`` and ``Datatype``.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipq.engines import kernel_names
from clipq.engines.base import Array
from clipq.engines.census import Arithmetic, Census, KernelGroup
from clipq.engines.kernel_trace import trace_gpu_kernels
from clipq.engines.ort import OrtEngine
from clipq.engines.trt import TensorRtEngine

TENSOR_PRECISION = (
    ("int8", re.compile(r"int8|i8\b", re.I)),
    ("fp8", re.compile(r"fp8|e4m3", re.I)),
    ("int4 weights", re.compile(r"int4", re.I)),
    ("bf16", re.compile(r"bf16|bfloat", re.I)),
    ("fp16", re.compile(r"half|fp16|float16|f16", re.I)),
    ("fp32", re.compile(r"float|fp32|f32", re.I)),
)
# What a layer's type or name says where no kernel is named.
PRODUCT = re.compile(r"gemm|conv|matmul|matrix.?mul|mha|foreignnode|_fc|myl_fc", re.I)
REFORMAT = re.compile(r"^reformat", re.I)


@dataclass(frozen=True)
class Layer:
    """A layer of an engine: its kernel (tactic), and the types of its input and output tensors as the library says."""

    name: str
    type: str
    tactic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it is a matrix multiplication, a convolution or attention, by its type, kernel or name."""
        if self.reformats or kernel_names.multiplies(self.tactic):
            return not self.reformats
        # A traced kernel has no other name than its own.
        return self.name != self.tactic and any(PRODUCT.search(text) for text in (self.type, self.name))

    @property
    def reformats(self) -> bool:
        """Whether it only changes the layout or type of a tensor."""
        return bool(REFORMAT.search(self.type) or REFORMAT.search(self.name))

    @property
    def precision(self) -> str:
        """What its kernel's name says it computes in; empty where the name is silent."""
        return kernel_names.precision(self.tactic)

    @property
    def tensor_precision(self) -> str:
        """The narrowest type among its inputs: where the kernel's name is silent, all that is known."""
        return next(
            (name for name, pattern in TENSOR_PRECISION if any(pattern.search(text) for text in self.inputs)), "unknown"
        )


def parse_layers(text: str) -> tuple[Layer, ...]:
    """The layers of an inspector's JSON, of either form; layers given as bare names have no types."""
    return tuple(_layer(entry) for entry in json.loads(text).get("Layers", ()))


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        return Layer(entry, "", "", (), ())
    tensors = {side: tuple(_tensor_type(tensor) for tensor in entry.get(side, ())) for side in ("Inputs", "Outputs")}
    return Layer(
        name=entry.get("Name", ""),
        type=str(entry.get("LayerType", "")),
        tactic=str(entry.get("TacticName", "")),
        inputs=tensors["Inputs"],
        outputs=tensors["Outputs"],
    )


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    for key in ("Datatype", "DataType", "Format/Datatype"):
        if key in tensor:
            return str(tensor[key])
    return ""


def layers_census(
    tower: str, layers: tuple[Layer, ...], milliseconds: Mapping[str, float], evidence: str, quantized: bool
) -> Census:
    """Sort an engine's layers by what they computed in, weighted by the time each took in a batch.

    An int8 kernel is integer arithmetic. Where no kernel is named, int8 tensors prove nothing (a fused kernel may turn
    them to floating point first), and the layer counts as unknown; floating-point tensors prove floating point.
    ``quantized`` says whether the plan holds integers at all: if not, no layer can be integer.
    """
    groups: dict[tuple[str, str, Arithmetic], list[tuple[Layer, float]]] = defaultdict(list)
    other: dict[str, float] = defaultdict(float)
    for layer in layers:
        time = milliseconds.get(layer.name, 0.0)
        if not layer.multiplies:
            other["Reformat" if layer.reformats else layer.type or "layer"] += time
            continue
        hidden = "myelin" in layer.type.lower() or "ForeignNode" in layer.name
        # A whole transformer can be one of these: what it is given says nothing of the kernels inside.
        precision = layer.precision or ("unknown" if hidden else layer.tensor_precision)
        arithmetic: Arithmetic = "integer" if layer.precision == "int8" else "float"
        if not layer.precision and quantized and precision in ("int8", "unknown"):
            arithmetic = "unknown"
        groups[layer.type or "layer", precision, arithmetic].append((layer, time))
    return Census(
        tower=tower,
        groups=tuple(
            KernelGroup(
                op=kind,
                arithmetic=arithmetic,
                count=len(rows),
                macs=0,
                milliseconds=sum(time for _, time in rows),
                precision=precision,
                kernels=tuple(sorted({layer.tactic for layer, _ in rows if layer.tactic})),
            )
            for (kind, precision, arithmetic), rows in sorted(
                groups.items(), key=lambda item: -sum(time for _, time in item[1])
            )
        ),
        other_milliseconds=dict(sorted(other.items(), key=lambda item: -item[1])),
        evidence=evidence,
    )


def take_layers_census(engine: TensorRtEngine, tower: str, feed: Mapping[str, Array], *, runs: int = 10) -> Census:
    """Inspect and profile a loaded plan on a batch."""
    trt = engine.library.trt
    inspector = engine.engine.create_engine_inspector()
    inspector.execution_context = engine.context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    quantized = any("INT8" in kind for kind in engine.plan.layers) or "INT8" in engine.plan.flags
    times = profile_layers(engine, feed, runs=runs)
    evidence = f"{engine.library.name}: the inspector's layers and kernel names, times by the library's profiler"
    return layers_census(tower, parse_layers(text), times, evidence, quantized)


def take_kernel_census(engine: OrtEngine, tower: str, feed: Mapping[str, Array], *, runs: int = 10) -> Census:
    """Which kernels ONNX Runtime runs on the GPU for a batch, by the driver's own trace.

    Raises RuntimeUnavailable, with the reason, where CUPTI is missing or denied.
    """
    times = trace_gpu_kernels(lambda: engine.run(feed), runs=runs)
    kernels = tuple(
        Layer(name, "kernel" if kernel_names.multiplies(name) else kernel_names.own_name(name), name, (), ())
        for name in times
    )
    return layers_census(tower, kernels, times, "kernels that ran on the GPU, names and times by CUPTI", True)


def profile_layers(engine: TensorRtEngine, feed: Mapping[str, Array], *, runs: int) -> dict[str, float]:
    """Milliseconds of each layer in a batch, by the library's profiler, averaged over ``runs`` after one warm-up."""
    trt = engine.library.trt
    times: dict[str, float] = defaultdict(float)

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name] += ms

    context = engine.context
    context.profiler = profiler = Profiler()
    engine.run(feed)
    times.clear()
    for _ in range(runs):
        engine.run(feed)
    del profiler
    return {name: total / runs for name, total in times.items()}
