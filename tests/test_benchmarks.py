"""The GPU record's program, run where there is no GPU: on ONNX Runtime's CPU provider, over the demo."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from support import DEMO_BUNDLE, ROOT, assert_refused, evaluate

from clipq.engines.catalog import RUNTIMES
from clipq.environment import environment

sys.path.insert(0, str(ROOT))
from benchmarks.gpu.record import Record, read_lines


def gpu(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_cpu_levels(tmp_path):
    """7 bits, and 8 exact, answer the same without VNNI; the emulator is asked where it is installed."""
    record, cpus = tmp_path / "levels.json", ["Haswell"] if shutil.which("qemu-x86_64") else []
    options = ("--models", "demo", "lite0-lit", "--images", "8", "--rounds", "0", "--cpu", *cpus, "-o", str(record))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cpu_levels", *options], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "lite0-lit is left out: give --lite0 and --photos" in done.stderr
    rows = {row["engine"]: row["cpus"] for row in json.loads(record.read_text())["rows"]}
    assert len(rows) == 8 and all(list(cells) == ["this CPU", *cpus] for cells in rows.values())
    seven = "int8-static:weights=7bit"
    assert f"| demo, 8 | {seven} | {100 * rows[seven]['this CPU']['top1']:.1f} |" in done.stdout
    assert min(said["mean_cosine"] for cells in rows.values() for said in cells.values()) > 0.99
    means = {engine: {cpu: said["mean_cosine"] for cpu, said in cells.items()} for engine, cells in rows.items()}
    for cpu in cpus:
        for engine in ("int8-static:activations=symmetric, exact", "int8-static, exact", seven):
            assert abs(means[engine][cpu] - means[engine]["this CPU"]) < 2e-5, engine
        assert means["int8-static"][cpu] < means["int8-static, exact"][cpu] - 1e-4


def test_gpu_record(tmp_path):
    pytest.importorskip("open_clip", reason="needs the export extra")
    done = gpu("prepare", tmp_path / "work", "--model", "demo", "--family", "ort-cpu")
    assert done.returncode == 0, done.stderr
    stripped = tmp_path / "work" / "stripped" / "demo"
    assert (stripped / "fp32" / "image.onnx").stat().st_size < 500_000
    options = ("--runtime", "ort-cpu", "--batch", "1", "--repeats", "5")
    done = gpu("measure", tmp_path / "work", "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())
    assert record["failures"] == []
    rows = {row["recipe"]: row for row in record["speed"]}
    assert set(rows) == {"fp32", "fp16", "int8-static-minmax", "int4-weight-only-rtn"}
    assert rows["fp16"]["milliseconds_to_fp16"] == [1, 1, 1]
    proofs = {one["recipe"]: one for one in record["engines"]}
    assert proofs["int8-static-minmax"]["census"]["verdict"] == "integer"
    assert proofs["fp32"]["bytes"] == (DEMO_BUNDLE / "image.onnx").stat().st_size
    found = {(row["recipe"], row["metric"]): row for row in record["reliability"]}
    assert {metric for _, metric in found} == {"acc1", "ece", "nll", "brier", "confidence_gap", "agreement", "cosine"}
    # The command's own figures on the same images.
    paths = [str(tmp_path / "work" / "reliability" / "ort-cpu" / name) for name in ("fp32", "int8-static-minmax")]
    done = evaluate("run", *paths, "--data", "demo:test", "--no-bench", "--json", "-o", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout):
        if row["bundle"] == "int8-static-minmax" and not row["group"] and (row["bundle"], row["metric"]) in found:
            mine = found["int8-static-minmax", row["metric"]]
            assert mine["value"] == pytest.approx(row["value"], abs=1e-9) and mine["n"] == row["n"]
            assert mine["low"] == pytest.approx(row["low"], abs=1e-9) or row["metric"] == "agreement"
            if row["delta"] is not None:
                delta = mine["differences"]["fp32 on ort-cpu"]
                assert delta == pytest.approx([row["delta"], row["delta_low"], row["delta_high"]], abs=1e-9)
    page = path.with_suffix(".md").read_text()
    assert "| demo | ort-cpu | int8-static-minmax | 1 |" in page and "## Failures\n\nNone." in page


def test_a_record_that_is_cut_off_keeps_its_lines(tmp_path):
    record = Record(tmp_path / "speed.jsonl")
    record.add("machine", gpu=None, created="2026-01-01T00:00:00", environment=environment(), runtimes={})

    def fails():
        raise MemoryError("no room")

    assert record.attempt("batch 128", fails) is None
    with record.path.open("a") as stream:
        stream.write('{"kind": "speed", "mod')
    lines = read_lines([record.path])
    assert [line["kind"] for line in lines] == ["machine", "failure"]
    done = gpu("page", tmp_path, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "- batch 128: `MemoryError: no room`" in (tmp_path / "out" / "no-gpu-2026-01-01.md").read_text()


def test_without_a_gpu_the_record_is_refused(tmp_path):
    if RUNTIMES["ort-cuda"].status().works:
        pytest.skip("there is a GPU")
    for step in ("smoke", "speed"):
        assert_refused(gpu(step, tmp_path, "--runtime", "ort-cuda", "--model", "demo"), "no GPU")
    assert not list(tmp_path.iterdir())
    assert_refused(gpu("measure", tmp_path), "no GPU runtime works here")
    assert_refused(gpu("speed", tmp_path, "--runtime", "nope"), "unknown runtime 'nope'")
    assert_refused(
        gpu("speed", tmp_path, "--runtime", "ort-cpu", "--model", "x"), "--model x: not prepared", "and demo"
    )
    assert_refused(gpu("page", tmp_path), "no lines")
    assert_refused(gpu("embed", tmp_path, "--runtime", "ort-cpu"), "inputs.npz is missing", "benchmarks.gpu inputs")
    assert_refused(gpu("score", tmp_path), "embedded is missing", "benchmarks.gpu embed")
    done = gpu("speed", tmp_path, "--runtime", "ort-cpu", "--model", "demo", "--batch", "0")
    assert done.returncode == 2 and "argument --batch: 0: must be 1 or more" in done.stderr
    # These two run no engine, so they need no GPU.
    assert gpu("inputs", tmp_path, "--family", "tensorrt-8").returncode == 0
    assert (tmp_path / "reliability" / "tensorrt-8" / "int8-static-minmax-symmetric" / "clipq.json").is_file()
    assert gpu("embed", tmp_path, "--runtime", "ort-cpu").returncode == 0
    assert gpu("score", tmp_path).returncode == 0
    assert any(line["kind"] == "reliability" for line in read_lines([tmp_path / "score.jsonl"]))


def test_ranges_and_overheads(tmp_path):
    """The benchmarks behind docs/performance.md that need nothing but the demo."""

    def benchmark(name, *arguments):
        command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments), "-o", str(tmp_path / "out.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "out.json").read_text())["rows"]

    demo = ROOT / "src" / "clipq" / "demo" / "bundle"
    assert benchmark("ranges", "--bundle", demo, "--images", "16", "--rounds", "1")
    photos = ROOT / "calib_data" / "demo" / "images"
    rows = benchmark("end_to_end", demo, "--photos", photos, "--images", "32", "--rounds", "1", "--sizes", "96")
    assert [row["n"] for row in rows] == [32, 32, 32, 96] and all(row["median"] > 0 for row in rows)


def test_the_busy_machine(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.busy_machine",
        str(DEMO_BUNDLE),
        "--tries",
        "1",
        "--beside",
        "two spinning",
    ]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out.json")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0 and "two spinning | 1 | 100% | 100% |" in done.stdout, done.stdout + done.stderr
    (rows,) = json.loads((tmp_path / "out.json").read_text())["two spinning"]
    assert len(rows) == 4 and all(row["others"] > 0.3 and row["busy"] and row["attempts"] == 2 for row in rows)
