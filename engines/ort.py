"""ONNX Runtime, on the CPU or on a GPU."""

from __future__ import annotations

import ctypes
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clipq.engines.base import Array, Engine, TensorSpec
from clipq.engines.cuda import Stream
from clipq.engines.device_batch import DeviceBatch, refuse_dynamic
from clipq.engines.ort_providers import PROVIDERS, OrtRuntime, find_provider, make_session
from clipq.errors import ClipqError, EngineError, OutOfMemory
from clipq.onnx_graph import read_graph

logger = logging.getLogger(__name__)

ON_CPU: OrtRuntime = "ort-cpu"

# 8-bit products by kernels that do not saturate, where the others would: slower, and off where nobody asks.
EXACT_PRODUCTS = {"session.x64quantprecision": "1"}

# The arena's words, CUDA's, and those of cuBLAS and cuDNN.
_OUT_OF_MEMORY = re.compile(r"failed to allocate memory|out of memory|STATUS_ALLOC_FAILED", re.I)

# Operators of files that bring activations to integers, or take them as such.
_QUANTIZES = {
    "QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "QLinearMatMul", "QLinearConv", "QGemm",
}  # fmt: skip

_KIND = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?")
_PLACE = re.compile(r"/?[\w/]*onnxruntime[\w/]*/[\w/.]+:\d+ [^(]*\(")

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OrtEngine(Engine):
    """A tower in one of ONNX Runtime's execution providers, and in no other.

    ``simulated`` turns graph optimizations off: then a Q/DQ file runs as it is written, quantize and dequantize around
    floating-point kernels, which is what "fake quantization" means. ``threads`` 0 leaves the choice to the runtime.
    ``trace`` is a folder for a profile. Raises EngineError where the runtime refuses the file or would leave work to
    the CPU that was meant for the GPU.
    """

    def __init__(
        self,
        path: Path,
        runtime: OrtRuntime = ON_CPU,
        *,
        threads: int = 0,
        simulated: bool = False,
        trace: Path | None = None,
        config: Mapping[str, str] | None = None,
    ):
        import onnxruntime

        self.runtime = runtime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Its errors are raised, and would be printed as well.
        options.log_severity_level = 4
        # Between runs: threads that spin on take the cores of what runs next, decoding or another engine. In turns with
        # others small towers took up to 1.8 times their own time, and FP32 more of it than INT8 (docs/performance.md).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        if simulated:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / "profile")
            options.optimized_model_filepath = str(trace / "optimized.onnx")
            # The graph is what is asked for, and it may be of more than one file can hold.
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "optimized.onnx.data"
            )
        find_provider(runtime)
        # What no session's own level covers; the search for providers listens to it.
        onnxruntime.set_default_logger_severity(4)
        self._session: Any = None
        self._batches: dict[tuple[int, int], DeviceBatch] = {}
        self._device = "cuda" if PROVIDERS[runtime].on_gpu else None
        self._uploads = None if self._device is None else Stream()
        self._stream: Stream | None = None
        try:
            own = {}
            if PROVIDERS[runtime].takes_stream:
                # Ours, so that it can follow uploads, and events can be put around what the provider queues.
                self._stream = Stream()
                own = {"user_compute_stream": str(int(self._stream.handle))}
            self._session = make_session(str(path), runtime, options, own)
            self.inputs = tuple(_spec(runtime, value) for value in self._session.get_inputs())
            self.outputs = tuple(_spec(runtime, value) for value in self._session.get_outputs())
            # What a session of several inputs or outputs copies to the device and back, it copies itself.
            self._device = self._device if len(self.inputs) == len(self.outputs) == 1 else None
            if self._device is not None:
                refuse_dynamic(runtime, (*self.inputs, *self.outputs))
        except ClipqError:
            self.close()
            raise
        except Exception as error:  # the runtime's exceptions share no public base
            self.close()
            raise EngineError(f"{runtime}: cannot load {path}: {_first_line(error)}") from error
        self._dtypes = {spec.name: spec.dtype for spec in (*self.inputs, *self.outputs)}

    def _stage(self, feed: Mapping[str, Array], slot: int) -> Any:
        """On a GPU: the buffers of this batch size and slot, their upload queued."""
        if self._device is None:
            return dict(feed)
        self._open_session()
        assert self._uploads is not None
        key = len(next(iter(feed.values()))), slot
        if key not in self._batches:
            self._batches[key] = DeviceBatch(key[0], self.inputs, self.outputs, self._dtypes)
        self._batches[key].upload(feed, self._uploads)
        return self._batches[key]

    def _run(self, staged: Any) -> dict[str, Array]:
        session = self._open_session()
        with self._named_errors():
            if self._device is None:
                arrays = session.run(None, staged)
                return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}
            self._launch(staged)()
        stream = self._stream or self._uploads
        assert stream is not None
        staged.download(stream)
        stream.wait()
        return staged.results()

    def _launch(self, batch: DeviceBatch, options: Any = None) -> Callable[[], None]:
        """What runs the session on a batch, once its upload is done."""
        if self._stream is not None:
            self._stream.follow(batch.uploaded)
        elif self._uploads is not None:
            # The provider's stream is its own, and knows nothing of our events.
            self._uploads.wait()
        binding = self._session.io_binding()
        for specs, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for spec in specs:
                buffer = batch.buffers[spec.name]
                bind(spec.name, self._device, 0, spec.dtype.type, buffer.shape, buffer.device)
        return partial(self._session.run_with_iobinding, binding, options)

    def device_milliseconds(self, feed: Mapping[str, Array]) -> float | None:
        """Milliseconds between CUDA events around the engine alone, without copies; None but for ``ort-cuda``."""
        if self._stream is None or self._device is None:
            return None
        import onnxruntime

        options = onnxruntime.RunOptions()
        # Else the run waits for the device itself, and the time of waking up is measured too.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with self._named_errors():
            return self._stream.timed(self._launch(self._stage(feed, 0), options))

    def _open_session(self) -> Any:
        if self._session is None:
            raise EngineError(f"{self.runtime}: the engine is closed")
        return self._session

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except ClipqError:
            raise
        except Exception as error:  # the runtime's exceptions share no public base
            kind = OutOfMemory if _OUT_OF_MEMORY.search(str(error)) else EngineError
            raise kind(f"{self.runtime}: {_first_line(error)}") from error

    def end_trace(self) -> Path:
        """Finish profiling; the path of the trace file."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the session and what it keeps on the device."""
        self._free_batches()
        self._session = None
        for stream in (self._stream, self._uploads):
            if stream is not None:
                stream.close()
        self._stream = self._uploads = None
        _give_back()

    def _free_batches(self) -> None:
        for batch in self._batches.values():
            batch.close()
        self._batches.clear()


def trace_kernels(
    path: Path,
    feed: Mapping[str, Array],
    *,
    runs: int,
    runtime: OrtRuntime = ON_CPU,
    **options: Any,
) -> tuple[list[dict[str, Any]], Any]:
    """Profile a tower: the kernel events of ``runs`` runs after one warm-up, and the optimized graph that ran.

    ``options`` are those of ``OrtEngine``.

    An event has ``name`` (the node's), ``op``, ``provider``, ``microseconds``, ``inputs`` and ``outputs`` (type and
    shape of each). The graph is an ``onnx.ModelProto`` without the weights and the names' guarantees of a stored model.
    """
    with TemporaryDirectory() as folder:
        with OrtEngine(path, runtime, trace=Path(folder), **options) as engine:
            for _ in range(runs + 1):
                engine.run(feed)
            raw = json.loads(engine.end_trace().read_text())
        graph = read_graph(Path(folder) / "optimized.onnx")
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
    return any(node.op_type == "QuantizeLinear" for node in read_graph(path).graph.node)


def has_integer_products(path: Path) -> bool:
    """Whether an ONNX file quantizes activations, so that ONNX Runtime multiplies them as integers on the CPU."""
    return any(node.op_type in _QUANTIZES for node in read_graph(path).graph.node)


def _give_back() -> None:
    """Hand freed memory back to the system: glibc keeps blocks below 32 MB, and most weights are such blocks."""
    if sys.platform == "linux":
        # Other libraries than glibc have no such function.
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _spec(runtime: str, value: Any) -> TensorSpec:
    if value.type not in _DTYPES:
        raise EngineError(f"{runtime}: {value.name!r} has type {value.type}, which clipq does not feed")
    return TensorSpec(
        value.name, np.dtype(_DTYPES[value.type]), tuple(d if isinstance(d, int) else None for d in value.shape)
    )


def _first_line(error: Exception) -> str:
    """The runtime's reason without its own words for the kind of error, the file, and where in its sources it was."""
    line = _KIND.sub("", str(error).strip().splitlines()[0])
    if (place := _PLACE.search(line)) is not None:
        # A signature follows, whose parentheses may hold others.
        depth, end = 1, place.end()
        while end < len(line) and depth:
            depth += {"(": 1, ")": -1}.get(line[end], 0)
            end += 1
        line = line[: place.start()] + line[end:].removeprefix(" const").lstrip()
    return line[:400]
