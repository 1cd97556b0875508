"""Engine plans in TensorRT and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from clipq.bundle import Plan
from clipq.engines.base import Array, Engine, TensorSpec
from clipq.engines.cuda import Stream, current_gpu
from clipq.engines.device_batch import DeviceBatch, refuse_dynamic
from clipq.engines.tensorrt_library import TensorRtLibrary, open_library
from clipq.errors import EngineError, OutOfMemory, RuntimeUnavailable


class TensorRtEngine(Engine):
    """A tower's plan on the GPU it was built for.

    Memory is allocated once per batch size and slot; uploads have a stream of their own, so that the next batch is
    copied while one runs; with ``graphs`` a batch of the size before is launched as a CUDA graph.

    Raises RuntimeUnavailable where library, version or GPU are not those of the plan, EngineError where the plan does
    not load.
    """

    def __init__(self, path: Path, plan: Plan, *, graphs: bool = False):
        self.runtime = plan.runtime
        self.plan = plan
        self.library = open_library(plan.runtime)
        check_origin(plan, self.library)
        trt = self.library.trt
        self._graphs = graphs
        self._stream: Stream | None = None
        self._batches: dict[tuple[int, int], DeviceBatch] = {}
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
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.dtypes = {name: np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))) for name in names}
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(self._spec(name) for name in inputs)
        self.outputs = tuple(self._spec(name) for name in names if name not in inputs)
        refuse_dynamic(self.runtime, (*self.inputs, *self.outputs))
        # Of a plan that others built nobody wrote it down.
        self._batch = plan.batch or tuple(int(shape[0]) for shape in self.engine.get_tensor_profile_shape(inputs[0], 0))
        self._stream, self._uploads = Stream(), Stream()

    def _spec(self, name: str) -> TensorSpec:
        dtype = self.dtypes[name]
        # 8.6 has no 64-bit inputs: the caller's token ids are narrowed on the way to the device.
        wide = np.dtype(np.int64) if dtype == np.int32 else dtype
        shape = tuple(None if size == -1 else int(size) for size in self.engine.get_tensor_shape(name))
        return TensorSpec(name, wide, shape)

    def _stage(self, feed: Mapping[str, Array], slot: int) -> DeviceBatch:
        """The buffers of this batch size and slot, their upload queued."""
        self._open_stream()
        size = len(next(iter(feed.values())))
        low, best, high = self._batch
        if not low <= size <= high:
            raise EngineError(
                f"{self.runtime}: the plan takes batches from {low} to {high}, asked for {size}; "
                f"build it with --batch {min(low, size)},{best},{max(high, size)}"
            )
        batch = self._batches.get((size, slot))
        if batch is None:
            batch = self._batches[size, slot] = DeviceBatch(size, self.inputs, self.outputs, self.dtypes)
        batch.upload(feed, self._uploads)
        return batch

    def _run(self, staged: DeviceBatch) -> dict[str, Array]:
        stream = self._open_stream()
        self._launch(staged)()
        staged.download(stream)
        stream.wait()
        return staged.results()

    def device_milliseconds(self, feed: Mapping[str, Array]) -> float:
        """Milliseconds between CUDA events around the engine alone, without copies."""
        return self._open_stream().timed(self._launch(self._stage(feed, 0)))

    def _open_stream(self) -> Stream:
        if self._stream is None:
            raise EngineError(f"{self.runtime}: the engine is closed")
        return self._stream

    def _launch(self, batch: DeviceBatch) -> Callable[[], None]:
        """What queues the engine on a batch whose upload the stream waits for."""
        stream = self._open_stream()
        stream.follow(batch.uploaded)
        for spec in self.inputs:
            self.context.set_input_shape(spec.name, batch.buffers[spec.name].shape)
        for name, buffer in batch.buffers.items():
            self.context.set_tensor_address(name, buffer.device)

        def execute() -> None:
            if not self.context.execute_async_v3(stream.handle):
                raise EngineError(f"{self.runtime}: {self.library.log.take_errors() or 'execution failed'}")

        if not self._graphs:
            return execute
        if self._captured != batch.size:
            # A graph goes with the context as it was captured: another shape since then makes it void.
            self._drop_graphs()
            self._captured = batch.size
        if batch.graph is None:
            # The run before a capture sets up what a capture must not: lazily loaded kernels, shape-dependent memory.
            execute()
            stream.wait()
            batch.graph = stream.capture(execute)
        return batch.graph.launch

    def _drop_graphs(self) -> None:
        # A copy: meanwhile the next batch may be staged in memory of its own.
        for batch in list(self._batches.values()):
            if batch.graph is not None:
                batch.graph.close()
                batch.graph = None

    def close(self) -> None:
        """Free buffers, graphs, streams, context and engine."""
        self._free_batches()
        if self._stream is not None:
            self._stream.close()
            self._uploads.close()
        self._stream = self.context = self.engine = None

    def _free_batches(self) -> None:
        self._drop_graphs()
        for batch in self._batches.values():
            batch.close()
        self._batches.clear()


def check_origin(plan: Plan, library: TensorRtLibrary) -> None:
    """Refuse a plan from elsewhere before the library sees it; raises RuntimeUnavailable with the difference."""
    gpu = current_gpu()
    again = f"build it again here: clipq-export build BUNDLE --runtime {plan.runtime}"
    if plan.capability not in (None, gpu.capability):
        raise RuntimeUnavailable(
            f"the plan was built for {plan.gpu or plan.capability} ({plan.capability}), this GPU is {gpu.name} "
            f"({gpu.capability}); {again}"
        )
    if plan.gpu is not None and plan.gpu != gpu.name and plan.runtime == "tensorrt":
        raise RuntimeUnavailable(f"the plan was built on {plan.gpu}, this GPU is {gpu.name}; {again}")
    if plan.library != library.name:
        raise RuntimeUnavailable(f"the plan was built by {plan.library}, installed is {library.name}; {again}")
