"""Half precision for what a tower computes in floating point."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from clipq.progress import quiet_logging

# Smallest normal number of half precision: below it, scales would lose digits.
SMALLEST = float(np.finfo(np.float16).smallest_normal)


def as_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float32 turned to float16; inputs and outputs stay as they are.

    ONNX Runtime's converter does it. Scales of Q/DQ pairs are turned too, so the values around them are half as well,
    and their integers stay; ``storable_in_half`` made those scales exact beforehand.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with quiet_logging():
        half = convert_float_to_float16(model, keep_io_types=True)
        # It puts the casts of inputs last, and ONNX wants nodes after what they read.
        OnnxModel.graph_topological_sort(half.graph)
    return half


def storable_in_half(scale: NDArray[Any]) -> NDArray[np.float32]:
    """Positive scales rounded to half precision, and never below its normal numbers."""
    return np.maximum(np.asarray(scale, np.float32), SMALLEST).astype(np.float16).astype(np.float32)
