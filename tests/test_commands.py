"""A command in a forked process is what it is in a fresh one."""

from __future__ import annotations

import os
import sys

import pytest
from support import DEMO_BUNDLE, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("clipq.exporters.cli", ("list", "--json")),
        ("clipq.evaluate.cli", ("suite", "show", "nope")),
        ("clipq.exporters.cli", ("quantize", DEMO_BUNDLE, "--recipe", "int9")),
    ],
)
def test_output_and_exit_code(module, arguments):
    forked, fresh = run(module, *arguments), run(module, *arguments, env=dict(os.environ))
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_each_command_is_a_process_of_its_own(tmp_path, monkeypatch):
    made = run("clipq.exporters.cli", "quantize", DEMO_BUNDLE, "--recipe", "int4-weight-only", "-o", tmp_path / "made")
    assert made.returncode == 0, made.stderr
    monkeypatch.chdir(tmp_path)
    assert run("clipq.evaluate.cli", "inspect", "made/int4-weight-only-rtn").returncode == 0
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run("clipq.evaluate.cli", "run", "--help").stdout
    monkeypatch.setenv("COLUMNS", "80")
    assert narrow != run("clipq.evaluate.cli", "run", "--help").stdout
