"""GPU providers of ONNX Runtime: refused where the machine lacks them, and where work would fall to the CPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from driver import Cuda, Status
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, evaluate, export

from clipq.bundle import open_bundle
from clipq.engines import census as census_module
from clipq.engines import cuda as cuda_module
from clipq.engines import kernel_trace, layers, ort, ort_providers, ort_rows
from clipq.engines.catalog import RUNTIMES
from clipq.engines.census import take_census
from clipq.engines.ort import OrtEngine
from clipq.engines.ort_providers import (
    PROVIDERS,
    find_provider,
    load_cuda_libraries,
    refuse_fallback,
    why_not_loaded,
)
from clipq.errors import EngineError, OutOfMemory, RuntimeUnavailable
from clipq.evaluate.bench import bench
from clipq.evaluate.cells.cells import BatchSize, run_in_batches
from clipq.evaluate.cells.subjects import Subject


def session(providers, **nodes):
    parts = [
        SimpleNamespace(ep_name=provider, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
        for provider, ops in nodes.items()
    ]
    return SimpleNamespace(get_providers=lambda: providers, get_provider_graph_assignment_info=lambda: parts)


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_shape_arithmetic_may_run_on_the_cpu():
    found = session([CUDA, CPU], **{CUDA: ["MatMul", "Softmax"], CPU: ["Shape", "Gather", "Concat"]})
    refuse_fallback(found, "ort-cuda", PROVIDERS["ort-cuda"])


def test_computing_on_the_cpu_is_refused():
    found = session([CUDA, CPU], **{CUDA: ["MatMul"], CPU: ["MatMulInteger", "MatMulInteger", "Conv"]})
    with pytest.raises(EngineError, match="2 MatMulInteger, 1 Conv would run on the CPU"):
        refuse_fallback(found, "ort-cuda", PROVIDERS["ort-cuda"])


def test_a_provider_that_was_dropped_is_refused():
    with pytest.raises(EngineError, match="not on CUDAExecutionProvider"):
        refuse_fallback(session([CPU]), "ort-cuda", PROVIDERS["ort-cuda"])


def test_assignment_is_what_onnxruntime_reports():
    """The real session's report has the attributes that ``refuse_fallback`` reads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    real = onnxruntime.InferenceSession(str(DEMO_BUNDLE / "image.onnx"), options, providers=[CPU])
    with pytest.raises(EngineError, match=r"MatMul, .* would run on the CPU"):
        refuse_fallback(real, "ort-cuda", SimpleNamespace(name=CPU))


def test_no_gpu(monkeypatch):
    cuda = Cuda()
    cuda.status = Status.cudaErrorInsufficientDriver
    monkeypatch.setattr(cuda_module, "cudart", lambda: cuda)
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA driver"):
        find_provider("ort-cuda")
    assert RUNTIMES["ort-cuda"].status().state == "no"
    with pytest.raises(RuntimeUnavailable):
        OrtEngine(DEMO_BUNDLE / "image.onnx", "ort-cuda")


def test_the_plugin_provider_says_what_to_install():
    pytest.importorskip("onnxruntime")
    if RUNTIMES["ort-tensorrt-rtx"].status().works:
        pytest.skip("the plugin works here")
    assert "pip install onnxruntime-ep-nv-tensorrt-rtx" in RUNTIMES["ort-tensorrt-rtx"].status().detail


def test_gpu_runtimes_on_the_command_line(tmp_path):
    if RUNTIMES["ort-cuda"].status().works:
        pytest.skip("there is a GPU")
    done = evaluate("run", str(DEMO_BUNDLE), "--data", "demo:test", "--runtime", "ort-cuda", "-o", str(tmp_path / "x"))
    assert_refused(done, "ort-cuda")
    assert not (tmp_path / "x").exists()
    assert_refused(export("run", "demo", "--runtime", "ort-cuda", "-o", str(tmp_path / "y")), "ort-cuda")


@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_integer_products_are_the_same_numbers(tmp_path, floats):
    """MatMulInteger gives what the Q/DQ file means, and is what the CUDA provider has an integer kernel for."""
    recipes = [f"int8-static:activations=symmetric,floats={floats}", f"int8-static:form=matmulinteger,floats={floats}"]
    flags = [flag for recipe in recipes for flag in ("--recipe", recipe)]
    done = export("quantize", str(DEMO_BUNDLE), "--calibration-set", str(CALIBRATION), "-o", str(tmp_path), *flags)
    assert done.returncode == 0, done.stderr
    times = {"fp16": "1.9 to 3.1", "fp32": "3.2 to 5"}[floats]
    assert f"times the time of fp16: image tower {times}, text tower {times}" in done.stderr
    qdq, integer = (tmp_path / line.rsplit("/", 1)[-1] for line in done.stdout.split())
    operators = [node.op_type for node in onnx.load(integer / "image.onnx").graph.node]
    assert operators.count("MatMulInteger") == 16 and "DequantizeLinear" not in operators
    size = onnx.load(qdq / "image.onnx").graph.input[0].type.tensor_type.shape.dim[2].dim_value
    feed = {"image": np.random.default_rng(0).standard_normal((4, 3, size, size)).astype(np.float32)}
    with OrtEngine(qdq / "image.onnx", simulated=True) as one, OrtEngine(integer / "image.onnx") as other:
        a, b = one.run(feed)["image_features"], other.run(feed)["image_features"]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    # Sums in another order round some activations to the neighbouring integer further on.
    assert cosine.min() > 0.999


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU in name: what needs its driver fails where it fails on a machine that lacks a library."""
    cuda = Cuda()
    monkeypatch.setattr(cuda_module, "cudart", lambda: cuda)
    why_not_loaded.cache_clear()
    yield cuda
    why_not_loaded.cache_clear()


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a driver")
def test_a_provider_that_does_not_load_says_why(pretended_gpu, capfd):
    """ONNX Runtime lists what it was built with, whether its libraries are here or not."""
    import onnxruntime

    for runtime, library in (("ort-cuda", r"lib(cuda|cublasLt)\.so"), ("ort-tensorrt", r"lib(nvinfer|cublas)\.so")):
        if PROVIDERS[runtime].name not in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime is for CPUs alone")
        with pytest.raises(RuntimeUnavailable, match=f"does not load: {library}"):
            find_provider(runtime)
        assert RUNTIMES[runtime].status().state == "no"
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def libraries_not_loaded():
    """They are loaded once a process."""
    load_cuda_libraries.cache_clear()
    yield
    load_cuda_libraries.cache_clear()


@pytest.mark.usefixtures("libraries_not_loaded")
def test_cuda_libraries_are_found_wherever_nvidias_packages_lie(tmp_path, monkeypatch):
    """Two places, neither beside onnxruntime: CUDA 13's layout in one, a folder per library in the other."""
    import onnxruntime

    files = ("a/nvidia/cu13/lib/libcublas.so.13", "a/nvidia/cu13/lib/libcublasLt.so.13", "a/nvidia/cu12/lib/libcudart.so.12",
             "b/nvidia/cu13/lib/libcudart.so.13", "b/nvidia/cudnn/lib/libcudnn.so.9")  # fmt: skip
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    places = SimpleNamespace(submodule_search_locations=[str(tmp_path / "a/nvidia"), str(tmp_path / "b/nvidia")])
    loaded = []
    monkeypatch.setattr(ort_providers, "find_spec", lambda name: places)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(path.removeprefix(f"{tmp_path}/")))
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load x"), raising=False)
    load_cuda_libraries()
    assert loaded == [files[1], files[0], files[3], files[4]]


@pytest.mark.usefixtures("libraries_not_loaded")
def test_nothing_of_preloading_reaches_stdout(monkeypatch, capsys):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load x"), raising=False)
    load_cuda_libraries()
    assert capsys.readouterr() == ("", "Failed to load x\n")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("[ONNXRuntimeError] : 6 : ... BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9", OutOfMemory),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; file=cuda_allocator.cc ; expr=cudaMalloc", OutOfMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemory),
        ("CUDNN failure 4000: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemory),
        ("CUDA failure 700: an illegal memory access was encountered", EngineError),
    ],
)  # fmt: skip
def test_what_running_out_of_memory_is_called(said, kind):
    with OrtEngine(DEMO_BUNDLE / "image.onnx") as engine, pytest.raises(EngineError) as found, engine._named_errors():
        raise RuntimeError(said)
    assert type(found.value) is kind


@pytest.fixture
def on_a_device(pretended_gpu):
    """Makes an engine take the way over a GPU's streams and buffers, on the one device that is here: the CPU."""

    def moved(engine, own_stream):
        engine._device, engine._uploads = "cpu", cuda_module.Stream()
        engine._stream = cuda_module.Stream() if own_stream else None
        if own_stream:
            # A provider that runs on our stream runs when the stream gets there.
            session, handle = engine._session, engine._stream.handle
            queue = lambda binding, options: pretended_gpu.enqueue(handle, lambda: session.run_with_iobinding(binding))  # noqa: E731
            engine._session = SimpleNamespace(io_binding=session.io_binding, run_with_iobinding=queue)
        return engine

    return moved


@pytest.mark.parametrize("own_stream", [True, False])
def test_batches_in_device_memory_give_the_same_numbers(pretended_gpu, on_a_device, own_stream):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    pixels = np.random.default_rng(0).standard_normal((11, *shape)).astype(np.float32)
    with OrtEngine(DEMO_BUNDLE / "image.onnx") as engine, OrtEngine(DEMO_BUNDLE / "image.onnx") as plain:
        on_a_device(engine, own_stream)
        for _ in range(2):
            feeds = ({"image": pixels[start : start + 4].copy()} for start in range(0, 11, 4))
            found = np.concatenate([result["image_features"] for result in engine.run_ahead(feeds)])
            np.testing.assert_array_equal(found, run_in_batches(plain, pixels, BatchSize(4)))
        np.testing.assert_array_equal(engine.run({"image": pixels[:4]})["image_features"], found[:4])
        # Three sizes and slots, each with its input, and its output on both sides.
        assert len(engine._batches) == 3 and pretended_gpu.allocations == 9
        engine.close()
        assert not pretended_gpu.memory
        with pytest.raises(EngineError, match="closed"):
            engine.run({"image": pixels})


def test_a_full_gpu_is_out_of_memory(pretended_gpu, on_a_device):
    pretended_gpu.properties.totalGlobalMem = 1000
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    with OrtEngine(DEMO_BUNDLE / "image.onnx") as engine, pytest.raises(OutOfMemory):
        on_a_device(engine, True).run({"image": np.zeros((2, *shape), np.float32)})


def test_a_full_gpu_is_out_of_memory_while_it_is_timed_too(pretended_gpu, on_a_device):
    pretended_gpu.properties.totalGlobalMem = 1000
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    with OrtEngine(DEMO_BUNDLE / "image.onnx") as engine, pytest.raises(OutOfMemory, match=r"^CUDA: "):
        on_a_device(engine, True).device_milliseconds({"image": np.zeros((2, *shape), np.float32)})


def test_what_is_refused_after_loading_leaves_nothing(pretended_gpu, monkeypatch, tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", "m"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", "m"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [value], [output])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    import onnxruntime

    destroyed = []
    monkeypatch.setattr(pretended_gpu, "cudaStreamDestroy", lambda stream: destroyed.append(stream) or (Status(0),))
    monkeypatch.setattr(ort, "find_provider", lambda runtime: None)
    monkeypatch.setattr(
        ort,
        "make_session",
        lambda path, runtime, options, own: onnxruntime.InferenceSession(path, options, providers=[CPU]),
    )
    with pytest.raises(EngineError, match=r"'x' is \(None, None\); only the batch may be dynamic"):
        OrtEngine(tmp_path / "m.onnx", "ort-cuda")
    assert len(destroyed) == len(pretended_gpu.streams) == 2


def test_an_onnxruntime_that_does_not_say_what_it_leaves_to_the_cpu(monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", object)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.raises(RuntimeUnavailable, match=r"install 1\.24 or later"):
        find_provider("ort-cuda")


def test_device_time_is_between_events_on_the_providers_stream(pretended_gpu, on_a_device):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    feed = {"image": np.zeros((2, *shape), np.float32)}
    with OrtEngine(DEMO_BUNDLE / "image.onnx") as engine:
        assert engine.device_milliseconds(feed) is None
        assert on_a_device(engine, True).device_milliseconds(feed) == 1.5


def test_names_end_where_c_says(monkeypatch):
    cuda = Cuda(name="NVIDIA H100\0garbage")
    monkeypatch.setattr(cuda, "cudaDeviceGetPCIBusId", lambda length, device: (Status(0), b"0000:00:05.0\0\0x\0"))
    monkeypatch.setattr(cuda_module, "cudart", lambda: cuda)
    assert cuda_module.current_gpu().name == "NVIDIA H100"
    assert cuda_module.pci_bus_id() == "0000:00:05.0"


def test_without_cupti_the_census_says_why(monkeypatch):
    """The operators' profile is left, and says that it names no kernel."""
    monkeypatch.setitem(sys.modules, "cupti", None)
    kernel_trace._tracer.cache_clear()
    with pytest.raises(RuntimeUnavailable, match="pip install cupti-python"):
        kernel_trace.trace_gpu_kernels(lambda: None, runs=1)

    def refused(*arguments, **options):
        raise RuntimeUnavailable("CUPTI: no privilege")

    monkeypatch.setattr(layers, "take_kernel_census", refused)
    monkeypatch.setattr(
        census_module, "take_census", lambda path, tower, feed, runtime, **options: take_census(path, tower, feed)
    )
    monkeypatch.setattr(ort_rows, "_session", lambda runtime, load: OrtEngine(load.path))
    bundle = open_bundle(DEMO_BUNDLE)
    feed = bench.plausible_feed(bundle, "image", 2)
    census = bench.subject_census(Subject(bundle, "ort-cuda", 0), "image", feed)
    assert census.verdict == "float" and census.evidence.endswith("; no kernel names: CUPTI: no privilege")
    assert bench.subject_census(Subject(bundle, "ort-tensorrt", 0), "image", feed).verdict == "unknown"
