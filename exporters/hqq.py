"""Half-quadratic quantization (Badri and Shaji, 2023) in numpy.

ONNX Runtime's quantizer has the same algorithm but imports torch for it, and quantizing must work without torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipq.exporters.blocks import PackedBlocks, pack_blocks, pad_inputs

LP_NORM = 0.7
BETA = 10.0
KAPPA = 1.01
ITERATIONS = 20


def hqq_blocks(weight: NDArray[np.float32], bits: int, block_size: int) -> PackedBlocks:
    """Quantize a weight (N outputs, K inputs) in blocks along K; K is padded with zeros to whole blocks.

    Alternates between the levels, a sparse error (the proximal operator of the Lp norm, p = 0.7) and the zero points,
    until the mean absolute error stops falling; scales stay those of the blocks' extremes.
    """
    outputs = len(weight)
    padded = pad_inputs(weight, block_size).astype(np.float32)
    blocks = padded.reshape(-1, block_size)
    top = 2**bits - 1
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    span = np.where(high > low, high - low, np.float32(top))
    inverse_scale = np.minimum(top / span, 2e4)
    zero = np.rint(-low * inverse_scale)
    best_error, best_zero, beta = np.inf, zero, BETA
    for _ in range(ITERATIONS):
        levels = np.clip(np.rint(blocks * inverse_scale + zero), 0, top)
        residual = blocks - (levels - zero) / inverse_scale
        error = float(np.abs(residual).mean())
        if error >= best_error:
            break
        best_error, best_zero = error, zero
        magnitude = np.abs(residual)
        sparse = np.sign(residual) * np.maximum(magnitude - (magnitude + 1e-8) ** (LP_NORM - 1) / beta, 0)
        zero = (levels - (blocks - sparse) * inverse_scale).mean(1, keepdims=True)
        beta *= KAPPA
    levels = np.clip(np.rint(blocks * inverse_scale + best_zero), 0, top).astype(np.uint8)
    columns = padded.shape[1] // block_size
    zeros, scales = best_zero.reshape(outputs, columns), (1 / inverse_scale).reshape(outputs, columns)
    return pack_blocks(levels.reshape(outputs, -1), scales, zeros.astype(np.float32), bits, block_size)
