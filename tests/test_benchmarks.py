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
