"""The smallest and the largest of each number that is asked for: on command lines, in files and from Python.

A number beyond them is a typing error, or would fill the memory before anyone knew.
"""

from __future__ import annotations

from typing import NamedTuple


class Bounds(NamedTuple):
    """Both are allowed."""

    least: int
    most: int


# numpy's oldest generators, which corruption libraries draw from, take 32 bits.
SEED = Bounds(0, 2**32 - 1)
# 0 is all cores.
THREADS = Bounds(0, 256)
# Of images and texts, wherever a number of them is asked for.
SAMPLES = Bounds(1, 10**9)
# Of drawn images.
DEMO_SAMPLES = Bounds(1, 100_000)
# Of what evaluation gives an engine at once, and of what is only timed or built for.
BATCH = Bounds(1, 256)
TIMED_BATCH = Bounds(1, 4096)
REPEATS = Bounds(3, 10_000)
# A thousand resamples of each bin are held at once.
ECE_BINS = Bounds(2, 1000)
QUERIES = Bounds(2, 1_000_000)
ATTACK_STEPS = Bounds(1, 10_000)
ATTACK_RESTARTS = Bounds(1, 1000)
EPSILON = Bounds(1, 255)
PIXEL_CACHE_GB = Bounds(0, 1_000_000)
GPUS = Bounds(0, 1024)
