"""Block-wise low-bit weights in the layout of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedBlocks:
    """A weight in MatMulNBits' layout: ``packed`` (N, blocks, bytes), ``scales`` (N · blocks), ``zero_points``.

    Zero points are one float each (HQQ), or whole levels packed like the weights, row by row.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[Any]


def pad_inputs(weight: NDArray[Any], block_size: int) -> NDArray[Any]:
    """A weight (N outputs, K inputs) with K padded by zeros to whole blocks."""
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % block_size)))


Grid = Literal["asymmetric", "symmetric", "positive"]


def block_grid(blocks: NDArray[Any], bits: int, grid: Grid) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scale and whole zero point of each block (last axis), so that real = scale · (level − zero point).

    Asymmetric grids span the block's extremes and 0. Symmetric ones have the zero point 2 ** (bits − 1), and the value
    of largest magnitude on level 0, so that scales can be negative (as in ONNX Runtime's own rounding). Positive ones
    have it on level 1 or the last, for runtimes that want positive scales.
    """
    top = 2**bits - 1
    low = np.minimum(blocks.min(-1, keepdims=True), 0)
    high = np.maximum(blocks.max(-1, keepdims=True), 0)
    if grid == "positive":
        middle = 2 ** (bits - 1)
        scale = np.maximum(np.maximum(-low, high), 1e-8) / (middle - 1)
        return scale, np.full_like(scale, middle)
    if grid == "symmetric":
        middle = 2 ** (bits - 1)
        extreme = np.where(-low > high, low, high)
        return np.where(np.abs(extreme) < 1e-8, 1e-8, -extreme / middle), np.full_like(extreme, middle)
    scale = np.maximum(high - low, 1e-8) / top
    return scale, np.clip(np.rint(-low / scale), 0, top)


def rtn_blocks(
    weight: NDArray[Any], bits: int, block_size: int, grid: Grid
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """Levels (N, K padded), scales and zero points (N, blocks) of a weight (N, K), rounded to nearest."""
    blocks = pad_inputs(weight, block_size).reshape(len(weight), -1, block_size)
    scale, zero = block_grid(blocks, bits, grid)
    levels = np.clip(np.rint(blocks / scale) + zero, 0, 2**bits - 1).astype(np.uint8)
    return levels.reshape(len(weight), -1), scale[..., 0], zero[..., 0]


def rounded(weight: NDArray[Any], bits: int, block_size: int, grid: Grid) -> NDArray[Any]:
    """A weight (N, K) rounded to nearest in blocks along K, in floating point."""
    levels, scale, zero = rtn_blocks(weight, bits, block_size, grid)
    values = (levels.reshape(*scale.shape, block_size).astype(np.float64) - zero[..., None]) * scale[..., None]
    return np.asarray(values.reshape(len(weight), -1)[:, : weight.shape[1]])


def pack_blocks(
    levels: NDArray[np.uint8], scales: NDArray[Any], zero_points: NDArray[Any], bits: int, block_size: int
) -> PackedBlocks:
    """Pack levels (N, K padded), scales and zero points (N, blocks); float zero points stay one float each."""
    outputs = len(levels)
    whole = zero_points.dtype == np.uint8
    return PackedBlocks(
        packed=pack(levels, bits).reshape(outputs, -1, block_size * bits // 8),
        scales=scales.astype(np.float32).reshape(-1),
        zero_points=pack(zero_points, bits).reshape(-1) if whole else zero_points.astype(np.float32).reshape(-1),
    )


def pack(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Several levels to a byte along the last axis, the first in the lowest bits; rows are padded with 0."""
    per_byte = 8 // bits
    padded = np.pad(levels, ((0, 0), (0, -levels.shape[1] % per_byte)))
    grouped = padded.reshape(len(levels), -1, per_byte)
    packed = np.zeros(grouped.shape[:2], dtype=np.uint8)
    for position in range(per_byte):
        packed |= grouped[:, :, position] << (bits * position)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The levels of ``pack``, several to a byte along the last axis."""
    positions = [(packed >> (bits * position)) & (2**bits - 1) for position in range(8 // bits)]
    return np.stack(positions, axis=-1).reshape(*packed.shape[:-1], -1)
