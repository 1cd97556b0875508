"""1,000 resamples of all classification metrics over 50,000 samples × 1,000 classes: seconds and peak memory.

The ratio is to the same resamples taken one by one with index arrays, as scipy and scikit-learn users write it
(measured on 5 resamples of accuracy and ECE alone, and scaled).
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from clipq.evaluate.axes.classification import classification, tuned
from clipq.evaluate.metrics.calibration import ece
from clipq.evaluate.metrics.zeroshot import Answers, Classifier


def answers(samples: int, classes: int) -> Answers:
    rng = np.random.default_rng(0)
    prototypes = rng.standard_normal((classes, 64)).astype(np.float32)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    labels = rng.integers(0, classes, samples)
    images = prototypes[labels] + 0.35 * rng.standard_normal((samples, 64)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    classifier = Classifier(prototypes, np.arange(classes), 30.0, None)
    return Answers(images.astype(np.float32), classifier, labels, tuple(map(str, range(samples))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    made = answers(options.samples, options.classes)
    predictions = made.predictions
    started = time.perf_counter()
    rows = classification(made, view="v")
    whole = time.perf_counter() - started
    started = time.perf_counter()
    tuned(made, view="v", fraction=0.5)
    tuning = time.perf_counter() - started
    rng = np.random.default_rng(1)
    started = time.perf_counter()
    for _ in range(5):
        part = predictions.subset(rng.integers(0, options.samples, options.samples))
        part.correct.mean()
        ece(part, np.ones((1, options.samples)))
    one_by_one = (time.perf_counter() - started) * 200
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    accuracy = next(row.draws.value for row in rows if row.metric == "acc1")
    print(f"{len(rows)} metrics, 1,000 resamples, {options.samples:,} × {options.classes:,} (top-1 {accuracy:.3f})")
    print(f"{whole:.1f} s, logit-scale tuning {tuning:.1f} s, peak memory {peak:.2f} GB")
    print(f"one by one, accuracy and ECE alone: {one_by_one:.0f} s, {one_by_one / whole:.1f} times as long")


if __name__ == "__main__":
    main()
