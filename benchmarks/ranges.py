"""What measuring activation ranges costs: time over plain inference, and time and memory beside ONNX Runtime's.

    python -m benchmarks.ranges --images 512 --photos FOLDER -o ranges.json

Plain inference runs between the batches that are measured, on the same batches, so that both meet the same machine.
Ours counts whole: writing and loading the observed tower, the runs, and drawing the ranges; plain inference counts its
runs alone. Beside ONNX Runtime's calibrators (same tensors, their own defaults) each runs in a fresh process, which
tells its peak memory, at two sizes of the set, which tells its growth.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import calibrate

from clipq.bundle import Bundle, open_bundle
from clipq.data.source import IMAGE_SUFFIXES
from clipq.engines.base import Array
from clipq.engines.ort import OrtEngine
from clipq.environment import environment
from clipq.exporters.calibration_set import BATCH, DEMO_SET, CalibrationSet
from clipq.exporters.placement import place
from clipq.exporters.qdq import QdqInserter
from clipq.exporters.quantize import prepared
from clipq.exporters.ranges import collect_ranges
from clipq.exporters.recipes import Int8Static

THEIRS = {
    "minmax": calibrate.MinMaxCalibrater,
    "entropy": calibrate.EntropyCalibrater,
    "percentile": calibrate.PercentileCalibrater,
}
LARGEST_PEAK_GB = 12.0
# ONNX Runtime's threads spin for a while after a run: the next run, of another session, should not pay for them.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Work:
    """A tower ready to be observed, its tensors, and its batches, a file each."""

    model: Path
    tensors: tuple[str, ...]
    input_name: str
    batches: tuple[Path, ...]

    def feeds(self) -> Iterator[dict[str, Array]]:
        return ({self.input_name: np.load(path)} for path in self.batches)

    def first(self, batches: int) -> Work:
        return Work(self.model, self.tensors, self.input_name, self.batches[:batches])


def prepare(bundle: Bundle, photos: list[Path], folder: Path) -> Work:
    """Preprocess the photos once, and write the tower as quantizers take it."""
    model = prepared(bundle.tower_path("image"), folder)
    onnx.save(model, folder / "prepared.onnx")
    tensors = QdqInserter(model, place(model), Int8Static()).tensors
    name = bundle.manifest.tower("image").input_name
    paths = []
    for index, feed in enumerate(CalibrationSet(DEMO_SET, tuple(photos), (), "none").feeds(bundle, "image", lambda done: None)):  # fmt: skip
        paths.append(folder / f"{index}.npy")
        np.save(paths[-1], feed[name])
    return Work(folder / "prepared.onnx", tuple(tensors), name, tuple(paths))


def ours(model: onnx.ModelProto, tensors: tuple[str, ...], method: str, feeds: Iterator[dict[str, Array]]) -> None:
    recipe = Int8Static(method)
    histograms = collect_ranges(model, list(tensors), feeds, counted=method != "minmax")
    for histogram in histograms.values():
        histogram.range(recipe)


def theirs(work: Work, method: str) -> None:
    class Reader(calibrate.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = work.feeds()

        def get_next(self) -> dict[str, Array] | None:
            return next(self._feeds, None)

    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # it prints its progress
        calibrator = THEIRS[method](work.model, augmented_model_path=f"{folder}/augmented.onnx")
        _, infos = calibrator.select_tensors_to_calibrate(calibrator.model)
        calibrator.select_tensors_to_calibrate = lambda model: (set(work.tensors), infos)
        calibrator.augment_graph()
        calibrator.create_inference_session()
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def over_inference(work: Work, method: str, engine: OrtEngine, model: onnx.ModelProto) -> float:
    """Seconds of measuring ranges over seconds of plain inference, batch by batch in turns."""
    plain = elsewhere = 0.0

    def feeds() -> Iterator[dict[str, Array]]:
        nonlocal plain, elsewhere
        for feed in work.feeds():
            left = time.perf_counter()
            time.sleep(PAUSE_SECONDS)
            started = time.perf_counter()
            engine.run(feed)
            plain += time.perf_counter() - started
            time.sleep(PAUSE_SECONDS)
            elsewhere += time.perf_counter() - left
            yield feed

    started = time.perf_counter()
    ours(model, work.tensors, method, feeds())
    return (time.perf_counter() - started - elsewhere) / plain


def peak_and_seconds(work: Work, method: str, who: str) -> tuple[float, float]:
    """Peak memory (GB) and seconds of one calibration; for a process that has done nothing else."""
    started = time.perf_counter()
    if who == "clipq":
        ours(onnx.load(work.model), work.tensors, method, work.feeds())
    else:
        theirs(work, method)
    seconds = time.perf_counter() - started
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024 / 1e9, seconds


def apart(*arguments: Any) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_and_seconds, *arguments).result()


def against_inference(work: Work, rounds: int) -> list[dict[str, Any]]:
    model = onnx.load(work.model)
    ratios: dict[str, list[float]] = {method: [] for method in THEIRS}
    with OrtEngine(work.model) as engine:
        engine.run(next(work.feeds()))
        for _ in range(rounds):
            for method, found in ratios.items():
                found.append(over_inference(work, method, engine, model))
                print(f"{method}: {found[-1]:.3f} times plain inference", file=sys.stderr, flush=True)
    return [
        {"kind": "over inference", "method": method, "rounds": rounds, "median": statistics.median(found),
         "min": min(found), "max": max(found)}
        for method, found in ratios.items()
    ]  # fmt: skip


def against_onnxruntime(work: Work) -> list[dict[str, Any]]:
    """A row per method and size; a size at which theirs would outgrow ``LARGEST_PEAK_GB`` has none of theirs."""
    rows = []
    small, whole = max(1, len(work.batches) // 4), len(work.batches)
    for method in THEIRS:
        expected = 0.0
        for batches in (small, whole):
            part = work.first(batches)
            our_peak, our_seconds = apart(part, method, "clipq")
            row = {"kind": "beside onnxruntime", "method": method, "batches": batches, "peak_gb": our_peak, "seconds": our_seconds}  # fmt: skip
            if expected <= LARGEST_PEAK_GB:
                peak, seconds = apart(part, method, "onnxruntime")
                row |= {"theirs_peak_gb": peak, "theirs_seconds": seconds, "theirs_over_ours": seconds / our_seconds}
                expected = peak * whole / small
            else:
                row |= {"left_out": f"theirs would take up to {expected:.0f} GB"}
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| method | time ÷ plain inference [min, max] |\n|---|---|"
    for row in rows:
        if row["kind"] == "over inference":
            yield f"| {row['method']} | {row['median']:.2f} [{row['min']:.2f}, {row['max']:.2f}], {row['rounds']} rounds |"
    yield "\n| method | batches | peak GB | ONNX Runtime's peak GB | its time ÷ ours |\n|---|---|---|---|---|"
    for row in rows:
        if row["kind"] == "beside onnxruntime":
            beside = (
                f"{row['theirs_peak_gb']:.2f} | {row['theirs_over_ours']:.2f}"
                if "theirs_seconds" in row
                else f"{row['left_out']} | "
            )
            yield f"| {row['method']} | {row['batches']} | {row['peak_gb']:.2f} | {beside} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="FP32 bundle; a ViT-B-32 of random weights is made without it")
    parser.add_argument("--photos", type=Path, default=DEMO_SET, help="folder; its images repeat where they are fewer")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    # Spread over the folder, whose first images may be all of one class.
    photos = photos[:: max(1, len(photos) // options.images)][: options.images]
    with TemporaryDirectory() as folder:
        path = options.bundle
        if path is None:
            path = Path(folder) / "fp32"
            command = [sys.executable, "-m", "clipq.exporters.cli", "onnx", "ViT-B-32", "--pretrained", "random"]
            subprocess.run([*command, "-o", str(path)], check=True, stdout=subprocess.DEVNULL)
        repeated = list(itertools.islice(itertools.cycle(photos), options.images))
        work = prepare(open_bundle(path), repeated, Path(folder))
        rows = [*against_inference(work, options.rounds), *against_onnxruntime(work)]
    record = {
        "benchmark": "ranges", "machine": environment(), "bundle": path.name, "images": options.images,
        "photos": len(photos), "batch": BATCH, "tensors": len(work.tensors), "rows": rows,
    }  # fmt: skip
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{options.images} images ({len(photos)} photos), batch {BATCH}, {len(work.tensors)} tensors\n")
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
