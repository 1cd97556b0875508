"""Plans from loading to closing, over stand-ins at the driver's edge (the same tests run on a GPU in tests/gpu)."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from driver import Cuda, Status, make_trt
from support import DEMO_BUNDLE, assert_refused, evaluate

from clipq.bundle import Plan, open_bundle
from clipq.engines import cuda as cuda_module
from clipq.engines import trt as trt_module
from clipq.engines.layers import take_layers_census
from clipq.engines.ort import OrtEngine
from clipq.engines.tensorrt_library import Log, TensorRtLibrary
from clipq.engines.trt import TensorRtEngine
from clipq.errors import EngineError, OutOfMemory, RuntimeUnavailable
from clipq.exporters.int8_calibrator import check_cache, make_calibrator

PLAN = Plan(
    runtime="tensorrt", library="tensorrt 10.9.0", capability="sm_89", gpu="Test GPU", driver_cuda="13.2",
    batch=(1, 4, 8), flags=(), strongly_typed=True, layers={"QUANTIZE INT8": 1}, source_sha256="0" * 64,
)  # fmt: skip


@pytest.fixture
def device(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(cuda_module, "cudart", lambda: cuda)
    use(monkeypatch, make_trt(cuda))
    return cuda


def use(monkeypatch, trt):
    monkeypatch.setattr(trt_module, "open_library", lambda runtime: TensorRtLibrary(runtime, trt, Log()))


IMAGE = DEMO_BUNDLE / "image.onnx"


@pytest.mark.parametrize("graphs", [False, True])
def test_features_are_the_towers(device, graphs):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape
    with TensorRtEngine(IMAGE, PLAN, graphs=graphs) as engine, OrtEngine(IMAGE) as expected:
        for batch in (2, 8, 2, 2):
            feed = {"image": np.random.default_rng(batch).standard_normal((batch, *shape[1:])).astype(np.float32)}
            actual = engine.run(feed)["image_features"]
            np.testing.assert_allclose(actual, expected.run(feed)["image_features"], atol=1e-5)
            assert engine.device_milliseconds(feed) == 1.5
    assert (device.launched > 0) == graphs


@pytest.mark.parametrize("graphs", [False, True])
def test_the_next_batch_is_copied_while_one_runs(device, graphs):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    rng = np.random.default_rng(0)
    feeds = [{"image": rng.standard_normal((size, *shape)).astype(np.float32)} for size in (4, 4, 4, 4, 4, 2)]
    with TensorRtEngine(IMAGE, PLAN, graphs=graphs) as engine, OrtEngine(IMAGE) as expected:
        for _ in range(3):
            for feed, actual in zip(feeds, engine.run_ahead(feeds), strict=True):
                features = expected.run(feed)["image_features"]
                np.testing.assert_allclose(actual["image_features"], features, atol=1e-5)
        assert device.allocations == 3 * 3  # input, output here and there; size 4 in two slots, size 2 in one
    assert not device.memory


def test_graphs_are_dropped_while_the_next_batch_is_staged(device, monkeypatch):
    monkeypatch.setattr(device, "cudaGraphExecDestroy", lambda graph: time.sleep(0.02) or (Status(0),))
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    with TensorRtEngine(IMAGE, PLAN, graphs=True) as engine:
        for sizes in ((4, 4, 2), (4, 3), (4, 3, 5)):
            feeds = [{"image": np.zeros((size, *shape), np.float32)} for size in sizes]
            assert [len(result["image_features"]) for result in engine.run_ahead(feeds)] == list(sizes)


def test_results_are_fresh_and_memory_is_allocated_once_a_size(device):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    feeds = [{"image": np.full((3, *shape), value, np.float32)} for value in (0.1, -0.4)]
    with TensorRtEngine(IMAGE, PLAN) as engine:
        first = engine.run(feeds[0])["image_features"]
        copy = first.copy()
        after_one = device.allocations
        engine.run(feeds[1])
        np.testing.assert_array_equal(first, copy)
        assert device.allocations == after_one == 3
    assert not device.memory


def test_token_ids_are_narrowed_where_the_library_has_no_64_bits(device, monkeypatch):
    use(monkeypatch, make_trt(device, narrow=True))
    feed = {"text": np.random.default_rng(0).integers(1, 90, (2, 24)).astype(np.int64)}
    context = open_bundle(DEMO_BUNDLE).manifest.tokenizer.context_length
    feed = {"text": np.resize(feed["text"], (2, context))}
    with TensorRtEngine(DEMO_BUNDLE / "text.onnx", PLAN) as engine, OrtEngine(DEMO_BUNDLE / "text.onnx") as expected:
        assert engine.inputs[0].dtype == np.int64
        np.testing.assert_allclose(engine.run(feed)["text_features"], expected.run(feed)["text_features"], atol=1e-5)


def test_batch_outside_the_profile(device):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    with (
        TensorRtEngine(IMAGE, PLAN) as engine,
        pytest.raises(EngineError, match=r"from 1 to 8, asked for 9; .*--batch 1,4,9"),
    ):
        engine.run({"image": np.zeros((9, *shape), np.float32)})


def test_a_plan_that_others_built_says_its_batches_itself(device):
    """Nobody wrote down for which GPU it is, nor its profile: the library checks the one and tells the other."""
    foreign = PLAN.model_copy(update={"batch": None, "capability": None, "gpu": None, "strongly_typed": None})
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    with TensorRtEngine(IMAGE, foreign) as engine:
        assert engine.run({"image": np.zeros((5, *shape), np.float32)})["image_features"].shape == (5, 128)
        with pytest.raises(EngineError, match="from 1 to 5, asked for 6"):
            engine.run({"image": np.zeros((6, *shape), np.float32)})


def test_out_of_memory_frees_what_it_took(device):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    device.properties.totalGlobalMem = 8 * int(np.prod(shape)) * 4 + 100
    with TensorRtEngine(IMAGE, PLAN) as engine:
        with pytest.raises(OutOfMemory, match="cudaErrorMemoryAllocation"):
            engine.run({"image": np.zeros((8, *shape), np.float32)})
        assert not device.memory
        engine.run({"image": np.zeros((4, *shape), np.float32)})


def test_closed_engine(device):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    engine = TensorRtEngine(IMAGE, PLAN)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"image": np.zeros((1, *shape), np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capability": "sm_75", "gpu": "Tesla T4"}, r"built for Tesla T4 \(sm_75\), this GPU is Test GPU \(sm_89\)"),
        ({"gpu": "NVIDIA L4"}, "built on NVIDIA L4, this GPU is Test GPU"),
        ({"library": "tensorrt 10.0.1"}, r"built by tensorrt 10.0.1, installed is tensorrt 10.9.0; build it again"),
    ],
)
def test_plans_from_elsewhere(device, change, message):
    with pytest.raises(RuntimeUnavailable, match=message):
        TensorRtEngine(IMAGE, PLAN.model_copy(update=change))


def test_a_plan_the_library_does_not_take(device, tmp_path):
    (tmp_path / "empty.plan").write_bytes(b"")
    with pytest.raises(EngineError, match=r"cannot load .*empty.plan"):
        TensorRtEngine(tmp_path / "empty.plan", PLAN)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (Status.cudaErrorInsufficientDriver, "no NVIDIA driver, or one too old"),
        (Status.cudaErrorNoDevice, "no GPU is visible"),
    ],
)
def test_no_gpu(device, status, message):
    device.status = status
    with pytest.raises(RuntimeUnavailable, match=message):
        TensorRtEngine(IMAGE, PLAN)


def test_census_by_inspector_and_profiler(device):
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    with TensorRtEngine(IMAGE, PLAN) as engine:
        census = take_layers_census(engine, "image", {"image": np.zeros((2, *shape), np.float32)}, runs=4)
    assert census.verdict == "integer" and census.integer_share == 1
    assert census.reformat_share == pytest.approx(0.25) and census.matmul_time_share == pytest.approx(0.75)
    assert census.groups[0].kernels == ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n",)
    assert "tensorrt 10.9.0" in census.evidence


def test_calibrator_feeds_whole_batches_and_keeps_its_cache(device, tmp_path):
    trt = make_trt(device, narrow=True)
    feeds = [{"text": np.full((4, 6), value, np.int64)} for value in (5, 9)] + [{"text": np.zeros((1, 6), np.int64)}]
    calibrator = make_calibrator(trt, "entropy2", tmp_path / "cache", lambda: iter(feeds), 4)
    seen = []
    while (addresses := calibrator.get_batch(["text"])) is not None:
        seen.append(np.frombuffer(device.memory[addresses[0]], np.int32)[0])
    assert seen == [5, 9] and calibrator.error is None and not device.memory
    assert calibrator.read_calibration_cache() is None
    calibrator.write_calibration_cache(memoryview(b"TRT-8600-EntropyCalibration2\n"))
    assert calibrator.read_calibration_cache() == b"TRT-8600-EntropyCalibration2\n"


def test_calibration_is_never_cut_short(device, tmp_path):
    """Whatever goes wrong while data is drawn: the library would take it for the end of the data."""

    def broken():
        yield {"text": np.zeros((4, 6), np.int64)}
        raise OSError("disk")

    calibrator = make_calibrator(make_trt(device), "entropy2", tmp_path / "cache", broken, 4)
    assert calibrator.get_batch(["text"]) and calibrator.get_batch(["text"]) is None
    assert "OSError: disk" in str(calibrator.error) and not device.memory
    few = make_calibrator(make_trt(device), "entropy2", tmp_path / "c", lambda: iter([{"text": np.zeros((3, 6))}]), 4)
    assert few.get_batch(["text"]) is None and "no whole batch of 4" in str(few.error)


def test_one_graph_at_a_time(device):
    """A graph is void once its context has seen another shape: 8, 2, 8 must capture three times."""
    shape = open_bundle(DEMO_BUNDLE).manifest.image.input_shape[1:]
    with TensorRtEngine(IMAGE, PLAN, graphs=True) as engine, OrtEngine(IMAGE) as expected:
        for batch in (8, 2, 8, 8):
            feed = {"image": np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)}
            np.testing.assert_allclose(
                engine.run(feed)["image_features"], expected.run(feed)["image_features"], atol=1e-5
            )
    assert device.captured == 3 and device.launched == 4


def test_calibrator_keeps_the_error_that_the_library_would_swallow(device, tmp_path):
    device.properties.totalGlobalMem = 1
    feeds = [{"text": np.zeros((4, 6), np.int64)}]
    calibrator = make_calibrator(make_trt(device), "entropy2", tmp_path / "cache", lambda: iter(feeds), 4)
    assert calibrator.get_batch(["text"]) is None and isinstance(calibrator.error, OutOfMemory)


def test_calibration_cache_of_another_model(tmp_path):
    cache = tmp_path / "image.calibration_cache"
    with pytest.raises(Exception, match="does not exist"):
        check_cache(cache, IMAGE)
    cache.write_text("hello")
    with pytest.raises(Exception, match="no TensorRT calibration cache"):
        check_cache(cache, IMAGE)
    cache.write_text(
        "TRT-8600-EntropyCalibration2\nimage: 3c010a14\n(Unnamed Layer* 1): 3c010a14\nimage_features: 3d0\n"
    )
    check_cache(cache, IMAGE)
    cache.write_text("TRT-8600-EntropyCalibration2\ninput.1: 3c010a14\nconv1: 3c010a14\nlayer1: 3d0\n")
    with pytest.raises(Exception, match=r"0 of its 3 tensors are in image\.onnx"):
        check_cache(cache, IMAGE)


@pytest.fixture
def built(tmp_path):
    """A bundle with plans, as it would be copied from another machine."""
    folder = tmp_path / "engine"
    shutil.copytree(DEMO_BUNDLE, folder)
    manifest = json.loads((folder / "clipq.json").read_text())
    for tower in ("image", "text"):
        manifest[tower]["plan"] = {
            **PLAN.model_dump(mode="json"),
            "runtime": "tensorrt-rtx",
            "library": "tensorrt_rtx 1",
        }
    (folder / "clipq.json").write_text(json.dumps(manifest))
    return folder


def test_plans_are_refused_where_they_cannot_run(built, tmp_path):
    """No stand-ins: whatever this machine lacks is said in one line, and nothing is left behind."""
    out = tmp_path / "out"
    done = evaluate("run", str(built), "--data", "demo:test", "-o", str(out))
    assert_refused(done, "tensorrt-rtx")
    assert not out.exists()
    assert_refused(evaluate("inspect", str(built)), "tensorrt-rtx")
    assert_refused(evaluate("inspect", str(DEMO_BUNDLE), "--runtime", "tensorrt"), "clipq-export build", "tensorrt")
    with (built / "image.onnx").open("ab") as stream:
        stream.write(b"x")
    assert_refused(evaluate("inspect", str(built)), "does not match the digest")
