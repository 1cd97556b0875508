"""What an evaluation costs beyond the engines themselves, and whether its memory grows with the data set.

    python -m benchmarks.end_to_end engines/fp32 engines/int8-static-minmax --photos PHOTOS -o FILE.json

* first: `clipq-eval run` on one engine, as a process from start to report, with no pixel decoded before, ÷ the time the
  engine alone takes for the same images and prompts (its seconds per image and per prompt at batch 32, times N);
* further: filling the view's cell with an engine when its pixels are in the cache, ÷ the engine alone;
* memory: the peak of filling a view of the demo's world, by its number of images.

Engine alone, first and further take turns in every round; ratios are medians of the rounds with smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipq.bundle import open_bundle
from clipq.data.open import open_view
from clipq.data.pixels import PixelCache
from clipq.data.views import View
from clipq.environment import environment
from clipq.evaluate.bench.bench import plausible_feed
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.subjects import Subject, gather_cohort
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.schema import Suite

BATCH = 32
# Stand-in classes: their prompts are few, so that the images are what is measured.
CLASSES = 10

FILL = """
import sys
from pathlib import Path
from clipq.data.pixels import PixelCache
from clipq.data.open import open_view
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.subjects import gather_cohort
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.schema import Suite
bundle, source, folder = sys.argv[1:]
settings = Settings(cells=folder + "/cells", pixels=PixelCache(Path(folder) / "pixels", 10**10))
with Embeddings(settings, Suite()) as embeddings:
    embeddings.fill_images(open_view(source), gather_cohort([Path(bundle)], settings).subjects)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--photos", type=Path, required=True, help="folder with photos, at any depth")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 50_000], help="of the memory rows")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = stand_in_classes(options.photos, options.images, folder / "photos")
        view = open_view(str(photos))
        cohort = gather_cohort(options.bundles, Settings(), reference=options.bundles[0].name)
        rows = overheads(cohort.subjects, view, folder, options.rounds)
        rows += memory(options.sizes, folder)
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if options.output:
        record = {"benchmark": "end_to_end", "machine": environment(), "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


def stand_in_classes(source: Path, count: int, target: Path) -> Path:
    """Links to photos, dealt to a few classes."""
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
    for index, path in enumerate(found):
        folder = target / f"class-{index % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:05d}{path.suffix}").symlink_to(path.resolve())
    return target


def overheads(subjects: Sequence[Subject], view: View, folder: Path, rounds: int) -> list[dict[str, object]]:
    first: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    further: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    beyond: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    warm = PixelCache(folder / "warm", 10**10)
    with Embeddings(Settings(cells=str(folder / "once"), pixels=warm), Suite()) as embeddings:
        embeddings.fill_images(view, subjects[:1])
    for number in range(rounds):
        for subject in subjects:
            before = alone(subject, view)
            whole = whole_run(subject, folder, f"{subject.label}-{number}")
            between = alone(subject, view)
            filled = fill(subject, view, folder / f"fill-{subject.label}-{number}", warm)
            after = alone(subject, view)
            images, prompts = ((a + b) / 2 for a, b in zip(before, between, strict=True))
            first[subject.label].append(whole / (images + prompts))
            beyond[subject.label].append(whole - images - prompts)
            further[subject.label].append(filled / ((between[0] + after[0]) / 2))
            print(
                f"round {number + 1}: {subject.label}: {first[subject.label][-1]:.2f}, {further[subject.label][-1]:.2f}",
                file=sys.stderr,
            )
    n = len(view.samples)
    rows: list[dict[str, object]] = []
    for label in first:
        rows.append(
            {"what": f"first engine, whole process ({label})", "n": n, **spread(first[label]), "unit": "× engine alone"}
        )
        rows.append({"what": f"seconds beyond the engine ({label})", "n": n, **spread(beyond[label]), "unit": "s"})
        rows.append(
            {
                "what": f"further engine on the view ({label})",
                "n": n,
                **spread(further[label]),
                "unit": "× engine alone",
            }
        )
    return rows


def alone(subject: Subject, view: View) -> tuple[float, float]:
    """Seconds of the engine alone for all images of the view and for its prompts, from a few batches of each."""
    seconds = []
    prompts = CLASSES * len(open_bundle(subject.bundle.path).prompts.templates["simple-7"])
    for tower, samples, batches in (("image", len(view.samples), 4), ("text", prompts, 2)):
        feed = plausible_feed(subject.bundle, tower, BATCH)  # type: ignore[arg-type]
        with subject.open(tower) as engine:  # type: ignore[arg-type]
            engine.run(feed)
            times = []
            for _ in range(batches):
                started = time.perf_counter()
                engine.run(feed)
                times.append(time.perf_counter() - started)
        seconds.append(statistics.median(times) / BATCH * samples)
    return seconds[0], seconds[1]


def whole_run(subject: Subject, folder: Path, name: str) -> float:
    command = [
        sys.executable, "-m", "clipq.evaluate.cli", "run", str(subject.bundle.path), "--data", str(folder / "photos"),
        "--templates", "simple-7", "--no-bench", "-o", str(folder / name),
    ]  # fmt: skip
    environ = {**os.environ, "CLIPQ_PIXEL_CACHE": str(folder / f"{name}-pixels")}
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environ)
    return time.perf_counter() - started


def fill(subject: Subject, view: View, cells: Path, cache: PixelCache) -> float:
    with Embeddings(Settings(cells=str(cells), pixels=cache), Suite()) as embeddings:
        embeddings.image_engine(subject)
        started = time.perf_counter()
        embeddings.fill_images(view, [subject])
        return time.perf_counter() - started


def memory(sizes: Sequence[int], folder: Path) -> list[dict[str, object]]:
    import clipq.demo

    bundle = Path(clipq.demo.__file__).parent / "bundle"
    rows: list[dict[str, object]] = []
    for size in sizes:
        command = [sys.executable, "-c", FILL, str(bundle), f"demo:test:n={size}", str(folder / f"memory-{size}")]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(
            {
                "what": "peak memory of filling a view",
                "n": size,
                "median": round(peak / 1e6),
                "low": "",
                "high": "",
                "unit": "MB",
            }
        )
    return rows


def spread(values: Sequence[float]) -> dict[str, object]:
    return {
        "median": round(float(np.median(values)), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
