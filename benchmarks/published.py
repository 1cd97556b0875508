"""Is the rule on references right? The table against its own averages, two published runs of one checkpoint, simulated runs.

``published_twice.csv`` has what CLIP_benchmark published (``benchmark/benchmark.csv``, commit 03e7fda) of checkpoints and test
sets that ``evaluate/published/open_clip.csv`` has too: how far two right runs lie apart is what TOLERANCE has to allow.
Simulated references have a known accuracy on a test set of known size: as published, moved by what two published runs
differ in (or worse by some points), and a random part of the images is drawn. Rates are of what the rule says of them.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np

from clipq.evaluate.metrics.statistics import wilson
from clipq.evaluate.published.table import shipped
from clipq.evaluate.verdicts.reference import STATES, TOLERANCE, WITHIN, compare

TWICE = Path(__file__).resolve().parent / "published_twice.csv"
# Questions that changed between the two: SVHN's prompts and CLEVR's classes.
SAME_QUESTION = 0.02


def off_average() -> list[tuple[str, float, float]]:
    """Each row of the table: how far the mean of its columns is from its average, and what rounding explains.

    Rounding 38 values to four digits moves their mean by 0.00001 five times out of six, and never by 0.00005.
    """
    found = []
    text = (resources.files("clipq.evaluate.published") / "open_clip.csv").read_text("utf-8")
    for name, pretrained, average, *values in list(csv.reader(text.splitlines()))[1:]:
        mean = float(np.mean([float(value) for value in values]))
        rounding = 0.5 * 10.0 ** -len(average.partition(".")[2]) + 1.5e-5
        found.append((f"{name}/{pretrained}", abs(mean - float(average)), rounding))
    return found


def twice() -> np.ndarray:
    """CLIP_benchmark's value minus open_clip's."""
    rows = list(csv.DictReader(TWICE.open(encoding="utf-8")))
    values = shipped().values
    return np.array(
        [float(one["value"]) - values[f"{one['name']}/{one['pretrained']}"][one["test_set"]] for one in rows]
    )


def rates(accuracy: float, images: int, n: int, worse: float, tries: int, seed: int = 0) -> dict[str, float]:
    """How often the rule says what of references that are ``worse`` than published by so much."""
    rng = np.random.default_rng([seed, n, images])
    moved = twice()
    moved = moved[np.abs(moved) <= SAME_QUESTION]
    states: Counter[str] = Counter()
    for shift in rng.choice(moved, tries):
        right = round(images * float(np.clip(accuracy - worse + shift, 0, 1)))
        hits = int(rng.hypergeometric(right, images - right, n))
        interval = wilson(hits, n) if n < images else (hits / n, hits / n)
        states[compare(hits / n, interval, accuracy)] += 1
    return {state: states[state] / tries for state in STATES if state != "no published value"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=4000)
    options = parser.parse_args()
    rows = off_average()
    wrong = [name for name, off, rounding in rows if off > rounding]
    print(
        f"{len(rows)} checkpoints, {len(shipped().sets)} test sets; average not reproduced: {', '.join(wrong) or 'none'}"
    )
    apart = np.abs(twice())
    within = ", ".join(f"{(apart <= one).sum()} within {100 * one:g}" for one in (0.0025, 0.005, 0.01, 0.015, 0.02))
    print(f"two published runs of one checkpoint on one test set, {len(apart)} pairs, points: {within}")
    print(
        f"tolerance ± {100 * TOLERANCE:g}, verified within ± {100 * WITHIN:g} points; {options.tries} simulated references each"
    )
    print(
        "\n| published | images | of | worse by | anomalous | verified | too few |\n|---:|---:|---:|---:|---:|---:|---:|"
    )
    for accuracy, images in ((0.63, 50_000), (0.90, 10_000)):
        for n in dict.fromkeys((200, 1000, 2000, 5000, 10_000, images)):
            for worse in (0.0, 0.03, 0.05):
                found = rates(accuracy, images, n, worse, options.tries)
                cells = " | ".join(
                    f"{100 * found[state]:.1f} %" for state in ("anomalous", "verified", "too few samples")
                )
                print(f"| {100 * accuracy:.0f} % | {n:,} | {images:,} | {100 * worse:g} | {cells} |")


if __name__ == "__main__":
    main()
