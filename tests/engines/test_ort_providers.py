"""GPU providers of ONNX Runtime: refused where the machine lacks them, and where work would fall to the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from driver import Cuda, Status
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, evaluate, export

from clipq.bundle import open_bundle
from clipq.engines import cuda as cuda_module
from clipq.engines.catalog import RUNTIMES
from clipq.engines.ort import OrtEngine
from clipq.engines.ort_providers import PROVIDERS, find_provider, refuse_fallback
from clipq.errors import EngineError, RuntimeUnavailable
from clipq.evaluate.cells import BatchSize, run_in_batches


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


def test_batches_in_device_memory_give_the_same_numbers():
    """The way over IO bindings, on the one device that is here: the CPU's memory."""
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    pixels = np.random.default_rng(0).standard_normal((11, *shape)).astype(np.float32)
    with OrtEngine(DEMO_BUNDLE / "image.onnx") as engine, OrtEngine(DEMO_BUNDLE / "image.onnx") as plain:
        engine._device = "cpu"
        for _ in range(2):
            feeds = ({"image": pixels[start : start + 4].copy()} for start in range(0, 11, 4))
            found = np.concatenate([result["image_features"] for result in engine.run_ahead(feeds)])
            np.testing.assert_array_equal(found, run_in_batches(plain, pixels, BatchSize(4)))
        assert len(engine._on_device) == 3
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.run({"image": pixels})


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
    recipes = [f"int8-static:floats={floats}", f"int8-static:form=matmulinteger,floats={floats}"]
    flags = [flag for recipe in recipes for flag in ("--recipe", recipe)]
    done = export("quantize", str(DEMO_BUNDLE), "--calibration-set", str(CALIBRATION), "-o", str(tmp_path), *flags)
    assert done.returncode == 0, done.stderr
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
