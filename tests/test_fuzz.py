"""Mutated inputs of every kind: 300 of them, the same ones each time."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ROOT


def fuzz(*arguments):
    command = [sys.executable, "-m", "benchmarks.fuzz", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and limited")
def test_mutated_inputs_are_refused_or_give_what_they_should(tmp_path):
    done = fuzz("--cases", 300, "--seed", 16, "--keep", tmp_path / "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 cases" in done.stdout
    total = done.stdout.split("| all |")[1].splitlines()[0].split("|")
    assert [int(one) for one in total[3:-1]] == [0] * 6, done.stdout
