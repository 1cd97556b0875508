"""Sums of two products that 16 bits cannot hold: where x86 kernels without VNNI lose them, and what they lose.

ONNX Runtime's kernels for AVX2, and for AVX-512 without VNNI, multiply unsigned by signed bytes with ``vpmaddubsw``:
two neighbours along the inner dimension are multiplied and added in 16 bits, and a sum beyond them becomes the nearest
number within. Kernels for other types and for depthwise convolutions widen first and are exact, as all are with VNNI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = -(2**15), 2**15 - 1
_MOST_BYTE = 255
# Below 2**24 every partial sum of integers is exact in float32, in whatever order it is taken: 512 · 255 · 128 is.
_CHUNK = 512
# Of a convolution's windows at once, as floating point.
_ROWS = 2**14


@dataclass(frozen=True)
class Weights:
    """The signed right factor of an integer product, inner × outputs, its rows in the order in which pairs are made."""

    values: NDArray[np.int8]

    @property
    def pair_sums(self) -> int:
        """How many sums of two products one row of activations takes; an odd row counts as paired with zero."""
        inner, outputs = self.values.shape
        return (inner + 1) // 2 * outputs

    @property
    def can_saturate(self) -> bool:
        """Whether any activations could make a sum saturate; if not, the product is exact on every CPU."""
        return len(self._risky[0]) > 0

    @cached_property
    def _pairs(self) -> NDArray[np.int16]:
        """Pairs × 2 × outputs."""
        inner, outputs = self.values.shape
        padded = np.zeros((inner + inner % 2, outputs), np.int16)
        padded[:inner] = self.values
        return padded.reshape(-1, 2, outputs)

    @cached_property
    def _risky(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Output and pair of every two weights whose sum the largest activations bring out of 16 bits."""
        pairs = self._pairs.astype(np.int32)
        highest = np.maximum(pairs, 0).sum(axis=1) * _MOST_BYTE
        lowest = np.minimum(pairs, 0).sum(axis=1) * _MOST_BYTE
        outputs, positions = np.nonzero(((highest > HIGHEST) | (lowest < LOWEST)).T)
        return outputs, positions

    @cached_property
    def _as_floats(self) -> list[NDArray[np.float32]]:
        return [self.values[start : start + _CHUNK].astype(np.float32) for start in range(0, len(self.values), _CHUNK)]

    def exact(self, rows: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Rows (rows × inner) times weights, as a CPU with VNNI computes it: int32, rows × outputs."""
        total = np.zeros((len(rows), self.values.shape[1]), np.int32)
        for top in range(0, len(rows), _ROWS):
            some = rows[top : top + _ROWS]
            for index, chunk in enumerate(self._as_floats):
                part = some[:, index * _CHUNK : index * _CHUNK + len(chunk)].astype(np.float32)
                total[top : top + _ROWS] += (part @ chunk).astype(np.int32)
        return total

    def excess(self, rows: NDArray[np.uint8]) -> tuple[NDArray[np.int32], int]:
        """What saturation takes off the exact product (int32, rows × outputs), and how many sums it takes it off."""
        lost = np.zeros((self.values.shape[1], len(rows)), np.int32)
        outputs, positions = self._risky
        if not len(outputs):
            return lost.T, 0
        padded = np.zeros((self._pairs.shape[0] * 2, len(rows)), np.uint8)
        padded[: rows.shape[1]] = rows.T
        first, second = (self._pairs[positions, which, outputs].astype(np.int32) for which in (0, 1))
        return lost.T, int(_kernel()(padded, outputs, positions, first, second, lost))

    def saturated(self, rows: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Rows times weights, as a CPU without VNNI computes it."""
        return self.exact(rows) - self.excess(rows)[0]


@cache
def _kernel() -> Callable[..., int]:
    """``_take_excess`` compiled; the first call in a process takes the second or so that this needs."""
    import numba

    compiled: Callable[..., int] = numba.njit(nogil=True)(_take_excess)
    return compiled


def _take_excess(columns: Any, outputs: Any, positions: Any, first: Any, second: Any, lost: Any) -> int:
    """Add to ``lost`` (outputs × rows) what each pair's sum is beyond 16 bits; returns how many sums were beyond."""
    count: Any = 0
    for index in range(len(outputs)):
        above, below = columns[2 * positions[index]], columns[2 * positions[index] + 1]
        one, other, into = first[index], second[index], lost[outputs[index]]
        beyond: Any = np.int32(0)
        for row in range(len(into)):
            total = np.int32(above[row]) * one + np.int32(below[row]) * other
            excess = total - min(max(total, np.int32(-32768)), np.int32(32767))
            into[row] += excess
            beyond += np.int32(excess != 0)
        count += beyond
    return count
