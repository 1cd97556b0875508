"""An evaluation of plans beside ONNX bundles, over stand-ins at the driver's edge."""

from __future__ import annotations

import json
import shutil

import pytest
from driver import Cuda, make_trt
from support import DEMO_BUNDLE

from clipq.bundle import Plan, open_bundle
from clipq.cpu import cpu_level
from clipq.engines import cuda as cuda_module
from clipq.engines import memory, tensorrt_library, trt
from clipq.engines.memory import GpuMemory
from clipq.engines.tensorrt_library import Log, TensorRtLibrary
from clipq.errors import BundleError, ResultsError
from clipq.evaluate.bench import bench
from clipq.evaluate.report.page import write_report
from clipq.evaluate.results.folders import gather
from clipq.evaluate.results.record import read_records
from clipq.evaluate.run import evaluate
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.schema import LatencyEntry, Suite, ViewEntry
from clipq.evaluate.sweep.grid import Grid
from clipq.evaluate.sweep.run import Listener, sweep
from clipq.evaluate.sweep.state import SweepFolder
from clipq.progress import Progress

PLAN = Plan(
    runtime="tensorrt", library="tensorrt 10.9.0", capability="sm_89", gpu="Test GPU", driver_cuda="13.2",
    batch=(1, 8, 32), flags=(), strongly_typed=True, layers={"QUANTIZE INT8": 1}, source_sha256="0" * 64,
)  # fmt: skip


@pytest.fixture
def engine(tmp_path, monkeypatch):
    cuda = Cuda()
    library = TensorRtLibrary("tensorrt", make_trt(cuda), Log())
    monkeypatch.setattr(cuda_module, "cudart", lambda: cuda)
    for module in (tensorrt_library, trt):
        monkeypatch.setattr(module, "open_library", lambda runtime: library)
    # It runs in a process of its own, which has no stand-ins.
    monkeypatch.setattr(memory, "gpu_memory", lambda *arguments: GpuMemory(1000, 2000))
    folder = tmp_path / "engine"
    shutil.copytree(DEMO_BUNDLE, folder)
    manifest = json.loads((folder / "clipq.json").read_text())
    for tower in ("image", "text"):
        manifest[tower]["plan"] = PLAN.model_dump(mode="json")
    manifest["recipe"]["name"] = "int8-static"
    (folder / "clipq.json").write_text(json.dumps(manifest))
    return folder


def run(bundles, results, settings=Settings(), **more):  # noqa: B008 (frozen)
    suite = Suite(view=(ViewEntry(source="demo:test", samples=96),), **more)
    return evaluate(bundles, suite, results, settings, given={}, progress=Progress())


def test_plans_and_onnx_bundles_side_by_side(engine, tmp_path):
    latency = LatencyEntry(batches=(2,), repeats=4)
    records = run([DEMO_BUNDLE, engine], tmp_path / "results", latency=latency)
    assert read_records(tmp_path / "results") == sorted(records, key=lambda record: record.bundle.name != "bundle")
    by_runtime = {record.runtime: record for record in records}
    assert set(by_runtime) == {"ort-cpu", "tensorrt"}
    record = by_runtime["tensorrt"]
    assert record.environment["gpu"]["name"] == "Test GPU" and "gpu" not in by_runtime["ort-cpu"].environment
    assert record.bundle.plans["image"]["library"] == "tensorrt 10.9.0"
    rows = {(row.metric, row.view): row for row in record.measurements if not row.group}
    assert rows["acc1", "demo-test"].delta == 0 and rows["agreement", "demo-test"].value == 1
    assert rows["gpu_bytes", "tower:image"].value == 2000 and ("peak_rss_bytes", "tower:image") not in rows
    assert rows["reformat_share", "tower:image"].value == pytest.approx(0.25)
    device = [row for row in record.measurements if row.metric == "device_latency_ms.p50"]
    assert {row.value for row in device} == {1.5} and len(device) == 2
    assert not any(row.metric.startswith("device") for row in by_runtime["ort-cpu"].measurements)
    assert [census.verdict for census in record.census] == ["integer", "integer"]
    page = write_report(gather([(tmp_path, records)]), tmp_path / "report.html").read_text()
    assert f"ort-cpu ({cpu_level().name}), tensorrt" in page and "Test GPU" in page and "inspector" in page


def test_a_sweep_of_an_fp32_bundle_and_its_plan(engine, tmp_path):
    """What a grid with a TensorRT runtime makes: both are FP32, and the plan is compared with what it was built of."""
    manifest = json.loads((engine / "clipq.json").read_text())
    manifest["recipe"] |= {"name": "fp32", "source_digest": open_bundle(DEMO_BUNDLE).digest}
    (engine / "clipq.json").write_text(json.dumps(manifest))
    (tmp_path / "suite.toml").write_text('[[view]]\nname = "test"\nsource = "demo:test"\nsamples = 24\n')
    grid = Grid(
        suite=str(tmp_path / "suite.toml"), runtimes=("tensorrt",), bundles=(str(DEMO_BUNDLE), str(engine)), threads=1
    )
    listener = Listener(Progress(), lambda plan: None, lambda outcome: None)
    swept = sweep(grid, SweepFolder(tmp_path / "r"), Settings(), None, {}, listener)
    assert swept.failures == () and len(swept.results) == 1
    records = {record.runtime: record for record in read_records(swept.results[0])}
    assert {record.reference for record in records.values()} == {DEMO_BUNDLE.name}
    rows = {row.metric: row for row in records["tensorrt"].measurements if row.view == "test" and not row.group}
    assert rows["agreement"].value == 1 and rows["acc1"].delta == 0
    # Two plans of something else: nothing says which is the reference.
    shutil.copytree(engine, tmp_path / "other")
    with pytest.raises(ResultsError, match="several FP32 bundles"):
        run([engine, tmp_path / "other"], tmp_path / "s")


def test_an_engine_that_runs_out_of_memory_is_named(engine, tmp_path, monkeypatch):
    cuda_module.cudart().properties.totalGlobalMem = 200_000
    records = run([DEMO_BUNDLE, engine], tmp_path / "r")
    failed = {record.runtime: record.failed for record in records}
    assert failed["ort-cpu"] == "" and "cudaErrorMemoryAllocation" in failed["tensorrt"]


def test_auto_batch_halves_and_records_it(engine, tmp_path):
    cuda_module.cudart().properties.totalGlobalMem = 500_000
    records = run([DEMO_BUNDLE, engine], tmp_path / "r", Settings(auto_batch=True))
    assert [record.failed for record in records] == ["", ""]
    assert records[0].arguments_resolved["batch"] < 32


def test_graphs_change_times_and_no_numbers(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "joules_per_run", lambda run: 4.0)
    graphs, latency = Settings(graphs=True), LatencyEntry(batches=(2,), repeats=4)
    records = run([DEMO_BUNDLE, engine], tmp_path / "r", graphs, latency=latency)
    assert cuda_module.cudart().launched > 0
    (record,) = (record for record in records if record.runtime == "tensorrt")
    rows = {(row.metric, row.view): row for row in record.measurements if not row.group}
    assert rows["agreement", "demo-test"].value == 1 and rows["joules_per_sample", "tower:image"].value == 2
    assert record.arguments_resolved["cuda_graphs"] and record.census[0].verdict == "integer"
    with pytest.raises(BundleError, match="none of the bundles holds plans"):
        run([DEMO_BUNDLE], tmp_path / "r", graphs)


def test_a_runtime_that_does_not_take_the_files(engine, tmp_path):
    with pytest.raises(BundleError, match="holds ONNX files; make plans of them first"):
        run([DEMO_BUNDLE, engine], tmp_path / "r", Settings(runtime="tensorrt"))
