"""ONNX Runtime's execution providers as runtimes: what each needs, and the options it is opened with."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from clipq.engines.cuda import current_gpu
from clipq.errors import EngineError, RuntimeUnavailable

OrtRuntime = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "ort-tensorrt-rtx"]
CPU = "CPUExecutionProvider"
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"

# Work that must not land on the CPU unseen; shape arithmetic goes there by ONNX Runtime's own design.
COMPUTE = {
    "Attention", "BiasGelu", "Conv", "ConvInteger", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "Gemm",
    "LayerNormalization", "MatMul", "MatMulInteger", "MatMulNBits", "MultiHeadAttention", "QLinearConv",
    "QLinearMatMul", "SkipLayerNormalization", "Softmax",
}  # fmt: skip


@dataclass(frozen=True)
class Provider:
    """An execution provider: its name, its options, and the package of a plugin.

    ``takes_stream``: it runs on a CUDA stream that it is handed.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)
    package: str | None = None
    takes_stream: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU; all but one do."""
        return self.name != CPU


# Tensor cores would round float32 products to 10 bits by default; a float32 engine must be one.
CUDA_OPTIONS = {"use_tf32": "0"}
# TensorRT's provider gets no precision flags: with any of them its network is weakly typed, and FP32 may run in FP16.
PROVIDERS: dict[OrtRuntime, Provider] = {
    "ort-cpu": Provider(CPU),
    "ort-cuda": Provider("CUDAExecutionProvider", CUDA_OPTIONS, takes_stream=True),
    "ort-tensorrt": Provider("TensorrtExecutionProvider"),
    "ort-tensorrt-rtx": Provider("NvTensorRTRTXExecutionProvider", package=RTX_PLUGIN),
}


def find_provider(runtime: OrtRuntime) -> Provider:
    """The provider of a runtime; raises RuntimeUnavailable where this installation or this machine lacks it."""
    import onnxruntime

    provider = PROVIDERS[runtime]
    if provider.package is not None:
        try:
            import_module(provider.package)
        except ImportError as error:
            raise RuntimeUnavailable(
                f"runtime {runtime!r} needs the package {provider.package}: "
                f"pip install {provider.package.replace('_', '-')}"
            ) from error
    elif provider.name not in onnxruntime.get_available_providers():
        raise RuntimeUnavailable(
            f"runtime {runtime!r}: this ONNX Runtime has no {provider.name}; pip install onnxruntime-gpu "
            "(after pip uninstall onnxruntime)"
        )
    if provider.on_gpu:
        if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
            raise RuntimeUnavailable(
                f"runtime {runtime!r}: ONNX Runtime {onnxruntime.__version__} does not say what it leaves to the CPU; "
                "install 1.24 or later (Python 3.11 or later)"
            )
        try:
            current_gpu()
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(f"runtime {runtime!r}: {error}") from error
        if reason := why_not_loaded(runtime):
            raise RuntimeUnavailable(f"runtime {runtime!r}: {provider.name} does not load: {reason}")
    return provider


@cache
def why_not_loaded(runtime: OrtRuntime) -> str:
    """Why a GPU provider's libraries do not load; empty where they do.

    The list of providers was fixed when ONNX Runtime was built, so a session is opened, on a graph that computes
    nothing.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    provider = PROVIDERS[runtime]
    with _heard() as said:
        onnxruntime.set_default_logger_severity(2)
        try:
            session = _open(model.SerializeToString(), runtime, onnxruntime.SessionOptions(), provider.options)
        except RuntimeUnavailable:
            raise
        except Exception as error:  # the runtime's exceptions share no public base
            reason = " ".join(str(error).split())
        else:
            reason = "" if provider.name in session.get_providers() else "no reason given"
    # The reason proper is in what the runtime wrote itself: "… with error: libnvinfer.so.10: cannot open …".
    told = [line.split("with error: ")[-1] for line in said if "with error: " in line]
    return (told or [reason])[0][:300] if reason else ""


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Lines that libraries write to the process's standard error, which they do past Python's."""
    lines: list[str] = []
    with TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


@cache
def load_cuda_libraries() -> None:
    """Load CUDA's libraries from NVIDIA's packages, wherever these are installed, so that providers find them; once.

    ``onnxruntime.preload_dlls`` looks beside its own package alone, and prints what it misses where ``--json`` goes.
    """
    import onnxruntime

    major = str(getattr(onnxruntime, "cuda_version", "")).partition(".")[0]
    found = find_spec("nvidia")
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    # cublas wants cublasLt, so that one first; the others' versions are their own.
    ours = [f"{name}.so.{major}" for name in ("cublasLt", "cublas", "cudart", "nvrtc")]
    for pattern in (*ours, "curand.so.*", "cufft.so.*", "cudnn.so.*"):
        for path in (path for place in places for path in sorted(place.glob(f"*/lib/lib{pattern}"))):
            with suppress(OSError):
                ctypes.CDLL(str(path))
                break
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


def make_session(path: str, runtime: OrtRuntime, options: Any, provider_options: Mapping[str, str]) -> Any:
    """An inference session on the runtime's provider alone; raises EngineError where work would fall to the CPU.

    ``provider_options`` are added to the provider's own; ``find_provider`` said before that it works. Raises whatever
    the runtime raises where it cannot load the file.
    """
    provider = PROVIDERS[runtime]
    if provider.on_gpu:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = _open(path, runtime, options, {**provider.options, **provider_options})
    if provider.on_gpu:
        refuse_fallback(session, runtime, provider)
    return session


def _open(model: str | bytes, runtime: OrtRuntime, options: Any, provider_options: Mapping[str, str]) -> Any:
    import onnxruntime

    provider = PROVIDERS[runtime]
    if not provider.on_gpu:
        return onnxruntime.InferenceSession(model, options, providers=[provider.name])
    load_cuda_libraries()
    if provider.package is None:
        chosen = [(provider.name, dict(provider_options)), CPU]
        # Its own fallback prints on stdout, tries other providers, and loses the reason.
        return onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    plugin = import_module(provider.package)
    # A library can be registered once in a process.
    if not any(device.ep_name == provider.name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(provider.name, plugin.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider.name]
    if not devices:
        raise RuntimeUnavailable(f"runtime {runtime!r}: {provider.package} finds no GPU it supports")
    options.add_provider_for_devices(devices[:1], dict(provider_options))
    return onnxruntime.InferenceSession(model, options)


def refuse_fallback(session: Any, runtime: OrtRuntime, provider: Provider) -> None:
    """Raise EngineError where the provider was dropped, or where computing nodes were assigned to the CPU."""
    if provider.name not in session.get_providers():
        raise EngineError(f"{runtime}: loaded on {session.get_providers()}, not on {provider.name}")
    fallen: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == CPU:
            fallen.update(node.op_type for node in part.get_nodes() if node.op_type in COMPUTE)
    if fallen:
        counted = ", ".join(f"{count} {op}" for op, count in fallen.most_common(4))
        raise EngineError(f"{runtime}: {counted} would run on the CPU; this bundle does not fit {provider.name}")
