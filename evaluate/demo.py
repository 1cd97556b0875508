"""The demo: the two commands on the built-in checkpoint, as a user would type them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clipq.errors import ClipqError
from clipq.evaluate.suites.schema import Suite
from clipq.evaluate.suites.suite import read_suite
from clipq.progress import Progress

RECIPES = {
    "int8-static-minmax": "int8-static",
    "int8-static-entropy": "int8-static:ranges=entropy",
    "int8-dynamic": "int8-dynamic",
    "int4-weight-only-rtn": "int4-weight-only",
    "int4-weight-only-hqq": "int4-weight-only:algorithm=hqq",
    "int2-weight-only-rtn": "int2-weight-only",
    "simulated-w4a8": "simulated-w4a8",
    "simulated-w3a8": "simulated-w3a8",
    "simulated-w2a8": "simulated-w2a8",
}


def make_bundles(output: Path, progress: Progress) -> list[Path]:
    """The built-in FP32 bundle and one by each recipe, through ``clipq-export``."""
    progress.start("quantizing the demo checkpoint", 1 + len(RECIPES))
    # Export and evaluation meet in files alone, so the demo quantizes in a process of its own.
    command = [sys.executable, "-m", "clipq.exporters.cli", "quantize", "demo", "-o", str(output)]
    for recipe in RECIPES.values():
        command += ["--recipe", recipe]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in process.stdout:
            progress.advance(1)
        complaint = process.stderr.read()
    if process.returncode != 0:
        raise ClipqError(f"the demo could not quantize: {(complaint.strip().splitlines() or ['no message'])[-1]}")
    return [output / name for name in ("fp32", *RECIPES)]


def demo_suite(samples: int | None) -> Suite:
    """The built-in suite ``demo``; ``samples`` takes that many images of each view."""
    suite = read_suite("demo")
    if samples is None:
        return suite
    views = tuple(entry.model_copy(update={"samples": min(samples, entry.samples or samples)}) for entry in suite.views)
    corruptions = tuple(e.model_copy(update={"samples": min(samples, e.samples or samples)}) for e in suite.corruptions)
    square = tuple(e.model_copy(update={"samples": min(samples, e.samples or samples)}) for e in suite.square)
    return suite.model_copy(update={"views": views, "corruptions": corruptions, "square": square})
