"""Engine plans in TensorRT and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipq.bundle import Plan
from clipq.engines.base import Array, Engine, TensorSpec
from clipq.engines.cuda import Buffer, Stream, current_gpu
from clipq.engines.tensorrt_library import TensorRtLibrary, open_library
from clipq.errors import EngineError, OutOfMemory, RuntimeUnavailable


class TensorRtEngine(Engine):
    """A tower's plan on the GPU it was built for.

    Device and pinned host memory are allocated once per batch size, all work goes through one stream, and with
    ``graphs`` a batch of the size before is launched as a CUDA graph. Raises RuntimeUnavailable where library,
    version or GPU are not those of the plan, EngineError where the plan does not load.
    """

    def __init__(self, path: Path, plan: Plan, *, graphs: bool = False):
        self.runtime = plan.runtime
        self.plan = plan
        self.library = open_library(plan.runtime)
        check_origin(plan, self.library)
        trt = self.library.trt
        self._graphs = graphs
        self._stream: Stream | None = None
        self._batches: dict[int, _Batch] = {}
        self._captured: int | None = None
        self._loader = self.library.make(trt.Runtime)
        self.engine = self._loader.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise EngineError(
                f"{self.runtime}: cannot load {path}: {self.library.log.take_errors() or 'no reason given'}"
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            needed = self.library.features.device_memory(self.engine) / 1e6
            raise OutOfMemory(
                f"{self.runtime}: no execution context for {path.name} ({needed:.0f} MB of activations): "
                f"{self.library.log.take_errors()}"
            )
        self._stream = Stream()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self._dtypes = {name: np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))) for name in names}
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(self._spec(name) for name in inputs)
        self.outputs = tuple(self._spec(name) for name in names if name not in inputs)

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._dtypes[name]
        # 8.6 has no 64-bit inputs: the caller's token ids are narrowed on the way into pinned memory.
        wide = np.dtype(np.int64) if dtype == np.int32 else dtype
        shape = tuple(None if size == -1 else int(size) for size in self.engine.get_tensor_shape(name))
        return TensorSpec(name, wide, shape)

    def _run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        batch, stream = self._prepared(feed), self._open_stream()
        batch.upload(stream)
        batch.launch()
        batch.download(stream)
        stream.wait()
        return {spec.name: batch.buffers[spec.name].host.copy() for spec in self.outputs}

    def device_milliseconds(self, feed: Mapping[str, Array]) -> float:
        """Milliseconds between CUDA events around the engine alone, without copies."""
        batch, stream = self._prepared(feed), self._open_stream()
        batch.upload(stream)
        return stream.timed(batch.launch)

    def _open_stream(self) -> Stream:
        if self._stream is None:
            raise EngineError(f"{self.runtime}: the engine is closed")
        return self._stream

    def _prepared(self, feed: Mapping[str, Array]) -> _Batch:
        """The buffers of this batch size, filled, and bound to the context."""
        stream = self._open_stream()
        size = len(next(iter(feed.values())))
        low, _, high = self.plan.batch
        if not low <= size <= high:
            raise EngineError(
                f"{self.runtime}: the plan takes batches from {low} to {high}, asked for {size}; "
                f"build it with --batch {min(low, size)},{self.plan.batch[1]},{max(high, size)}"
            )
        for name, array in feed.items():
            self.context.set_input_shape(name, array.shape)
        batch = self._batches.get(size) or self._allocate()
        for name, array in feed.items():
            np.copyto(batch.buffers[name].host, array, casting="same_kind")
        for name, buffer in batch.buffers.items():
            self.context.set_tensor_address(name, buffer.device)

        def execute() -> None:
            if not self.context.execute_async_v3(stream.handle):
                raise EngineError(f"{self.runtime}: {self.library.log.take_errors() or 'execution failed'}")

        if not self._graphs:
            batch.launch = execute
        elif self._captured != size:
            # A graph goes with the context as it was captured: another shape since then makes it void. The run before
            # it sets up what a capture must not: lazily loaded kernels, shape-dependent memory.
            batch.upload(stream)
            execute()
            stream.wait()
            batch.launch = stream.capture(execute)
            self._captured = size
        self._batches[size] = batch
        return batch

    def _allocate(self) -> _Batch:
        buffers: dict[str, Buffer] = {}
        try:
            for name, dtype in self._dtypes.items():
                buffers[name] = Buffer(tuple(self.context.get_tensor_shape(name)), dtype)
        except EngineError:
            for buffer in buffers.values():
                buffer.free()
            raise
        return _Batch(buffers, [spec.name for spec in self.inputs])

    def close(self) -> None:
        """Free buffers, stream, context and engine."""
        for batch in self._batches.values():
            for buffer in batch.buffers.values():
                buffer.free()
        self._batches.clear()
        if self._stream is not None:
            self._stream.close()
        self._stream = self.context = self.engine = None


class _Batch:
    """The buffers of one batch size, and how the engine is launched on them."""

    def __init__(self, buffers: dict[str, Buffer], inputs: list[str]):
        self.buffers = buffers
        self._inputs = inputs
        self.launch: Any = None

    def upload(self, stream: Stream) -> None:
        for name in self._inputs:
            self.buffers[name].upload(stream)

    def download(self, stream: Stream) -> None:
        for name, buffer in self.buffers.items():
            if name not in self._inputs:
                buffer.download(stream)


def check_origin(plan: Plan, library: TensorRtLibrary) -> None:
    """Refuse a plan from elsewhere before the library sees it; raises RuntimeUnavailable with the difference."""
    gpu = current_gpu()
    again = f"build it again here: clipq-export build BUNDLE --runtime {plan.runtime}"
    if gpu.capability != plan.capability:
        raise RuntimeUnavailable(
            f"the plan was built for {plan.gpu or plan.capability} ({plan.capability}), this GPU is {gpu.name} "
            f"({gpu.capability}); {again}"
        )
    if plan.gpu is not None and plan.gpu != gpu.name and plan.runtime == "tensorrt":
        raise RuntimeUnavailable(f"the plan was built on {plan.gpu}, this GPU is {gpu.name}; {again}")
    if plan.library != library.name:
        raise RuntimeUnavailable(f"the plan was built by {plan.library}, installed is {library.name}; {again}")
