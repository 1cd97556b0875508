"""The GPU record's program, run where there is no GPU: on ONNX Runtime's CPU provider, over the demo."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import ROOT


def test_gpu_record(tmp_path):
    pytest.importorskip("open_clip", reason="needs the export extra")

    def benchmark(*arguments):
        command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    benchmark("prepare", tmp_path / "work", "--model", "demo")
    stripped = tmp_path / "work" / "stripped" / "demo"
    assert (stripped / "fp32" / "image.onnx").stat().st_size < 500_000
    options = ("--runtime", "ort-cpu", "--batch", "1", "--repeats", "5")
    benchmark("measure", tmp_path / "work", "-o", tmp_path / "out", *options)
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())
    assert record["failures"] == []
    rows = {row["recipe"]: row for row in record["rows"]}
    assert set(rows) == {"fp32", "fp16", "int8-static-minmax", "int4-weight-only-rtn"}
    assert rows["int8-static-minmax"]["census"]["verdict"] == "integer"
    assert rows["fp16"]["milliseconds_to_fp16"] == [1, 1, 1]
    assert {row["metric"] for row in record["reliability"]} == {"acc1", "ece", "nll", "agreement"}
    assert "| demo | ort-cpu | int8-static-minmax | 1 |" in path.with_suffix(".md").read_text()


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
