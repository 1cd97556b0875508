"""The batch size at which a set of engines is fastest, found by measurement."""

from __future__ import annotations

from collections.abc import Sequence

from clipq.engines.base import Engine
from clipq.engines.latency import measure_latency
from clipq.errors import OutOfMemory
from clipq.evaluate.bench import plausible_feed
from clipq.evaluate.subjects import Subject
from clipq.progress import Progress

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# A larger batch must be worth its memory: 3 % at least.
WORTH = 0.97


def measured_batch(subjects: Sequence[Subject], progress: Progress) -> int:
    """The smallest batch that is within 3 % of the fastest per image, over all image towers together.

    It becomes part of the cells' keys and is written to the record. Sizes that do not fit the GPU end the search.
    """
    progress.start("finding the batch size", len(subjects))
    seconds = dict.fromkeys(SIZES, 0.0)
    for subject in subjects:
        with subject.open("image") as engine:
            for size in list(seconds):
                try:
                    seconds[size] += _seconds_per_image(engine, subject, size)
                except OutOfMemory:
                    seconds = {fits: total for fits, total in seconds.items() if fits < size}
                    break
        progress.advance(1)
    if not seconds:
        raise OutOfMemory("the GPU has no memory for a single image")
    fastest = min(seconds.values())
    return next(size for size, total in seconds.items() if total <= fastest / WORTH)


def _seconds_per_image(engine: Engine, subject: Subject, size: int) -> float:
    feed = plausible_feed(subject.bundle, "image", size)
    (latency,) = measure_latency({"one": engine}, [feed], warmup=1, repeats=3)["one"]
    return 1 / latency.throughput
