"""The driver's edge: which GPU is here, its memory, streams, events and graphs, by NVIDIA's own Python bindings.

Everything that needs a GPU to be there goes through this file, so tests put a stand-in here and nowhere else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from clipq.engines.base import Array
from clipq.errors import EngineError, OutOfMemory, RuntimeUnavailable

INSTALL = "pip install cuda-bindings (of the driver's CUDA version: 12.* or 13.*)"


@dataclass(frozen=True)
class Gpu:
    """A GPU: name, compute capability (``sm_89``), memory in bytes, and the CUDA version its driver speaks."""

    name: str
    capability: str
    memory: int
    driver_cuda: str


def cudart() -> Any:
    """NVIDIA's bindings of the CUDA runtime; raises RuntimeUnavailable where they are not installed."""
    for module in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return import_module(module)
        except ImportError:
            continue
    raise RuntimeUnavailable(f"running on a GPU needs the package cuda-bindings: {INSTALL}")


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call one function of the bindings; its results without the status, or an EngineError that names both."""
    status, *results = function(*arguments)
    if int(status) != 0:
        name = getattr(status, "name", str(status))
        # cudaErrorMemoryAllocation
        kind = OutOfMemory if int(status) == 2 else EngineError
        raise kind(f"CUDA: {function.__name__} failed: {name}")
    return results[0] if len(results) == 1 else results


def current_gpu() -> Gpu:
    """The first visible GPU; raises RuntimeUnavailable, saying what is missing, where there is none."""
    cuda = cudart()
    status, count = cuda.cudaGetDeviceCount()
    if int(status) != 0 or count == 0:
        reason = getattr(status, "name", str(status)) if int(status) else "no device"
        hints = {
            "cudaErrorInsufficientDriver": "no NVIDIA driver, or one too old for these CUDA bindings",
            "cudaErrorNoDevice": "no GPU is visible (CUDA_VISIBLE_DEVICES?)",
        }
        raise RuntimeUnavailable(f"no GPU: {hints.get(reason, reason)}")
    properties = call(cuda.cudaGetDeviceProperties, 0)
    driver = call(cuda.cudaDriverGetVersion)
    return Gpu(
        name=_text(properties.name),
        capability=f"sm_{properties.major}{properties.minor}",
        memory=int(properties.totalGlobalMem),
        driver_cuda=f"{driver // 1000}.{driver % 1000 // 10}",
    )


def pci_bus_id() -> str:
    """Where the first visible GPU sits: NVML counts GPUs in another order than CUDA."""
    return _text(call(cudart().cudaDeviceGetPCIBusId, 32, 0))


def _text(found: bytes | str) -> str:
    """A string of C's: it ends at its NUL, and what fills the rest of its memory is no part of it."""
    return (found.decode(errors="replace") if isinstance(found, bytes) else found).split("\0")[0].strip()


def free_memory() -> int:
    """Bytes of device memory that nobody holds."""
    return int(call(cudart().cudaMemGetInfo)[0])


class Buffer:
    """Device memory for an array of one shape and type; ``pinned`` gives it a twin on the host, for downloads."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, pinned: bool = False):
        self._cuda = cudart()
        self.shape, self.dtype = shape, dtype
        self.bytes = int(np.prod(shape)) * dtype.itemsize
        self.device = int(call(self._cuda.cudaMalloc, self.bytes))
        self._pinned = 0
        if not pinned:
            return
        try:
            self._pinned = int(call(self._cuda.cudaMallocHost, self.bytes))
        except EngineError:
            self._cuda.cudaFree(self.device)
            raise
        memory = (ctypes.c_byte * self.bytes).from_address(self._pinned)
        self.host: Array = np.ndarray(shape, dtype, memoryview(memory))

    def upload(self, array: Array, stream: Stream) -> None:
        """Copy an array of this shape to the device, in the stream's order; it must not change until that is done.

        The array is held until the next upload. It comes from pageable memory: on an H200 machine, a copy to pinned
        memory by numpy took longer than the driver's own way there (docs/gpu).
        """
        self._held = np.ascontiguousarray(array, self.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cuda.cudaMemcpyAsync, self.device, self._held.ctypes.data, self.bytes, kind, stream.handle)

    def download(self, stream: Stream) -> None:
        """Copy device to host, in the stream's order."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cuda.cudaMemcpyAsync, self._pinned, self.device, self.bytes, kind, stream.handle)

    def free(self) -> None:
        """Give both memories back; the array must not be used afterwards."""
        if self.device:
            self._cuda.cudaFree(self.device)
            self.device = 0
        if self._pinned:
            self._cuda.cudaFreeHost(self._pinned)
            self._pinned = 0


class Event:
    """A mark in a stream that another stream can wait for."""

    def __init__(self) -> None:
        self._cuda = cudart()
        self.handle = call(self._cuda.cudaEventCreate)

    def close(self) -> None:
        """Destroy the event."""
        self._cuda.cudaEventDestroy(self.handle)


class Graph:
    """Work captured from a stream, launched on it as one."""

    def __init__(self, graph: Any, stream: Stream):
        self._cuda = cudart()
        self._stream = stream
        self._executable = call(self._cuda.cudaGraphInstantiate, graph, 0)
        self._cuda.cudaGraphDestroy(graph)

    def launch(self) -> None:
        """Queue the graph on its stream."""
        call(self._cuda.cudaGraphLaunch, self._executable, self._stream.handle)

    def close(self) -> None:
        """Destroy the graph."""
        self._cuda.cudaGraphExecDestroy(self._executable)


class Stream:
    """A CUDA stream, its timing by events, and graphs captured from it.

    It does not wait for the default stream, which libraries copy through.
    """

    def __init__(self) -> None:
        self._cuda = cudart()
        self.handle = call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking)
        self._start = call(self._cuda.cudaEventCreate)
        self._end = call(self._cuda.cudaEventCreate)

    def wait(self) -> None:
        """Block until everything queued is done."""
        call(self._cuda.cudaStreamSynchronize, self.handle)

    def mark(self, event: Event) -> None:
        """Let the event stand for all that is queued so far."""
        call(self._cuda.cudaEventRecord, event.handle, self.handle)

    def follow(self, event: Event) -> None:
        """Begin what is queued from now on after what the event stands for."""
        call(self._cuda.cudaStreamWaitEvent, self.handle, event.handle, 0)

    def timed(self, queue: Callable[[], None]) -> float:
        """Milliseconds on the device between before and after what ``queue`` queues; waits for it."""
        call(self._cuda.cudaEventRecord, self._start, self.handle)
        queue()
        call(self._cuda.cudaEventRecord, self._end, self.handle)
        call(self._cuda.cudaEventSynchronize, self._end)
        return float(call(self._cuda.cudaEventElapsedTime, self._start, self._end))

    def capture(self, queue: Callable[[], None]) -> Graph:
        """What ``queue`` queues, as a CUDA graph instead of being run."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._cuda.cudaStreamBeginCapture, self.handle, mode)
        try:
            queue()
        finally:
            graph = call(self._cuda.cudaStreamEndCapture, self.handle)
        return Graph(graph, self)

    def close(self) -> None:
        """Destroy stream and events."""
        if self.handle is not None:
            self._cuda.cudaEventDestroy(self._start)
            self._cuda.cudaEventDestroy(self._end)
            self._cuda.cudaStreamDestroy(self.handle)
            self.handle = None
