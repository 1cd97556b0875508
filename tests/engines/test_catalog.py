"""The table of runtimes: its rows, and one more row as all that a new runtime takes."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from support import DEMO_BUNDLE, ROOT

from clipq.bundle import open_bundle
from clipq.engines.base import Engine, TensorSpec
from clipq.engines.catalog import DEFAULT_RUNTIME, RUNTIMES, known_runtime, simulator
from clipq.engines.census import Census, KernelGroup
from clipq.engines.ort_providers import PROVIDERS
from clipq.engines.runtime import Load, Runtime, Status
from clipq.engines.tensorrt_library import PACKAGES
from clipq.errors import RuntimeUnavailable
from clipq.evaluate.cli import main as evaluate
from clipq.evaluate.results.record import read_records
from clipq.evaluate.sweep.grid import read_grid
from clipq.exporters.cli import main as export
from clipq.exporters.recipes import KINDS


class Toy(Engine):
    """A runtime's engine in the fewest lines: whatever comes in goes through one random projection."""

    runtime = "toy"

    def __init__(self, load):
        manifest = load.bundle.manifest
        entry = manifest.tower(load.tower)
        self.inputs = (TensorSpec(entry.input_name, np.dtype(entry.input_dtype), entry.input_shape),)
        self.outputs = (TensorSpec(entry.output_name, np.dtype(np.float32), (None, manifest.embed_dim)),)
        inner = int(np.prod(entry.input_shape[1:]))
        self.weights = np.random.default_rng(0).standard_normal((inner, manifest.embed_dim)).astype(np.float32)

    def _run(self, staged):
        (array,) = staged.values()
        return {self.outputs[0].name: array.reshape(len(array), -1).astype(np.float32) @ self.weights}

    def close(self):
        pass


def census(load, feed):
    product = KernelGroup("toy_gemm", "float", count=1, macs=1000, milliseconds=0.5)
    return Census(load.tower, (product,), {}, f"the toy's word, on {len(next(iter(feed.values())))} samples")


TOY = Runtime(
    "toy", "one random projection", "cpu", "onnx",
    status=lambda: Status("run", "toy 1.0"), version=lambda: "toy 1.0", open=Toy, census=census,
)  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "toy", TOY)


def command(main, *arguments):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_row_is_all_that_a_runtime_takes(toy, tmp_path):
    """Evaluated, benched, inspected, listed and accepted in a grid, with nothing but its row in the table."""
    ask = ("--runtime", "toy", "--data", "demo:test:n=48", "-o", tmp_path / "out", "--latency-batch", 2, "--repeats", 3)
    command(evaluate, "run", DEMO_BUNDLE, *ask)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert {row["runtime"] for row in rows} == {"toy"}
    found = {row["metric"] for row in rows}
    assert {"acc1", "latency_ms.p50", "integer_share"} <= found
    # Its row says nothing of memory, and nothing is made up.
    assert not {"peak_rss_bytes", "gpu_bytes", "joules_per_sample"} & found
    (record,) = read_records(tmp_path / "out")
    assert record.runtime == "toy" and "gpu" not in record.environment
    assert [(one.verdict, one.evidence) for one in record.census] == [("float", "the toy's word, on 2 samples")] * 2

    assert "toy_gemm" in (tmp_path / "out" / "report.html").read_text()
    assert "toy_gemm" in command(evaluate, "inspect", DEMO_BUNDLE, "--runtime", "toy", "--json")
    timed = json.loads(command(evaluate, "bench", DEMO_BUNDLE, "--runtime", "toy", "--repeats", 3, "--json"))
    assert {row["tower"] for row in timed} == {"image", "text"}
    listed = {row["name"]: row for row in json.loads(command(export, "list", "--json"))}
    assert listed["toy"] == {
        "kind": "runtime", "name": "toy", "state": "run", "detail": "one random projection: toy 1.0"
    }  # fmt: skip
    (tmp_path / "grid.toml").write_text('suite = "demo"\ncheckpoints = ["demo"]\nruntimes = ["toy"]\n')
    assert read_grid(tmp_path / "grid.toml").runtimes == ("toy",)


def test_a_runtime_that_does_not_work_says_why(toy, monkeypatch, tmp_path):
    broken = Runtime(**{**vars(TOY), "status": lambda: Status("no", "no toy in this box")})
    monkeypatch.setitem(RUNTIMES, "toy", broken)
    run = ("run", DEMO_BUNDLE, "--runtime", "toy", "--data", "demo:test:n=48", "-o", tmp_path / "out")
    done = CliRunner().invoke(evaluate, list(map(str, run)))
    assert done.exit_code == 2 and "runtime 'toy' does not work here: no toy in this box" in done.output
    assert not (tmp_path / "out" / "results.csv").exists()


def test_simulation_is_refused_where_a_runtime_cannot(toy):
    done = CliRunner().invoke(evaluate, ["inspect", str(DEMO_BUNDLE), "--runtime", "toy", "--simulated"])
    assert done.exit_code == 2 and "toy does not run Q/DQ nodes as they are written" in done.output
    assert "--runtime ort-cpu" in done.output


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(RuntimeUnavailable, match=r"unknown runtime 'x'; known: ort-cpu, ort-cuda, .*tensorrt-rtx"):
        known_runtime("x")


def test_rows_agree_with_what_they_stand_for():
    """Each provider and each library has its row, under its own name and on the device where it runs."""
    assert all(name == runtime.name for name, runtime in RUNTIMES.items())
    by_files = {takes: {r.name for r in RUNTIMES.values() if r.takes == takes} for takes in ("onnx", "plan")}
    assert set(PROVIDERS) <= by_files["onnx"] and set(PACKAGES) <= by_files["plan"]
    for name, provider in PROVIDERS.items():
        assert (RUNTIMES[name].device == "cuda") == provider.on_gpu
    assert {RUNTIMES[name].device for name in PACKAGES} == {"cuda"}
    default = RUNTIMES[DEFAULT_RUNTIME]
    assert default.device == "cpu" and default.takes == "onnx" and simulator() is default


def test_recipes_fit_known_runtimes():
    """What recipes say by runtime is a table of theirs; its keys are this one's."""
    for recipe in KINDS:
        assert {*recipe.fitted, *recipe.no_kernels} <= set(RUNTIMES), recipe.name


def test_the_documents_table_is_this_one():
    table = re.findall(
        r"^\| `([^`]+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", (ROOT / "docs" / "runtimes.md").read_text(), re.M
    )
    devices = {"cpu": "CPU", "cuda": "GPU", "elsewhere": "elsewhere"}
    files = {"onnx": "ONNX bundles", "plan": "plans built for it", "answers": "answers brought back"}
    assert table == [
        (row.name, row.summary, devices[row.device], files[row.takes], "yes" if row.can_simulate else "no")
        for row in RUNTIMES.values()
    ]


def test_memory_is_of_the_device(monkeypatch):
    from clipq.engines import memory

    monkeypatch.setattr(memory, "peak_memory", lambda *given, **more: 1)
    monkeypatch.setattr(memory, "gpu_memory", lambda *given: memory.GpuMemory(2, 3))
    load = Load(open_bundle(DEMO_BUNDLE), "image")
    feed = {"image": np.zeros((2, 3, 4, 4), np.float32)}
    taken = {name: runtime.memory(load, feed) for name, runtime in RUNTIMES.items() if runtime.memory is not None}
    here = {name: runtime for name, runtime in RUNTIMES.items() if runtime.device != "elsewhere"}
    assert taken == {name: 1 if runtime.device == "cpu" else 3 for name, runtime in here.items()}
