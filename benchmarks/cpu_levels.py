"""The same INT8 file on CPUs with and without VNNI: top-1, cosine to FP32 and time of each recipe, before and after.

    python -m benchmarks.cpu_levels --lite0 SHARED/models/lite0-lit --photos SHARED/photos/cifar10/test \\
        --calibration-set SHARED/photos/cifar10/train -o FILE.json

Image towers by each recipe run on this CPU and, one thread of ``qemu-x86_64 -cpu NAME`` (Debian's ``qemu-user``), on a CPU
that it emulates: Haswell has AVX2 and no VNNI. Cosines are to FP32 on this CPU. Top-1 is of trained checkpoints, with one
FP32 text tower for all. Times are of this CPU, towers in turns, as ratios to FP32 with the spread of the rounds in []: on a
busy machine the ratios suffer too, so the load stands above the table. ``exact`` is the session entry
``session.x64quantprecision=1``. ViT-B-32 and RN50 have random weights, whose cosines say little of trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.emulated import QEMU, outputs
from benchmarks.int8_peers import FP32, Made, class_embeddings, latency
from clipq.data.open import open_view
from clipq.data.views import View
from clipq.engines.ort import EXACT_PRODUCTS, OrtEngine
from clipq.environment import environment
from clipq.exporters.calibration_set import DEMO_SET
from clipq.preprocess import normalize

HERE = "this CPU"
TIMES = ("ratio", "lowest", "highest", "milliseconds", "batch")
# What a row is called, its recipe, and what its session is told. Symmetric was the default once.
ENGINES: dict[str, tuple[str | None, dict[str, str]]] = {
    FP32: (None, {}),
    "int8-static:activations=symmetric": ("int8-static:activations=symmetric", {}),
    "int8-static:activations=symmetric, exact": ("int8-static:activations=symmetric", EXACT_PRODUCTS),
    "int8-static": ("int8-static", {}),
    "int8-static, exact": ("int8-static", EXACT_PRODUCTS),
    "int8-static:weights=7bit": ("int8-static:weights=7bit", {}),
    "int8-dynamic": ("int8-dynamic", {}),
    "int8-dynamic:weights=7bit": ("int8-dynamic:weights=7bit", {}),
}
# Images of each model: the emulated minutes are few.
IMAGES = {"demo": 96, "lite0-lit": 160, "ViT-B-32": 4, "RN50": 4}
TRAINED = ("demo", "lite0-lit")


def make(model: str, lite0: Path | None, calibration: Path | None, target: Path) -> dict[str, Path]:
    """Export a model and quantize its image tower by every recipe; the towers by the names of ENGINES."""
    recipes = list(dict.fromkeys(recipe for recipe, _ in ENGINES.values() if recipe))
    flags = [flag for recipe in recipes for flag in ("--recipe", recipe)]
    if model == "demo":
        made = command("quantize", "demo", *flags, "--towers", "image", "-o", target)
    else:
        source = [f"local-dir:{lite0}"] if model == "lite0-lit" else [model, "--pretrained", "random"]
        arguments = ("--towers", "image", "--calibration-set", calibration or DEMO_SET, "-o", target)
        made = command("run", *source, *flags, *arguments)
    first, *rest = (Path(line) / "image.onnx" for line in made.split())
    by_recipe = dict(zip(recipes, rest, strict=True))
    return {name: by_recipe[recipe] if recipe else first for name, (recipe, _) in ENGINES.items()}


def command(*arguments: object) -> str:
    line = [sys.executable, "-m", "clipq.exporters.cli", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def embed(launcher: Sequence[str], towers: dict[str, Path], pixels: Path) -> dict[str, NDArray[Any]]:
    """Unit embeddings of the pixels by every engine, in one process below ``launcher``."""
    jobs = [(path, ENGINES[name][1]) for name, path in towers.items()]
    found = outputs(launcher, jobs, np.load(pixels), batch=8)
    return {name: one / np.linalg.norm(one, axis=1, keepdims=True) for name, one in zip(towers, found, strict=True)}


@dataclass(frozen=True)
class Case:
    """A model's towers with the samples that they are fed, and their times, by the names of ENGINES."""

    made: Made
    view: View
    samples: list[int]
    pixels: Path
    times: dict[str, dict[str, Any]]


def prepare(model: str, options: argparse.Namespace, work: Path) -> Case:
    """Make a model's towers and time them."""
    towers = make(model, options.lite0, options.calibration_set, work)
    made = Made(work, model, model in TRAINED, towers)
    view = open_view("demo:test" if model == "demo" or options.photos is None else str(options.photos))
    samples, pixels = draw(made, view, options.images or IMAGES[model])
    times = {}
    if options.rounds:
        sessions = {
            name: OrtEngine(path, threads=options.threads, config=ENGINES[name][1]) for name, path in towers.items()
        }
        times = {row["tower"]: row for row in latency(made, sessions, options.batch, options.rounds, options.repeats)}
        for session in sessions.values():
            session.close()
    return Case(made, view, samples, pixels, times)


def rows_of(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each engine, with what it answers on each CPU."""
    made, towers = case.made, case.made.files
    labels = np.array([case.view.samples[index].label for index in case.samples])
    classes = class_embeddings(made, case.view, options.threads) if made.trained else None
    found = {
        cpu: embed([] if cpu == HERE else [QEMU, "-cpu", cpu], towers, case.pixels) for cpu in (HERE, *options.cpu)
    }
    for name in towers:
        row: dict[str, Any] = {"model": made.checkpoint, "n": len(labels), "engine": name, "cpus": {}}
        for cpu, embeddings in found.items():
            cosines = (embeddings[name] * found[HERE][FP32]).sum(axis=1)
            said = {"mean_cosine": float(cosines.mean()), "smallest_cosine": float(cosines.min())}
            if classes is not None:
                said["top1"] = float(((embeddings[name] @ classes.T).argmax(axis=1) == labels).mean())
            row["cpus"][cpu] = said
        taken = case.times.get(name, {})
        yield row | {key: one for key, one in taken.items() if key in TIMES}


def draw(made: Made, view: View, count: int) -> tuple[list[int], Path]:
    """Some samples of a view, and a file of their pixels as the image tower takes them."""
    from clipq.bundle import open_bundle

    config = open_bundle(made.folder / "fp32").manifest.preprocess
    chosen = sorted(np.random.default_rng(0).permutation(len(view.samples))[:count].tolist())
    path = made.folder / "pixels.npy"
    np.save(path, normalize(np.stack([view.cropped(index, config) for index in chosen]), config))
    return chosen, path


def table(rows: Sequence[dict[str, Any]]) -> str:
    cpus = list(rows[0]["cpus"])
    heads = [head for cpu in cpus for head in (f"{cpu}: top-1 %", "cosine, mean / smallest")]
    lines = [
        "| " + " | ".join(["model, images", "engine", *heads, "time ÷ FP32"]) + " |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for row in rows:
        cells = [f"{row['model']}, {row['n']}", row["engine"]]
        for cpu in cpus:
            said = row["cpus"][cpu]
            cells.append(f"{100 * said['top1']:.1f}" if "top1" in said else "")
            cells.append(f"{said['mean_cosine']:.4f} / {said['smallest_cosine']:.4f}")
        cells.append(f"{row['ratio']:.2f} [{row['lowest']:.2f}, {row['highest']:.2f}]" if "ratio" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(IMAGES), choices=list(IMAGES), metavar="MODEL")
    parser.add_argument("--cpu", nargs="*", default=["Haswell"], metavar="NAME", help="of `qemu-x86_64 -cpu help`")
    parser.add_argument("--images", type=int, help=f"of every model [default: {IMAGES}]")
    parser.add_argument("--lite0", type=Path, metavar="FOLDER", help="the checkpoint lite0-lit")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="ImageFolder; the demo's images without it")
    parser.add_argument("--calibration-set", type=Path, metavar="FOLDER", help="for all but the demo")
    parser.add_argument("--batch", type=int, default=8, help="of the times")
    parser.add_argument("--threads", type=int, default=2, help="of the times")
    parser.add_argument("--rounds", type=int, default=5, help="of the times; 0 takes none")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each tower in a round")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    if options.cpu and shutil.which(QEMU) is None:
        print(f"{QEMU} is not here (apt-get install qemu-user): this CPU alone", file=sys.stderr)
        options.cpu = []
    if "lite0-lit" in options.models and None in (options.lite0, options.photos):
        print("lite0-lit is left out: give --lite0 and --photos", file=sys.stderr)
        options.models.remove("lite0-lit")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="clipq-") as work:
        # All times first: what is emulated takes long and does not mind what runs beside it.
        cases = [prepare(model, options, Path(work) / model) for model in options.models]
        after = os.getloadavg()[0]
        print(f"times are taken: load average {before:.1f} before and {after:.1f} after", file=sys.stderr)
        rows = [row for case in cases for row in rows_of(case, options)]
    machine = environment()
    print(f"{machine['cpu']}, load average {before:.1f} before the times and {after:.1f} after\n\n{table(rows)}")
    if options.output:
        record = {"benchmark": "cpu_levels", "machine": machine, "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
