"""Activation ranges of a tower over a calibration set, in one streaming pass with flat memory.

Each tensor keeps a signed histogram over ``[-limit, limit]``; when a value falls outside, the limit doubles and
neighbouring bins merge, so nothing is stored but counts. (ONNX Runtime's own histogram calibrators keep every
activation of every image until the end, and use 128 bins for the entropy method where its authors used 2048.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.special import xlogy

from clipq.engines.base import Array
from clipq.engines.ort import OrtEngine
from clipq.errors import RecipeError
from clipq.exporters.onnx_file import save
from clipq.exporters.recipes import Static

HALF_BINS = 2048
QUANTIZED_BINS = 128
# Values binned at once: so many, their scaled copy and their indices stay in a core's own cache.
CHUNK = 2**16
# Of observed tensors at once.
OBSERVED_BYTES = 2**29


class RangeHistogram:
    """A tensor's extremes, counts of its values unless they are not ``counted``, and the ranges drawn from them."""

    def __init__(self, *, counted: bool = True) -> None:
        self.counted = counted
        self.lowest = np.inf
        self.highest = -np.inf
        self.limit = 0.0
        self.counts = np.zeros(2 * HALF_BINS, dtype=np.int64)

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Take in a batch of values; raises RecipeError where they are not finite."""
        flat = values.reshape(-1)
        lowest, highest = float(flat.min()), float(flat.max())
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise RecipeError("an activation is not finite, so it has no range; exclude this tower with --towers")
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        reach = max(-lowest, highest)
        if not self.counted or self.limit == reach == 0.0:
            return
        self.limit = self.limit or reach
        while reach > self.limit:
            self._double()
        self.counts += bin_counts(flat, self.limit)

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros_like(self.counts)
        self.counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = merged
        self.limit *= 2

    def range(self, recipe: Static) -> tuple[float, float]:
        """Lowest and highest value that stay representable under the recipe's method; minmax alone needs no counts."""
        low, high = min(self.lowest, 0.0), max(self.highest, 0.0)
        if recipe.ranges == "minmax":
            return low, high
        if not self.counted:
            raise ValueError(f"{recipe.ranges} ranges are drawn from counts")
        if self.limit == 0.0:
            return low, high
        if recipe.ranges == "mse":
            return self._least_squares(low, high, recipe)
        magnitude = self._percentile(recipe.percentile) if recipe.ranges == "percentile" else self._entropy()
        return max(low, -magnitude), min(high, magnitude)

    def _least_squares(self, low: float, high: float, recipe: Static) -> tuple[float, float]:
        """The extremes, shrunk by the common factor that loses the least squared error over the histogram."""
        centres = (np.arange(2 * HALF_BINS) - HALF_BINS + 0.5) * (self.limit / HALF_BINS)
        symmetric = recipe.activations == "symmetric"
        best, least = (low, high), np.inf
        for factor in np.linspace(0.05, 1, 96):
            reach = (low * factor, high * factor)
            lowest, highest = (-max(-reach[0], reach[1]), max(-reach[0], reach[1])) if symmetric else reach
            step = (highest - lowest) / (2**recipe.activation_bits - (2 if symmetric else 1))
            rounded = np.clip(np.rint(centres / step) * step, lowest, highest)
            error = float((self.counts * (rounded - centres) ** 2).sum())
            if error < least:
                best, least = reach, error
        return best

    def _magnitudes(self) -> NDArray[np.int64]:
        return self.counts[HALF_BINS:] + self.counts[:HALF_BINS][::-1]

    def _percentile(self, percentile: float) -> float:
        cumulative = np.cumsum(self._magnitudes())
        index = int(np.searchsorted(cumulative, cumulative[-1] * percentile / 100))
        return (min(index, HALF_BINS - 1) + 1) * self.limit / HALF_BINS

    def _entropy(self) -> float:
        return entropy_threshold(self._magnitudes()) * self.limit / HALF_BINS


def bin_counts(values: NDArray[np.floating[Any]], limit: float) -> NDArray[np.int64]:
    """How many values fall in each of the equal bins over ``[-limit, limit]``; ``limit`` itself is in the last."""
    counts = np.zeros(2 * HALF_BINS + 1, dtype=np.int64)
    for start in range(0, len(values), CHUNK):
        scaled = values[start : start + CHUNK] + limit
        scaled *= HALF_BINS / limit
        counts += np.bincount(scaled.astype(np.int32), minlength=len(counts))
    counts[-2] += counts[-1]
    return counts[:-1]


def entropy_threshold(counts: NDArray[np.int64]) -> int:
    """How many bins of a magnitude histogram to keep so that 128 levels lose the least information (Migacz, 2017).

    For each candidate, the clipped histogram (outliers added to its last bin) is compared with the same histogram
    merged into 128 levels, by Kullback-Leibler divergence.
    """
    counts = counts.astype(np.float64)
    # Bin 0 is dominated by exact zeros (ReLU, padding) and would decide alone; TensorRT's method leaves it out too.
    counts[0] = counts[1]
    kept = np.arange(QUANTIZED_BINS, len(counts) + 1, 8)
    edges = np.arange(QUANTIZED_BINS + 1) * kept[:, None] // QUANTIZED_BINS
    cumulative = _running_sum(counts)
    sums, sizes = np.diff(cumulative[edges]), np.diff(_running_sum(counts > 0)[edges])
    total, inside, last = cumulative[-1], cumulative[kept], counts[kept - 1]
    outliers = total - inside
    # What an occupied bin is after merging. Mass that only the clipped histogram has (outliers landing in an empty bin)
    # would make the divergence infinite.
    levels = np.maximum(sums / np.maximum(sizes, 1) / np.maximum(inside, 1.0)[:, None], 1e-12)
    own = _running_sum(xlogy(counts, counts))[kept - 1] + xlogy(last + outliers, last + outliers)
    cross = xlogy(sums, levels).sum(1) + outliers * np.log(np.where(last > 0, levels[:, -1], 1e-12))
    # Equal but for float noise, the smaller one is kept.
    return int(kept[np.argmin(np.round((own - cross) / total, 12))])


def _running_sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2, … values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def collect_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Iterable[dict[str, Array]], *, counted: bool = True
) -> dict[str, RangeHistogram]:
    """Run a tower over a calibration set and measure the named tensors; memory does not grow with the set.

    Without ``counted`` the extremes alone are kept, which is all that minmax ranges need.
    """
    histograms = {name: RangeHistogram(counted=counted) for name in tensors}
    for seen in observe(model, list(histograms), feeds):
        for name, histogram in histograms.items():
            histogram.add(seen[name])
    return histograms


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Iterable[dict[str, Array]]
) -> Iterator[dict[str, Array]]:
    """Run a tower over a calibration set and yield the named tensors, batch by batch.

    A batch whose tensors would take more than OBSERVED_BYTES is run in parts: of a large tower, they are gigabytes.
    """
    present = {value.name for value in [*model.graph.output, *model.graph.input]}
    added = onnx.ModelProto()
    added.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(tensors) if name not in present
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        save(model, path)
        with path.open("ab") as file:
            # One message's bytes behind another's are the two merged: the weights are not copied to add outputs.
            file.write(added.SerializeToString())
        with OrtEngine(path) as engine:
            most, fixed = 0, engine.inputs[0].shape[0]
            for feed in feeds:
                if not most and fixed is None:
                    one = engine.run(_part(feed, 0, 1))
                    most = max(1, OBSERVED_BYTES // sum(array.nbytes for array in one.values()))
                most = most or fixed or 1
                for start in range(0, len(next(iter(feed.values()))), most):
                    part = _part(feed, start, most)
                    yield {**engine.run(part), **part}


def _part(feed: dict[str, Array], start: int, count: int) -> dict[str, Array]:
    # Positions can be one row for all.
    return {name: array if len(array) == 1 else array[start : start + count] for name, array in feed.items()}
