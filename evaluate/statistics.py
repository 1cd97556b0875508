"""Bootstrap intervals, for a value and for a paired difference, from the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clipq.evaluate.predictions import Floats

CONFIDENCE = 0.95
RESAMPLES = 1000

# Weights are made and used in blocks of this many entries, so that memory does not grow with the resamples.
_BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A value and its percentile-bootstrap interval; ``n`` is the number of samples."""

    value: float
    low: float
    high: float
    n: int


def resample_weights(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of bootstrap weights (rows: resamples; entries: how often a sample was drawn), the same for a seed."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK_ENTRIES // n)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(0, n, (count, n))
        flat = (drawn + n * np.arange(count)[:, None]).ravel()
        yield np.bincount(flat, minlength=n * count).reshape(count, n).astype(np.float32)


def bootstrap(
    functions: dict[str, Callable[[Floats], Floats]], n: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Value and 95 % interval of each function of a weight matrix, all on the same resamples.

    A difference of two metrics is one more function: it is then paired, for both see the same samples. Percentile
    method (Efron and Tibshirani, 1993, chapter 13).
    """
    ones = np.ones((1, n), dtype=np.float32)
    values = {name: float(function(ones)[0]) for name, function in functions.items()}
    draws: dict[str, list[Floats]] = {name: [] for name in functions}
    for weights in resample_weights(n, resamples, seed):
        for name, function in functions.items():
            draws[name].append(function(weights))
    estimates = {}
    for name in functions:
        estimates[name] = Estimate(values[name], *interval(np.concatenate(draws[name])), n)
    return estimates


def percentile_estimate(samples: Sequence[float], q: float, *, seed: int = 0) -> tuple[Estimate, Floats]:
    """The q-th percentile of raw samples with its 95 % interval, and the bootstrap draws behind it."""
    array = np.asarray(samples, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = np.percentile(array[rng.integers(0, len(array), (RESAMPLES, len(array)))], q, axis=1)
    low, high = interval(draws)
    return Estimate(float(np.percentile(array, q)), low, high, len(array)), draws


def interval(draws: Floats) -> tuple[float, float]:
    """The central 95 % of bootstrap draws."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
