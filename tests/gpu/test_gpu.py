"""The engine tests on a real GPU, for every GPU runtime that works on this machine: ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from support import CALIBRATION, DEMO_BUNDLE, evaluate, export

from clipq.bundle import open_bundle
from clipq.engines.catalog import RUNTIMES, open_engine
from clipq.engines.cuda import free_memory
from clipq.engines.latency import measure_latency
from clipq.engines.ort import OrtEngine
from clipq.engines.tensorrt_library import PACKAGES, open_library
from clipq.engines.trt import TensorRtEngine
from clipq.errors import EngineError
from clipq.evaluate.bench.bench import plausible_feed, subject_census
from clipq.evaluate.cells.subjects import Subject

pytestmark = pytest.mark.gpu

GPU_RUNTIMES = [name for name, runtime in RUNTIMES.items() if runtime.device == "cuda"]
RECIPES = {"fp16": "fp16", "int8-static": "int8-static", "int4-weight-only": "int4-weight-only"}
# TensorRT 8.6 has no 4 bits, and reads half-precision scales no more than any of that opset.
OLD_RECIPES = {"fp16": "fp16", "int8-static": "int8-static:floats=fp32"}
# Smallest cosine to the FP32 embedding on ONNX Runtime's CPU provider, over a batch.
CLOSE = {"fp32": 0.99999, "fp16": 0.999, "int8-static": 0.98, "int4-weight-only": 0.95}


def require(runtime):
    status = RUNTIMES[runtime].status()
    if not status.works:
        pytest.skip(f"{runtime}: {status.detail}")


@pytest.fixture(scope="session", params=GPU_RUNTIMES)
def engines(request, tmp_path_factory):
    """Bundles of the demo by recipe, in the form the runtime takes; no torch is needed for this."""
    runtime = request.param
    require(runtime)
    folder = tmp_path_factory.mktemp(runtime)
    old = runtime in PACKAGES and not open_library(runtime).features.int4
    recipes = OLD_RECIPES if old else RECIPES
    flags = [flag for text in recipes.values() for flag in ("--recipe", text)]
    arguments = ("--runtime", runtime, "--calibration-set", str(CALIBRATION), "-o", str(folder))
    done = export("quantize", str(DEMO_BUNDLE), *flags, *arguments)
    assert done.returncode == 0, done.stderr
    made = {"fp32": DEMO_BUNDLE} | dict(zip(recipes, done.stdout.split(), strict=True))
    if RUNTIMES[runtime].takes == "plan":
        for name, bundle in made.items():
            done = export("build", str(bundle), "--runtime", runtime, "-o", str(folder))
            assert done.returncode == 0, f"{name}: {done.stderr}"
            made[name] = done.stdout.split()[-1]
    return runtime, {name: open_bundle(type(DEMO_BUNDLE)(path)) for name, path in made.items()}


@pytest.mark.parametrize("recipe", CLOSE)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_embeddings_are_those_of_the_cpu(engines, recipe, tower):
    runtime, bundles = engines
    if recipe not in bundles:
        pytest.skip(f"{runtime} here has no {recipe}")
    feed = plausible_feed(bundles[recipe], tower, 8)
    with open_engine(bundles[recipe], tower, runtime) as engine, OrtEngine(DEMO_BUNDLE / f"{tower}.onnx") as cpu:
        (actual,), (expected,) = engine.run(feed).values(), cpu.run(feed).values()
        again = next(iter(engine.run(feed).values()))
    cosine = (actual * expected).sum(1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > CLOSE[recipe], f"{runtime} {recipe} {tower}: {cosine.min()}"
    np.testing.assert_array_equal(actual, again)


def test_batches_give_the_same_rows(engines):
    runtime, bundles = engines
    feed = plausible_feed(bundles["fp16"], "image", 8)
    with open_engine(bundles["fp16"], "image", runtime) as engine:
        (whole,) = engine.run(feed).values()
        parts = [next(iter(engine.run({"image": feed["image"][i : i + 1]}).values())) for i in range(8)]
    cosine = (whole * np.concatenate(parts)).sum(1) / (np.linalg.norm(whole, axis=1) ** 2)
    assert np.abs(cosine - 1).max() < 0.01


def test_batches_copied_ahead_give_the_same_numbers(engines):
    runtime, bundles = engines
    pixels = np.random.default_rng(0).standard_normal(
        (35, *plausible_feed(bundles["fp16"], "image", 1)["image"].shape[1:])
    )
    feeds = [{"image": pixels[start : start + 4].astype(np.float32)} for start in range(0, 35, 4)]
    with open_engine(bundles["fp16"], "image", runtime) as engine:
        alone = [next(iter(engine.run(feed).values())) for feed in feeds]
        for expected, result in zip(alone, engine.run_ahead(feeds), strict=True):
            np.testing.assert_array_equal(next(iter(result.values())), expected)


def test_integers_are_proved(engines):
    runtime, bundles = engines
    verdicts = {}
    for recipe in ("fp32", "fp16", "int8-static"):
        census = subject_census(
            Subject(bundles[recipe], runtime, 0), "image", plausible_feed(bundles[recipe], "image", 8)
        )
        verdicts[recipe] = census.verdict, census.evidence, census.precision_time_shares
        assert census.evidence
    assert verdicts["fp32"][0] != "integer" and verdicts["fp16"][0] != "integer", verdicts
    if runtime == "ort-cuda":
        assert verdicts["int8-static"][0] in ("integer", "mixed"), verdicts


def test_memory_is_given_back(engines):
    runtime, bundles = engines
    with open_engine(bundles["fp16"], "image", runtime) as engine:
        engine.run(plausible_feed(bundles["fp16"], "image", 8))
    before = free_memory()
    for _ in range(5):
        with open_engine(bundles["fp16"], "image", runtime) as engine:
            engine.run(plausible_feed(bundles["fp16"], "image", 8))
    assert before - free_memory() < 64 * 2**20


def test_device_time_is_no_longer_than_the_walls(engines):
    runtime, bundles = engines
    feed = plausible_feed(bundles["fp16"], "image", 32)
    with open_engine(bundles["fp16"], "image", runtime) as engine:
        timed = measure_latency({"one": engine}, [{"one": feed}], repeats=9)["one"][0]
    if not timed.device_milliseconds:
        pytest.skip(f"{runtime} has no events of its own")
    assert 0 < np.median(timed.device_milliseconds) <= np.median(timed.milliseconds)


def test_graphs_device_time_and_profile_limits(engines):
    _, bundles = engines
    if bundles["fp16"].built_for is None:
        pytest.skip("plans alone")
    path, plan = bundles["fp16"].tower_path("image"), bundles["fp16"].manifest.image.plan
    feed = plausible_feed(bundles["fp16"], "image", 8)
    with TensorRtEngine(path, plan, graphs=True) as graphed, TensorRtEngine(path, plan) as plain:
        expected = next(iter(plain.run(feed).values()))
        for _ in range(3):
            np.testing.assert_allclose(next(iter(graphed.run(feed).values())), expected, atol=1e-3)
        for result in graphed.run_ahead([feed] * 4):
            np.testing.assert_allclose(next(iter(result.values())), expected, atol=1e-3)
        assert graphed.device_milliseconds(feed) > 0
        with pytest.raises(EngineError, match="takes batches from 1 to 32"):
            plain.run(plausible_feed(bundles["fp16"], "image", 33))


@pytest.mark.parametrize("calibrator", ["entropy2", "minmax", "legacy"])
def test_calibrators_of_the_library(calibrator, tmp_path):
    require("tensorrt")
    arguments = ("build", str(DEMO_BUNDLE), "--runtime", "tensorrt", "--calibrator", calibrator, "-o", str(tmp_path))
    done = export(*arguments, "--calibration-set", str(CALIBRATION))
    if "has no calibrators" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(next(tmp_path.iterdir()))
    assert bundle.manifest.image.plan.calibration_cache is not None
    feed = plausible_feed(bundle, "image", 8)
    with open_engine(bundle, "image", "tensorrt") as engine, OrtEngine(DEMO_BUNDLE / "image.onnx") as cpu:
        (actual,), (expected,) = engine.run(feed).values(), cpu.run(feed).values()
    cosine = (actual * expected).sum(1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9


def test_the_suite_runs_on_the_engine(engines, tmp_path):
    runtime, bundles = engines
    paths = [str(bundle.path) for bundle in bundles.values()]
    done = evaluate("run", *paths, "--data", "demo:test", "--runtime", runtime, "--repeats", "5", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    accuracy = {row["recipe"]: float(row["value"]) for row in rows if row["metric"] == "acc1" and not row["group"]}
    assert accuracy["fp32"] > 0.9 and accuracy["int8-static"] > 0.85, accuracy
    assert {row["runtime"] for row in rows} == {runtime}
    assert any(row["metric"] == "gpu_bytes" for row in rows)
