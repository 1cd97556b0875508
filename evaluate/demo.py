"""The demo: the two commands on the built-in checkpoint, as a user would type them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import clipq.demo
from clipq.errors import ClipqError
from clipq.evaluate.suite import Suite, read_suite
from clipq.progress import Progress

SHIPPED_BUNDLE = Path(clipq.demo.__file__).parent / "bundle"
CALIBRATION_SET = Path(clipq.demo.__file__).parent.parent / "calib_data" / "demo"

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
    """Copy the shipped FP32 bundle to ``output/fp32`` and quantize it by each recipe, through ``clipq-export``."""
    output.mkdir(parents=True, exist_ok=True)
    fp32 = output / "fp32"
    shutil.rmtree(fp32, ignore_errors=True)
    shutil.copytree(SHIPPED_BUNDLE, fp32)
    progress.start("quantizing the demo checkpoint", len(RECIPES))
    # Export and evaluation meet in files alone, so the demo quantizes in a process of its own.
    command = [
        sys.executable,
        "-m",
        "clipq.exporters.cli",
        "quantize",
        str(fp32),
        "--calibration-set",
        str(_calibration_set()),
    ]
    for recipe in RECIPES.values():
        command += ["--recipe", recipe]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in process.stdout:
            progress.advance(1)
        complaint = process.stderr.read()
    if process.returncode != 0:
        raise ClipqError(f"the demo could not quantize: {(complaint.strip().splitlines() or ['no message'])[-1]}")
    return [fp32, *(output / name for name in RECIPES)]


def demo_suite(samples: int | None) -> Suite:
    """The built-in suite ``demo``; ``samples`` takes that many images of each view."""
    suite = read_suite("demo")
    if samples is None:
        return suite
    views = tuple(entry.model_copy(update={"samples": min(samples, entry.samples or samples)}) for entry in suite.views)
    corruptions = tuple(e.model_copy(update={"samples": min(samples, e.samples or samples)}) for e in suite.corruptions)
    square = tuple(e.model_copy(update={"samples": min(samples, e.samples or samples)}) for e in suite.square)
    return suite.model_copy(update={"views": views, "corruptions": corruptions, "square": square})


def _calibration_set() -> Path:
    if CALIBRATION_SET.is_dir():
        return CALIBRATION_SET
    # An editable install maps the folders of the checkout instead of copying them.
    return Path(clipq.demo.__file__).parents[3] / "calib_data" / "demo"
