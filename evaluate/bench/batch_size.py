"""The batch size at which a set of engines is fastest, found by measurement."""

from __future__ import annotations

from collections.abc import Sequence

from clipq.errors import OutOfMemory
from clipq.evaluate.bench.bench import seconds_per_sample
from clipq.evaluate.cells.subjects import Subject
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
                    seconds[size] += seconds_per_sample(engine, subject.bundle, "image", size)
                except OutOfMemory:
                    seconds = {fits: total for fits, total in seconds.items() if fits < size}
                    break
        progress.advance(1)
    if not seconds:
        raise OutOfMemory("the GPU has no memory for a single image")
    fastest = min(seconds.values())
    return next(size for size, total in seconds.items() if total <= fastest / WORTH)
