"""Checkpoints with random weights by every recipe, carried without their weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.skeleton import fill, strip
from clipq.bundle import Bundle, open_bundle
from clipq.engines.tensorrt_library import PACKAGES, open_library
from clipq.errors import ClipqError

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = ROOT / "calib_data" / "demo"
DEMO = ROOT / "src" / "clipq" / "demo" / "bundle"
MODELS = ("ViT-B-32", "RN50", "ViT-B-16", "ViT-L-14")
# What a family of runtimes takes: the runtime whose forms they are, and the recipes.
FAMILIES = {
    "ort-cpu": ("ort-cpu", ("fp16", "int8-static", "int4-weight-only")),
    "ort-cuda": (
        "ort-cuda",
        (
            "fp16",
            "int8-static:floats=fp32",
            "int8-static:floats=fp16",
            "int8-static:form=qdq,floats=fp16",
            "int4-weight-only",
        ),
    ),
    "tensorrt": ("tensorrt", ("fp16", "int8-static", "int4-weight-only")),
    # 8.6: no 4 bits, and half-precision scales came with a later ONNX; its flags allow half precision beside integers.
    "tensorrt-8": ("tensorrt", ("fp16", "int8-static:floats=fp32")),
}
# Ranges of random weights are worth nothing; so many images find some.
CALIBRATION_IMAGES = 8


def family(runtime: str) -> str:
    """The family of a runtime on this machine."""
    if runtime in PACKAGES and not open_library(runtime).features.int4:  # type: ignore[arg-type]
        return "tensorrt-8"
    return "tensorrt" if "tensorrt" in runtime else runtime


def command(module: str, *arguments: object) -> str:
    """Run one of clipq's commands; its output, or a ClipqError with its last line of errors."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClipqError((done.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("error: "))
    return done.stdout


def quantize(source: Path, name: str, target: Path, calibration: Path = CALIBRATION, *options: str) -> list[Path]:
    """The bundles of a family's recipes, below ``target``."""
    runtime, recipes = FAMILIES[name]
    flags = [flag for recipe in recipes for flag in ("--recipe", recipe)]
    arguments = (source, *flags, "--runtime", runtime, "--calibration-set", calibration, "-o", target, *options)
    return [Path(line) for line in command("clipq.exporters.cli", "quantize", *arguments).splitlines()]


def prepare(work: Path, models: list[str], families: list[str]) -> None:
    """Write ``work/stripped/MODEL``: fp32 and a folder per family, image towers quantized (needs torch, no GPU)."""
    few = work / "calibration"
    shutil.rmtree(few, ignore_errors=True)
    (few / "images").mkdir(parents=True)
    for image in sorted((CALIBRATION / "images").iterdir())[:CALIBRATION_IMAGES]:
        shutil.copyfile(image, few / "images" / image.name)
    for model in models:
        full, stripped = work / "full" / model, work / "stripped" / model
        shutil.rmtree(stripped, ignore_errors=True)
        source = ("demo",) if model == "demo" else (model, "--pretrained", "random")
        command("clipq.exporters.cli", "onnx", *source, "-o", full / "fp32")
        made = [full / "fp32"]
        for name in families:
            made += quantize(full / "fp32", name, full / name, few, "--towers", "image")
        for bundle in made:
            target = stripped / bundle.relative_to(full)
            target.parent.mkdir(parents=True, exist_ok=True)
            strip(bundle, target)
        shutil.rmtree(full)
        print(f"{model}: prepared", flush=True)


def filled(work: Path, model: str, name: str) -> dict[str, Bundle]:
    """A model's bundles of a family with random image weights, by recipe; the demo's are real and need no ``work``."""
    target = work / "filled" / model / name
    shutil.rmtree(target, ignore_errors=True)
    if model == "demo":
        made = work / "reliability" / name
        if made.is_dir():
            # Quantizing wants more packages than a runtime does.
            shutil.copytree(made, target)
            return {path.name: open_bundle(path) for path in sorted(target.iterdir())}
        shutil.copytree(DEMO, target / "fp32")
        return {path.name: open_bundle(path) for path in (target / "fp32", *quantize(target / "fp32", name, target))}
    source = work / "stripped" / model
    bundles = {}
    for path in (source / "fp32", *sorted((source / name).iterdir())):
        shutil.copytree(path, target / path.name)
        fill(target / path.name, "image")
        bundles[path.name] = open_bundle(target / path.name)
    return bundles
