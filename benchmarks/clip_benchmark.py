"""``clipq-eval run`` against CLIP_benchmark 1.6.2: the same checkpoint, photos, prompts and machine, whole processes.

    python3.11 -m venv /tmp/peers-clipbench && /tmp/peers-clipbench/bin/pip install clip-benchmark==1.6.2 "numpy<2.4"
    python -m benchmarks.clip_benchmark --photos imagenet-1000 \\
        --peer /tmp/peers-clipbench/bin/clip_benchmark -o FILE.json

Measured is the wall clock from start to exit: loading, decoding, both towers, metrics. The checkpoint is open_clip's
ViT-B-32 with random weights (time does not depend on them); both sides read one webdataset, in CLIP_benchmark's own
layout, with ten stand-in classes and seven templates, so 70 prompts. Ours runs with ``--no-bench`` and a fresh results
folder; its bootstrap intervals, records and report page are in its time, and CLIP_benchmark has none of them.

CLIP_benchmark is timed in FP32 (``--no_amp``: the same work as our FP32 engine), and as it comes, which is bfloat16
autocast on a CPU; each at its default batch and workers (64, 4) and at the best of a few, found first on fewer photos.
A ratio is theirs divided by ours: above 1 is ours faster; [] is its spread over the rounds. ``--agreement`` compares
the answers of both on a trained checkpoint, once and untimed, with the photos' own class names.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipq.environment import environment

ROOT = Path(__file__).resolve().parent.parent
MODEL = "ViT-B-32"
SHARDS = 4
CLASSES = 10
# Seven of open_clip's templates for ImageNet.
TEMPLATES = (
    "itap of a {c}.", "a bad photo of the {c}.", "a origami {c}.", "a photo of the large {c}.",
    "a {c} in a video game.", "art of the {c}.", "a photo of the small {c}.",
)  # fmt: skip
DEFAULTS = (64, 4)
TRIED = ((32, 0), (32, 1), (32, 2), (64, 1), (64, 2), (128, 2), DEFAULTS)
GOALS = {"FP32": 1.5, "INT8": 3.0, "three": 5.0}


@dataclass(frozen=True)
class Peer:
    """CLIP_benchmark's own command, a checkpoint as it names it, and the folder that gets its results."""

    executable: Path
    model: str
    pretrained: str
    folder: Path

    def command(self, photos: Path, batch: int, workers: int, precision: str) -> list[str]:
        return [
            str(self.executable), "eval", "--dataset", "wds/photos", "--dataset_root", str(photos),
            "--model", self.model, "--pretrained", self.pretrained, "--output", str(self.output), "--quiet",
            "--batch_size", str(batch), "--num_workers", str(workers), *(["--no_amp"] if precision == "fp32" else []),
        ]  # fmt: skip

    @property
    def output(self) -> Path:
        return self.folder / "theirs.json"

    def top1(self) -> float:
        return float(json.loads(self.output.read_text())["metrics"]["acc1"])


def ours(bundles: Sequence[Path], photos: Path, results: Path) -> list[str]:
    module = [sys.executable, "-m", "clipq.evaluate.cli", "run"]
    return [*module, *map(str, bundles), "--data", f"wds:{photos}", "-o", str(results), "--no-bench"]


def our_top1(results: Path, bundle: str) -> float:
    with (results / "results.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if (row["bundle"], row["metric"], row["group"]) == (bundle, "acc1", ""):
                return float(row["value"])
    raise SystemExit(f"{results}: no acc1 of {bundle}")


def seconds(command: Sequence[str]) -> float:
    """Wall clock of a whole process; its last line of errors ends this one."""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    took = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return took


def write_photos(source: Path, count: int, classes: int, templates: Sequence[str], target: Path) -> Path:
    """A webdataset of ``count`` photos in ``classes`` blocks, each named after its first photo's class."""
    names = (source / "classnames.txt").read_text().splitlines()
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    found = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.glob("*.jp*g"))][:count]
    if len(found) < count:
        raise SystemExit(f"{source} has {len(found)} photos, {count} were asked for")
    classes = min(classes, count)
    blocks = [index * classes // count for index in range(count)]
    (target / "test").mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        with tarfile.open(target / "test" / f"{shard}.tar", "w") as archive:
            for index in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
                _add(archive, f"{index:06d}.jpg", found[index][0].read_bytes())
                _add(archive, f"{index:06d}.cls", str(blocks[index]).encode())
    (target / "test" / "nshards.txt").write_text(f"{SHARDS}\n")
    chosen = [names[found[blocks.index(block)][1]] for block in range(classes)]
    (target / "classnames.txt").write_text("\n".join(chosen) + "\n")
    (target / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return target


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def prepare(work: Path) -> Path:
    """The checkpoint with random weights and its bundles, made once; the folder of the bundles."""
    weights, engines = work / "vit-b-32.pt", work / "engines"
    if not weights.is_file():
        import open_clip
        import torch

        work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        torch.save(open_clip.create_model(MODEL).state_dict(), weights)
    if not (engines / "int8-dynamic" / "clipq.json").is_file():
        recipes = ["--recipe", "int8-static", "--recipe", "int8-dynamic"]
        calibration = ["--calibration-set", str(ROOT / "calib_data" / "demo")]
        export = [sys.executable, "-m", "clipq.exporters.cli", "run", MODEL, "--pretrained", str(weights)]
        seconds([*export, *recipes, *calibration, "-o", str(engines)])
    return engines


def best_settings(peer: Peer, photos: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """The fastest batch and workers of CLIP_benchmark in FP32, each tried once, and what each took."""
    tried = []
    for batch, workers in TRIED:
        took = seconds(peer.command(photos, batch, workers, "fp32"))
        tried.append({"kind": "tried", "batch": batch, "workers": workers, "seconds": took})
        print(f"tried batch {batch}, {workers} workers: {took:.1f} s", flush=True)
    fastest = min(tried, key=lambda row: row["seconds"])
    return (fastest["batch"], fastest["workers"]), tried


def in_turns(commands: Mapping[str, Callable[[int], list[str]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every command, round by round, the order turned every round."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in list(commands)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(seconds(commands[name](number)))
            print(f"round {number + 1}, {name}: {times[name][-1]:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return times


def compared(
    what: str, goal: str, our_times: Sequence[float], name: str, their_times: Sequence[float]
) -> dict[str, Any]:
    """One row: medians, their ratio, and the spread of the ratios of the rounds."""
    ratios = [theirs / mine for theirs, mine in zip(their_times, our_times, strict=True)]
    ratio = statistics.median(their_times) / statistics.median(our_times)
    return {
        "kind": "ratio", "ours": what, "theirs": name, "our_seconds": statistics.median(our_times),
        "their_seconds": statistics.median(their_times), "ratio": ratio, "lowest": min(ratios), "highest": max(ratios),
        "goal": GOALS[goal], "met": ratio >= GOALS[goal],
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]], prompts: int, photos: int) -> str:
    lines = [
        f"{photos} photos, {prompts} prompts; seconds of whole processes, medians; ratio = theirs / ours.", "",
        "| ours | s | CLIP_benchmark | s | ratio | goal |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        if row["kind"] == "ratio":
            spread = f"{row['ratio']:.2f} [{row['lowest']:.2f}, {row['highest']:.2f}]"
            goal = f"{row['goal']:.1f} {'met' if row['met'] else 'missed'}"
            ours_, theirs = f"{row['our_seconds']:.1f}", f"{row['their_seconds']:.1f}"
            lines.append(f"| {row['ours']} | {ours_} | {row['theirs']} | {theirs} | {spread} | {goal} |")
    lines += [
        "",
        "| checkpoint | precision | photos | classes | our top-1 | their top-1 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["kind"] == "agreement":
            answers = f"{row['our_top1']:.4f} | {row['their_top1']:.4f}"
            lines.append(f"| {row['checkpoint']} | fp32 | {row['photos']} | {row['classes']} | {answers} |")
    return "\n".join(lines)


def agreement(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Top-1 of both sides on a trained checkpoint with one template, untimed."""
    photos = write_photos(options.photos, options.images, options.images, ["a photo of a {c}."], folder / "own-classes")
    bundle = folder / "trained"
    seconds([sys.executable, "-m", "clipq.exporters.cli", "onnx", options.agreement, "-o", str(bundle)])
    seconds(ours([bundle], photos, folder / "results-trained"))
    peer = Peer(options.peer, options.agreement, "", folder)
    seconds(peer.command(photos, 32, 1, "fp32"))
    mine, theirs = our_top1(folder / "results-trained", bundle.name), peer.top1()
    what = {"kind": "agreement", "checkpoint": options.agreement, "photos": options.images, "classes": options.images}
    return what | {"our_top1": mine, "their_top1": theirs}


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    engines = prepare(options.work)
    photos = write_photos(options.photos, options.images, CLASSES, TEMPLATES, folder / "photos")
    fewer = write_photos(options.photos, min(options.images, options.scout), CLASSES, TEMPLATES, folder / "fewer")
    peer = Peer(options.peer, MODEL, str(options.work / "vit-b-32.pt"), folder)
    best, rows = best_settings(peer, fewer)
    engine_sets = {
        "FP32": ["fp32"],
        "INT8 static": ["int8-static-minmax"],
        "three engines": ["fp32", "int8-static-minmax", "int8-dynamic"],
    }
    commands: dict[str, Callable[[int], list[str]]] = {}
    for name, chosen in engine_sets.items():
        bundles = [engines / bundle for bundle in chosen]
        commands[name] = lambda number, name=name, bundles=bundles: ours(bundles, photos, folder / f"{name} {number}")
    peers = {}
    for precision, words in (("fp32", "FP32"), ("bf16", "bfloat16, as it comes")):
        for batch, workers in dict.fromkeys((best, DEFAULTS)):
            label = f"{words}, batch {batch}, {workers} workers"
            peers[label] = (batch, workers, precision)
            commands[label] = lambda number, wanted=peers[label]: peer.command(photos, *wanted)
    times = in_turns(commands, options.rounds)
    rows += [{"kind": "seconds", "command": name, "seconds": found} for name, found in times.items()]
    for label in peers:
        rows.append(compared("FP32", "FP32", times["FP32"], label, times[label]))
        rows.append(compared("INT8 static", "INT8", times["INT8 static"], label, times[label]))
        third = [took / 3 for took in times["three engines"]]
        rows.append(
            compared("a third of FP32, INT8 static and dynamic in one call", "three", third, label, times[label])
        )
    seconds(peer.command(photos, *best, "fp32"))
    mine, theirs = our_top1(folder / "FP32 0", "fp32"), peer.top1()
    checked = {"kind": "agreement", "checkpoint": f"{MODEL}, random", "photos": options.images, "classes": CLASSES}
    rows.append(checked | {"our_top1": mine, "their_top1": theirs})
    if options.agreement:
        rows.append(agreement(options, folder))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of class folders with a classnames.txt")
    parser.add_argument("--peer", type=Path, required=True, help="the command clip_benchmark, in its own environment")
    parser.add_argument("--work", type=Path, default=Path("/tmp/clipq-benchmarks"), help="keeps checkpoint and bundles")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--scout", type=int, default=256, help="photos that batch and workers are chosen on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agreement", metavar="local-dir:FOLDER", help="trained checkpoint to compare answers on")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    print(f"load average before: {os.getloadavg()[0]:.1f}; it should be near 0", flush=True)
    with TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    print(table(rows, CLASSES * len(TEMPLATES), options.images))
    if options.output:
        record = {"benchmark": "clip_benchmark", "machine": environment(), "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
