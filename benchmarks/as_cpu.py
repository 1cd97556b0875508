"""A bundle predicted for a CPU without VNNI, against the same bundle on an emulated one.

    apt-get install qemu-user
    clipq-export run local-dir:MODEL --calibration-set PHOTOS/train --recipe int8-static -o E
    python -m benchmarks.as_cpu E/int8-static-minmax PHOTOS/test --samples 160

Both towers run three times on the same images and class prompts: on this CPU (deployed), predicted (``--as-cpu avx2``),
and on ``qemu-x86_64 -cpu Haswell``. The last is the truth. Times are of this CPU, a thread each: the deployed engine's
and the prediction's in turns, medians of rounds, both over all images.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.emulated import QEMU, outputs
from clipq.bundle import TOWERS, Bundle, open_bundle
from clipq.cpu import cpu_level, spoken
from clipq.data.open import open_view
from clipq.data.pixels import PixelReader
from clipq.data.views import View, choose_samples
from clipq.engines.base import Array, Engine
from clipq.engines.ort import OrtEngine
from clipq.engines.predicted import PredictedEngine
from clipq.engines.saturation import take_saturation
from clipq.evaluate.cells.cells import BatchSize, run_in_batches, unit
from clipq.evaluate.suites.templates import choose_templates
from clipq.preprocess import normalize
from clipq.tokenizer import TextTokenizer

BATCH = 32
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", help="labelled images, as clipq-eval run --data takes them")
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--cpu", default="Haswell", help="the CPU that qemu-x86_64 emulates")
    asked = parser.parse_args()
    emulator = shutil.which(QEMU)
    if emulator is None:
        raise SystemExit(f"error: there is no {QEMU}: apt-get install qemu-user")
    bundle = open_bundle(asked.bundle)
    view = choose_samples(open_view(asked.data), asked.samples, 0)
    given = {"image": _images(bundle, view), "text": _prompts(bundle, view)}
    features: dict[str, dict[str, Array]] = {kind: {} for kind in ("deployed", "predicted", "emulated")}
    print(f"{bundle.name}, {len(given['image'])} images, {len(given['text'])} prompts, batches of {BATCH}")
    print(f"this CPU: {spoken(cpu_level().name)}; emulated: {asked.cpu}")
    for tower in TOWERS:
        path, array = bundle.tower_path(tower), given[tower]
        began = time.perf_counter()
        (features["emulated"][tower],) = outputs([emulator, "-cpu", asked.cpu], [(path, {})], array, batch=BATCH)
        emulated = time.perf_counter() - began
        seconds: dict[str, list[float]] = {"deployed": [], "predicted": []}
        with OrtEngine(path, threads=1) as deployed, PredictedEngine(path) as predicted:
            for _ in range(ROUNDS):
                for kind, engine in (("deployed", deployed), ("predicted", predicted)):
                    began = time.perf_counter()
                    features[kind][tower] = _features(engine, array)
                    seconds[kind].append(time.perf_counter() - began)
            counted = take_saturation(path, [{deployed.inputs[0].name: array[:BATCH]}])
        mine, theirs = (statistics.median(seconds[kind]) for kind in ("deployed", "predicted"))
        print(
            f"{tower} tower: deployed {mine:.2f} s, predicted {theirs:.2f} s ({theirs / mine:.1f} times), emulated "
            f"{emulated:.0f} s; {100 * counted.share:.2g} % of 16-bit sums saturate: {counted.verdict}"
        )
        for kind in ("deployed", "predicted"):
            close = (unit(features[kind][tower]) * unit(features["emulated"][tower])).sum(1)
            same = (features[kind][tower] == features["emulated"][tower]).all(1).mean()
            print(
                f"  {kind} to emulated: cosine {close.mean():.6f} mean, {close.min():.6f} smallest, "
                f"{100 * same:.1f} % of rows to the bit"
            )
    assert view.classes is not None
    labels = np.array([sample.label for sample in view.samples])
    for kind, found in features.items():
        prompts = unit(found["text"]).reshape(len(view.classes.names), -1, found["text"].shape[1])
        answers = np.array(view.classes.label_of_class)[(unit(found["image"]) @ unit(prompts.mean(1)).T).argmax(1)]
        print(f"top-1 {kind}: {100 * (answers == labels).mean():.2f}")


def _images(bundle: Bundle, view: View) -> Array:
    config = bundle.manifest.preprocess
    return normalize(PixelReader(config).read(view, 0, len(view.samples)).pixels, config)


def _prompts(bundle: Bundle, view: View) -> Array:
    assert view.classes is not None
    return TextTokenizer(bundle)(choose_templates(view, bundle, None).prompts(view.classes.names))


def _features(engine: Engine, array: Array) -> Array:
    return run_in_batches(engine, array, BatchSize(BATCH))


if __name__ == "__main__":
    main()
