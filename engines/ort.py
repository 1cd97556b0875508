"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clipq.engines.base import Array, Engine, TensorSpec
from clipq.errors import EngineError

logger = logging.getLogger(__name__)

RUNTIME = "ort-cpu"
PROVIDER = "CPUExecutionProvider"

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OrtCpuEngine(Engine):
    """A tower in ONNX Runtime's CPU provider.

    ``simulated`` turns graph optimizations off: then a Q/DQ file runs as it is written, quantize and dequantize around
    floating-point kernels, which is what "fake quantization" means. ``threads`` 0 leaves the choice to the runtime.
    Raises EngineError where the runtime refuses the file.
    """

    runtime = RUNTIME

    def __init__(self, path: Path, *, threads: int = 0, simulated: bool = False, trace: Path | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if simulated:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / "profile")
            options.optimized_model_filepath = str(trace / "optimized.onnx")
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
        except Exception as error:  # the runtime's exceptions share no public base
            raise EngineError(f"{RUNTIME}: cannot load {path}: {_first_line(error)}") from error
        if self._session.get_providers() != [PROVIDER]:
            raise EngineError(f"{RUNTIME}: loaded on {self._session.get_providers()}, not on {PROVIDER} alone")
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def _run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise EngineError(f"{RUNTIME}: the engine is closed")
        try:
            arrays = self._session.run(None, dict(feed))
        except Exception as error:
            raise EngineError(f"{RUNTIME}: {_first_line(error)}") from error
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def end_trace(self) -> Path:
        """Finish profiling; the path of the trace file."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the session."""
        self._session = None


def trace_kernels(
    path: Path, feed: Mapping[str, Array], *, runs: int, threads: int, simulated: bool
) -> tuple[list[dict[str, Any]], Any]:
    """Profile a tower: the kernel events of ``runs`` runs after one warm-up, and the optimized graph that ran.

    An event has ``name`` (the node's), ``op``, ``provider``, ``microseconds``, ``inputs`` and ``outputs`` (type and
    shape of each). The graph is an ``onnx.ModelProto`` without the names' guarantees of a stored model.
    """
    import onnx

    with TemporaryDirectory() as folder:
        with OrtCpuEngine(path, threads=threads, simulated=simulated, trace=Path(folder)) as engine:
            for _ in range(runs + 1):
                engine.run(feed)
            raw = json.loads(engine.end_trace().read_text())
        graph = onnx.load(str(Path(folder) / "optimized.onnx"))
    suffix = "_kernel_time"
    kernels = [event for event in raw if event.get("cat") == "Node" and event["name"].endswith(suffix)]
    warm_up = len(kernels) // (runs + 1)
    events = [
        {
            "name": event["name"].removesuffix(suffix),
            "op": event["args"]["op_name"],
            "provider": event["args"]["provider"],
            "microseconds": float(event["dur"]),
            "inputs": [next(iter(entry.items())) for entry in event["args"].get("input_type_shape", [])],
            "outputs": [next(iter(entry.items())) for entry in event["args"].get("output_type_shape", [])],
        }
        for event in kernels[warm_up:]
    ]
    return events, graph


def has_quantize_dequantize(path: Path) -> bool:
    """Whether an ONNX file quantizes activations by Q/DQ nodes, so that it can be simulated."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _spec(value: Any) -> TensorSpec:
    if value.type not in _DTYPES:
        raise EngineError(f"{RUNTIME}: {value.name!r} has type {value.type}, which clipq does not feed")
    return TensorSpec(
        value.name, np.dtype(_DTYPES[value.type]), tuple(d if isinstance(d, int) else None for d in value.shape)
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400]
