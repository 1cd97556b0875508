"""Stand-ins at the driver's edge: a CUDA runtime whose device is host memory, and a TensorRT that runs plans there.

A "plan" is the ONNX file it was made from, run by ONNX Runtime on the memory whose addresses the context is given, so
everything above the driver (buffers, shapes, copies, streams, graphs, errors) is clipq's own and does real work.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from itertools import count
from threading import RLock
from types import SimpleNamespace

import numpy as np


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class Cuda:
    """The functions of ``cuda.bindings.runtime`` that clipq calls.

    Streams are as late as CUDA lets them be: what is queued is done when somebody waits for it, so whoever forgets to
    wait, or fills memory that is still to be copied, gets wrong numbers.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, name="Test GPU", major=8, minor=9, memory=2**30):
        self.properties = SimpleNamespace(name=name.encode(), major=major, minor=minor, totalGlobalMem=memory)
        self.memory: dict[int, ctypes.Array] = {}
        self.allocations = 0
        self.launched = 0
        self.captured = 0
        self.queue: list | None = None
        self.status = Status.cudaSuccess
        self.streams: dict[int, list] = {}
        self.marks: dict[int, tuple[int, list]] = {}
        self.handles = count(7)
        self.lock = RLock()

    def cudaGetDeviceCount(self):
        return self.status, 0 if self.status else 1

    def cudaGetDeviceProperties(self, device):
        return Status(0), self.properties

    def cudaDriverGetVersion(self):
        return Status(0), 13020

    def cudaMemGetInfo(self):
        held = sum(len(block) for block in self.memory.values())
        return Status(0), self.properties.totalGlobalMem - held, self.properties.totalGlobalMem

    def _allocate(self, size):
        if size > self.cudaMemGetInfo()[1]:
            return Status.cudaErrorMemoryAllocation, 0
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        self.allocations += 1
        return Status(0), ctypes.addressof(block)

    cudaMalloc = cudaMallocHost = _allocate

    def _free(self, address):
        for stream in self.streams:
            self.cudaStreamSynchronize(stream)
        del self.memory[address]
        return (Status(0),)

    cudaFree = cudaFreeHost = _free

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        # From pageable memory CUDA may copy now or later: later is what shows who changes it too early.
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))
        return (Status(0),)

    def enqueue(self, stream, work):
        """Put work into a stream, or into the graph that is being captured."""
        (self.streams[stream] if self.queue is None else self.queue).append(work)

    cudaStreamNonBlocking = 1

    def cudaStreamCreateWithFlags(self, flags):
        handle = next(self.handles)
        self.streams[handle] = []
        return Status(0), handle

    def cudaEventCreate(self):
        return Status(0), next(self.handles)

    def cudaStreamSynchronize(self, stream):
        with self.lock:
            while self.streams[stream]:
                self.streams[stream].pop(0)()
        return (Status(0),)

    def cudaEventRecord(self, event, stream):
        done = []
        self.streams[stream].append(lambda: done.append(True))
        self.marks[event] = (stream, done)
        return (Status(0),)

    def _reach(self, stream, done):
        with self.lock:
            while not done:
                self.streams[stream].pop(0)()

    def cudaEventSynchronize(self, event):
        self._reach(*self.marks[event])
        return (Status(0),)

    def cudaStreamWaitEvent(self, stream, event, flags):
        mark = self.marks[event]
        self.streams[stream].append(lambda: self._reach(*mark))
        return (Status(0),)

    def _nothing(self, *arguments):
        return (Status(0),)

    cudaStreamDestroy = cudaEventDestroy = _nothing

    def cudaEventElapsedTime(self, start, end):
        return Status(0), 1.5

    def cudaStreamBeginCapture(self, stream, mode):
        self.queue = []
        self.captured += 1
        return (Status(0),)

    def cudaStreamEndCapture(self, stream):
        queue, self.queue = self.queue, None
        return Status(0), queue

    cudaGraphDestroy = cudaGraphExecDestroy = _nothing

    def cudaDeviceGetPCIBusId(self, length, device):
        return Status(0), b"0000:00:00.0"

    def cudaGraphInstantiate(self, graph, flags):
        return Status(0), graph

    def cudaGraphLaunch(self, graph, stream):
        self.launched += 1
        self.streams[stream] += graph
        return (Status(0),)


def make_trt(cuda, *, version="10.9.0", narrow=False):
    """A module in TensorRT's likeness; with ``narrow`` it has 32-bit integers alone, as 8.6 has."""
    import onnxruntime

    types = {"tensor(float)": np.float32, "tensor(int64)": np.int32 if narrow else np.int64}
    mode = SimpleNamespace(INPUT=0, OUTPUT=1)

    class Context:
        def __init__(self, engine):
            self.engine, self.shapes, self.addresses, self.profiler = engine, {}, {}, None

        def set_input_shape(self, name, shape):
            self.shapes[name] = tuple(shape)

        def get_tensor_shape(self, name):
            if name in self.shapes:
                return self.shapes[name]
            batch = next(iter(self.shapes.values()))[0]
            return tuple(batch if size == -1 else size for size in self.engine.get_tensor_shape(name))

        def set_tensor_address(self, name, address):
            self.addresses[name] = address

        def execute_async_v3(self, stream):
            # A capture keeps addresses and shapes as they are now.
            addresses, shapes = dict(self.addresses), dict(self.shapes)

            def view(name, shape):
                dtype = np.dtype(self.engine.get_tensor_dtype(name))
                memory = (ctypes.c_byte * int(np.prod(shape) * dtype.itemsize)).from_address(addresses[name])
                return np.ndarray(shape, dtype, memoryview(memory))

            def work():
                session = self.engine.session
                wide = {v.name: np.int64 if "int64" in v.type else np.float32 for v in session.get_inputs()}
                feed = {name: view(name, shape).astype(wide[name]) for name, shape in shapes.items()}
                for value, array in zip(session.get_outputs(), session.run(None, feed), strict=True):
                    view(value.name, array.shape)[...] = array
                if self.profiler is not None:
                    self.profiler.report_layer_time("gemm", 0.75)
                    self.profiler.report_layer_time("Reformatting CopyNode for Input Tensor 0", 0.25)

            cuda.enqueue(stream, work)
            return True

    class Inspector:
        execution_context = None

        def get_engine_information(self, form):
            return (
                '{"Layers": [{"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat"},'
                '{"Name": "gemm", "LayerType": "gemm", "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n",'
                '"Inputs": [{"Name": "x", "Format/Datatype": "Int8"}], "Outputs": []}]}'
            )

    class CudaEngine:
        device_memory_size_v2 = device_memory_size = 1000

        def __init__(self, data):
            self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            self.values = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}
            self.num_io_tensors = len(self.values)

        def get_tensor_name(self, index):
            return list(self.values)[index]

        def get_tensor_dtype(self, name):
            return types[self.values[name].type]

        def get_tensor_mode(self, name):
            return mode.INPUT if name in [value.name for value in self.session.get_inputs()] else mode.OUTPUT

        def get_tensor_profile_shape(self, name, profile):
            assert profile == 0
            return [(batch, *self.get_tensor_shape(name)[1:]) for batch in (1, 2, 5)]

        def get_tensor_shape(self, name):
            return tuple(size if isinstance(size, int) else -1 for size in self.values[name].shape)

        def create_execution_context(self):
            return Context(self)

        def create_engine_inspector(self):
            return Inspector()

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, data):
            return CudaEngine(data) if data else None

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

    class Calibrator:
        pass

    integers = {} if narrow else {"INT64": 1, "INT4": 2}
    return SimpleNamespace(
        __version__=version, Builder=object, Runtime=Runtime, ILogger=ILogger, TensorIOMode=mode, nptype=np.dtype,
        ICudaEngine=CudaEngine, IProfiler=type("IProfiler", (), {}), DataType=SimpleNamespace(**integers),
        LayerInformationFormat=SimpleNamespace(JSON=0), IInt8EntropyCalibrator2=Calibrator,
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0), ParserError=object, OnnxParser=object,
    )  # fmt: skip
