"""Whether a machine was too busy for a time to say anything.

Threads of a runtime wait for each other by spinning: one that is taken off its core stops all of them, for a
scheduler's time slice of some milliseconds, whatever the engine's own time is. A small tower then looks 10 times as
fast, or as slow, beside another one than it is, with intervals as narrow as ever.
"""

from __future__ import annotations

import numpy as np

from clipq.evaluate.results.record import LatencyRecord, LoadRecord

# Cores that others may use beyond those that the engine leaves free.
MOST_OTHERS = 0.3
# How far from 1 the reference's second copy may be beyond its interval, and p90 from p50.
MOST_APART = 0.1
MOST_SPREAD = 1.5


def busy_because(mine: LatencyRecord, twice: LatencyRecord, load: LoadRecord | None, threads: int) -> str:
    """Why an engine's times say nothing, else nothing; ``twice`` is what was timed twice in the same turns.

    ``threads`` are those of the engine, 0 for all cores; ``load`` is None where the system does not tell it.
    """
    free = load.cores - min(threads or load.cores, load.cores) if load else 0
    if load and max(load.others) > free + MOST_OTHERS:
        before, during, after = load.others
        return (
            f"other processes used {before:.1f} of {load.cores} cores before, {during:.1f} while and {after:.1f} after "
            "engines were timed"
        )
    if (apart := twice.twice()) is not None:
        ratio, low, high = apart
        if low > 1 + MOST_APART or high < 1 / (1 + MOST_APART):
            return f"two copies of the reference took {ratio:.2f} times each other's time [{low:.2f}, {high:.2f}]"
    for times, whose in ((mine.milliseconds, ""), (twice.milliseconds, "the reference's ")):
        spread = np.percentile(times, 90) / np.median(times)
        if spread > MOST_SPREAD:
            return f"{whose}p90 is {spread:.1f} times p50"
    return ""
