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

from clipq.engines.base import Array
from clipq.engines.ort import OrtEngine
from clipq.errors import RecipeError
from clipq.exporters.recipes import Static

HALF_BINS = 2048
QUANTIZED_BINS = 128


class RangeHistogram:
    """Counts of a tensor's values, its extremes, and the ranges drawn from them."""

    def __init__(self) -> None:
        self.lowest = np.inf
        self.highest = -np.inf
        self.limit = 0.0
        self.counts = np.zeros(2 * HALF_BINS, dtype=np.int64)

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Count a batch of values; raises RecipeError where they are not finite."""
        flat = values.reshape(-1)
        lowest, highest = float(flat.min()), float(flat.max())
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise RecipeError("an activation is not finite, so it has no range; exclude this tower with --towers")
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        reach = max(-lowest, highest)
        if self.limit == 0.0:
            if reach == 0.0:
                return
            self.limit = reach
        while reach > self.limit:
            self._double()
        index = ((flat + self.limit) * (HALF_BINS / self.limit)).astype(np.int32)
        np.minimum(index, 2 * HALF_BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=2 * HALF_BINS)

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros_like(self.counts)
        self.counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = merged
        self.limit *= 2

    def range(self, recipe: Static) -> tuple[float, float]:
        """Lowest and highest value that stay representable under the recipe's method."""
        low, high = min(self.lowest, 0.0), max(self.highest, 0.0)
        if recipe.ranges == "minmax" or self.limit == 0.0:
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


def entropy_threshold(counts: NDArray[np.int64]) -> int:
    """How many bins of a magnitude histogram to keep so that 128 levels lose the least information (Migacz, 2017).

    For each candidate, the clipped histogram (outliers added to its last bin) is compared with the same histogram
    merged into 128 levels, by Kullback-Leibler divergence.
    """
    counts = counts.astype(np.float64)
    # Bin 0 is dominated by exact zeros (ReLU, padding) and would decide alone; TensorRT's method leaves it out too.
    counts[0] = counts[1]
    best, best_divergence = len(counts), np.inf
    total = counts.sum()
    cumulative = np.cumsum(counts)
    for kept in range(QUANTIZED_BINS, len(counts) + 1, 8):
        clipped = counts[:kept].copy()
        clipped[-1] += total - cumulative[kept - 1]
        edges = (np.arange(QUANTIZED_BINS) * kept) // QUANTIZED_BINS
        occupied = counts[:kept] > 0
        sums = np.add.reduceat(counts[:kept], edges)
        sizes = np.add.reduceat(occupied.astype(np.float64), edges)
        level = np.repeat(
            np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0), np.diff(np.append(edges, kept))
        )
        quantized = np.where(occupied, level, 0.0)
        reference = clipped / clipped.sum()
        candidate = quantized / max(quantized.sum(), 1.0)
        mask = reference > 0
        # Mass that only the clipped histogram has (outliers landing in an empty bin) would make it infinite.
        smoothed = np.maximum(candidate[mask], 1e-12)
        divergence = float((reference[mask] * np.log(reference[mask] / smoothed)).sum())
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return best


def collect_ranges(
    model: onnx.ModelProto, tensors: list[str], feeds: Iterable[dict[str, Array]]
) -> dict[str, RangeHistogram]:
    """Run a tower over a calibration set and histogram the named tensors; memory does not grow with the set."""
    histograms = {name: RangeHistogram() for name in tensors}
    for seen in observe(model, tensors, feeds):
        for name, histogram in histograms.items():
            histogram.add(seen[name])
    return histograms


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Iterable[dict[str, Array]]
) -> Iterator[dict[str, Array]]:
    """Run a tower over a calibration set and yield the named tensors, batch by batch."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    present = {value.name for value in [*observed.graph.output, *observed.graph.input]}
    for name in tensors:
        if name not in present:
            observed.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        onnx.save(observed, str(path))
        with OrtEngine(path) as engine:
            for feed in feeds:
                yield {**engine.run(feed), **feed}
