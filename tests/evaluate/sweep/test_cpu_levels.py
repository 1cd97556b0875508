"""One sweep on CPUs of two levels: no cell of one is taken for the other's, and a node of another level is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from support import DEMO_BUNDLE, evaluate

from clipq.cpu import LEVELS, cpu_level
from clipq.evaluate.results.folders import read_results
from clipq.evaluate.sweep.nodes import refusal, software

GRID = """
suite = "suite.toml"
bundles = ["bundles/*"]
"""
SUITE = """
templates = "simple-7"
[[view]]
source = "demo:test"
samples = 8
"""


def test_a_sweep_over_two_levels_keeps_cells_apart(bundles, tmp_path):
    """The second half on an emulated CPU without VNNI, into the same folder."""
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("no qemu-x86_64 here (Debian: apt-get install qemu-user)")
    if cpu_level().name == "avx2":
        pytest.skip("this CPU is of the level that is emulated")
    for bundle in (DEMO_BUNDLE, bundles / "int8-static-minmax"):
        shutil.copytree(bundle, tmp_path / "bundles" / bundle.name)
    (tmp_path / "grid.toml").write_text(GRID)
    (tmp_path / "suite.toml").write_text(SUITE)
    sweep = ("sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "swept"))
    here = evaluate(*sweep)
    assert here.returncode == 0, here.stderr
    emulated = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-m", "clipq.evaluate.cli", *sweep]
    there = subprocess.run(emulated, capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    cells = [json.loads(path.read_text()) for path in (tmp_path / "swept" / "cells").glob("*/cell.json")]
    by_level = {level: [one for one in cells if one["cpu"] == level] for level in (cpu_level().name, "avx2")}
    assert [len(found) for found in by_level.values()] == [4, 4] and len(cells) == 8
    (folder,) = (tmp_path / "swept" / "results").iterdir()
    engines = read_results([folder])
    assert {entry.record.cpu for entry in engines} == set(by_level) and len(engines) == 4
    for entry in engines:
        assert entry.reference.record.cpu == entry.record.cpu


def test_a_node_of_another_level_is_refused(monkeypatch):
    planned = software(["ort-cpu"])
    assert planned["cpu"] == cpu_level().name and refusal(planned, planned) == ""
    other = next(level for level in LEVELS.values() if level.name != cpu_level().name)
    monkeypatch.setattr("clipq.evaluate.sweep.nodes.cpu_level", lambda: other)
    said = refusal(planned, software(["ort-cpu"]), "node 10.0.0.2")
    assert f"cpu {other.name} in place of {planned['cpu']}" in said and said.endswith("machines of one CPU level")
