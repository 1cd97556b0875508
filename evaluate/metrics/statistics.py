"""Bootstrap draws, intervals and p-values; a paired difference is the difference of draws on the same resamples."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from scipy.special import ndtr, ndtri

from clipq.evaluate.metrics.predictions import Floats

CONFIDENCE = 0.95
RESAMPLES = 1000

# Weights are made and used in blocks of this many entries, so that memory does not grow with the resamples.
_BLOCK_ENTRIES = 4_000_000

# Of draws whose intervals are taken together.
_BLOCK_DRAWS = 512

Statistic = Callable[..., Floats]


@dataclass(frozen=True)
class Draws:
    """A value and what it is on each bootstrap resample; ``n`` is the number of samples behind it."""

    value: float
    resampled: Floats
    n: int

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The percentile interval, moved by the bootstrap's estimate of bias (Efron and Tibshirani, 1993).

        Binned calibration errors and gaps between groups are larger on a resample than on the sample: their plain
        percentile interval can leave out the value itself. Draws without a value do not count.
        """
        finite = self.resampled[np.isfinite(self.resampled)]
        if len(finite) == 0:
            return math.nan, math.nan
        low, high = interval(finite, confidence)
        bias = float(finite.mean()) - self.value
        # Means have no bias but the draws' own noise; moved by that, an interval that ends at 0 would leave 0 out.
        if abs(bias) <= 4 * float(finite.std()) / math.sqrt(len(finite)):
            return low, high
        return min(low - bias, self.value), max(high - bias, self.value)

    def percentile_interval(self) -> tuple[float, float]:
        """The plain 95 % percentile interval, widened to hold the value: for quantiles of a few raw samples."""
        low, high = interval(self.resampled)
        return min(low, self.value), max(high, self.value)

    def __sub__(self, other: Draws) -> Draws:
        """The paired difference: both must come from the same resamples."""
        return Draws(self.value - other.value, self.resampled - other.resampled, self.n)

    def p_value(self) -> float:
        """Two-sided p of the value being 0, from its bootstrap standard error (Wald); 1 where it is 0 throughout."""
        finite = self.resampled[np.isfinite(self.resampled)]
        error = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
        if error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * ndtr(-abs(self.value) / error))


def intervals(draws: Sequence[Draws], confidence: float = CONFIDENCE) -> list[tuple[float, float]]:
    """``Draws.interval`` of many, a block at a time: one by one, a study of a million numbers takes minutes."""
    if any(len(one.resampled) != len(draws[0].resampled) for one in draws):
        return [one.interval(confidence) for one in draws]
    found: list[tuple[float, float]] = []
    for start in range(0, len(draws), _BLOCK_DRAWS):
        block = draws[start : start + _BLOCK_DRAWS]
        matrix = np.stack([one.resampled for one in block])
        if not np.isfinite(matrix).all():
            found += [one.interval(confidence) for one in block]
            continue
        tail = (1 - confidence) / 2
        low, high = np.quantile(matrix, [tail, 1 - tail], axis=1)
        value = np.array([one.value for one in block])
        bias, noise = matrix.mean(axis=1) - value, matrix.std(axis=1) / math.sqrt(matrix.shape[1])
        moved = np.abs(bias) > 4 * noise
        low = np.where(moved, np.minimum(low - bias, value), low)
        high = np.where(moved, np.maximum(high - bias, value), high)
        found += zip(low.tolist(), high.tolist(), strict=True)
    return found


def mean_of(draws: Sequence[Draws], shared: int = 0) -> Draws:
    """The average of several values, resample by resample (near and far averages over OOD sets).

    ``shared`` is how many samples are behind each of them, the same ones: they count once.
    """
    return Draws(
        float(np.mean([one.value for one in draws])),
        np.mean([one.resampled for one in draws], axis=0),
        shared + sum(one.n - shared for one in draws),
    )


def resample_weights(n: int, resamples: int, seed: int | Sequence[int], rows: int | None = None) -> Iterator[Floats]:
    """Blocks of bootstrap weights (rows: resamples; entries: how often a sample was drawn), the same for a seed."""
    rows = rows or max(1, _BLOCK_ENTRIES // n)
    if resamples <= rows:
        yield _whole(n, resamples, tuple(seed) if isinstance(seed, Sequence) else seed)
    else:
        yield from _blocks(n, resamples, seed, rows)


# Engines and views of as many samples come one after another. 16 MB each at most.
@lru_cache(maxsize=4)
def _whole(n: int, resamples: int, seed: int | tuple[int, ...]) -> Floats:
    (block,) = _blocks(n, resamples, seed, resamples)
    block.setflags(write=False)
    return block


def _blocks(n: int, resamples: int, seed: int | Sequence[int], rows: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(0, n, (count, n))
        flat = (drawn + n * np.arange(count)[:, None]).ravel()
        yield np.bincount(flat, minlength=n * count).reshape(count, n).astype(np.float32)


Key = TypeVar("Key", bound=Hashable)


def bootstrap(
    functions: Mapping[Key, Statistic], *sizes: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Key, Draws]:
    """Value and draws of each function, all on the same resamples.

    A function takes one weight matrix (resamples × samples) per population; ``sizes`` are the populations' sample
    counts. The k-th population's resamples depend on the seed, k and its size alone, so whatever is computed on the
    same samples, in one call or in two, is paired.
    """
    ones = [np.ones((1, n), dtype=np.float32) for n in sizes]
    values = {name: float(function(*ones)[0]) for name, function in functions.items()}
    draws: dict[Key, list[Floats]] = {name: [] for name in functions}
    rows = max(1, _BLOCK_ENTRIES // max(sizes))
    blocks = [resample_weights(n, resamples, [seed, k] if k else seed, rows) for k, n in enumerate(sizes)]
    for weights in zip(*blocks, strict=True):
        for name, function in functions.items():
            draws[name].append(function(*weights))
    return {name: Draws(values[name], np.concatenate(draws[name]), sum(sizes)) for name in functions}


def percentile_draws(samples: Sequence[float], q: float, *, seed: int = 0, again: Sequence[float] = ()) -> Draws:
    """The q-th percentile of times in the order they were taken.

    Neighbours are drawn together, in blocks of n^⅓ (Künsch, 1989): what disturbs one turn lasts into the next ones.
    ``again`` are times of a second copy of the same engine in the same turns: every other draw is of them, so that an
    interval holds what two copies differ in. Two engines are not paired by turn: medians of both can lie in different
    turns, and where the machine drifts paired intervals are half as wide as they should be (a test simulates it).
    """
    array = np.asarray(samples, dtype=np.float64)
    n, block = len(array), round(len(array) ** (1 / 3))
    starts = np.random.default_rng(seed).integers(0, n, (RESAMPLES, -(-n // block)))
    turns = ((starts[:, :, None] + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]
    draws = np.percentile(array[turns], q, axis=1)
    if again:
        draws[1::2] = np.percentile(np.asarray(again, dtype=np.float64)[turns[1::2]], q, axis=1)
    return Draws(float(np.percentile(array, q)), draws, n)


def median_ratio(
    samples: Sequence[float], base: Sequence[float], again: Sequence[float] = ()
) -> tuple[float, float, float]:
    """The median of raw times over that of others taken in turns with them, with its 95 % interval.

    ``again`` are the times of a second copy of the others' engine.
    """
    mine, theirs = percentile_draws(samples, 50), percentile_draws(base, 50, seed=1, again=again)
    ratio = Draws(mine.value / theirs.value, mine.resampled / theirs.resampled, mine.n)
    return ratio.value, *ratio.percentile_interval()


def interval(draws: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The central 95 % (or other part) of draws."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson, 1927).

    >>> [round(bound, 3) for bound in wilson(8, 10)]
    [0.49, 0.943]
    """
    z = float(ndtri(0.5 + CONFIDENCE / 2))
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def holm(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of the hypotheses are rejected by Holm's step-down procedure (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03, 0.005])
    [True, False, False, True]
    """
    order = np.argsort(p_values, kind="stable")
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
