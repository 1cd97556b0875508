"""GPTQ (Frantar et al., 2023) in numpy: each column's rounding error is made up for by the columns that follow.

ONNX Runtime's runs the whole calibration set once per tensor, fits a second grid to the weights it has just rounded,
and writes floating point at 2 and 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipq.exporters.blocks import Grid, PackedBlocks, block_grid, pack_blocks, pad_inputs

DAMPING = 0.01
_STRIDE = 128


def gptq_blocks(
    weight: NDArray[np.float32], moments: NDArray[Any], *, bits: int, block_size: int, grid: Grid
) -> PackedBlocks:
    """Quantize a weight (N outputs, K inputs) given the second moments (K × K) of the inputs it meets.

    A block's grid is set when its first column is reached, from the weights as corrected by then.
    """
    outputs, inputs = weight.shape
    columns = pad_inputs(weight.astype(np.float64), block_size)
    upper = _inverse_factor(moments, columns.shape[1])
    columns[:, :inputs][:, np.diag(moments) == 0] = 0
    levels = np.zeros(columns.shape, dtype=np.uint8)
    grids = np.zeros((2, outputs, columns.shape[1] // block_size))
    top = 2**bits - 1
    stride = max(_STRIDE, block_size)
    for start in range(0, columns.shape[1], stride):
        stop = min(start + stride, columns.shape[1])
        errors = np.zeros((outputs, stop - start))
        for j in range(start, stop):
            if j % block_size == 0:
                scale, zero = block_grid(columns[:, j : j + block_size], bits, grid)
                grids[:, :, j // block_size] = scale[:, 0], zero[:, 0]
            scale, zero = grids[:, :, j // block_size]
            level = np.clip(np.rint(columns[:, j] / scale) + zero, 0, top)
            levels[:, j] = level
            error = (columns[:, j] - (level - zero) * scale) / upper[j, j]
            columns[:, j:stop] -= np.outer(error, upper[j, j:stop])
            errors[:, j - start] = error
        columns[:, stop:] -= errors @ upper[start:stop, stop:]
    return pack_blocks(levels, grids[0], grids[1].astype(np.uint8), bits, block_size)


def _inverse_factor(moments: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Upper Cholesky factor of the inverse of the damped moments; inputs that are always 0 stand alone."""
    damped = np.eye(size)
    inputs = len(moments)
    damped[:inputs, :inputs] = moments
    dead = np.diag(damped) == 0
    damped[dead, dead] = 1
    damped += DAMPING * np.diag(moments).mean() * np.eye(size)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
