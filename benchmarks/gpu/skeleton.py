"""ONNX towers without their weights: small enough to carry to a machine with a GPU, filled with random ones there.

What a tower computes from them means nothing; its kernels and their memory are those of the real weights.
"""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import numpy as np
import onnx

from clipq.bundle import MANIFEST, stored_file

LARGEST_KEPT = 4096
BYTES = {
    onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.INT8: 1, onnx.TensorProto.UINT8: 1,
    onnx.TensorProto.INT4: 0.5, onnx.TensorProto.UINT4: 0.5, onnx.TensorProto.FLOAT8E4M3FN: 1,
}  # fmt: skip
FLOATS = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
TOWERS = ("image", "text")
# Where an operator takes its scales.
SCALES = {"MatMulNBits": 2, "QuantizeLinear": 1, "DequantizeLinear": 1}


def strip(bundle: Path, target: Path) -> None:
    """Copy a bundle without the values of its large initializers; what is left says their type and shape."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / MANIFEST).read_text())
    for tower in TOWERS:
        path = target / f"{tower}.onnx"
        model = onnx.load(path)
        for value in model.graph.initializer:
            if prod(value.dims) > LARGEST_KEPT and value.data_type in BYTES:
                value.ClearField("float_data")
                value.ClearField("int32_data")
                value.raw_data = b""
        onnx.save(model, path)
        manifest[tower] |= stored_file(target, path.name)
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def fill(bundle: Path, tower: str) -> None:
    """Give a stripped tower random weights, in place, and write its digest into the manifest.

    Weights are normal (σ 0.02) and scales positive: a GPU draws less power, and may run faster, on tamer numbers.
    """
    manifest = json.loads((bundle / MANIFEST).read_text())
    rng = np.random.default_rng(0)
    path = bundle / f"{tower}.onnx"
    model = onnx.load(path)
    scales = {node.input[SCALES[node.op_type]] for node in model.graph.node if node.op_type in SCALES}
    for value in model.graph.initializer:
        size = prod(value.dims)
        if value.raw_data or size <= LARGEST_KEPT or value.data_type not in BYTES:
            continue
        if value.data_type in FLOATS:
            numbers = rng.random(size, np.float32) if value.name in scales else rng.standard_normal(size, np.float32)
            value.raw_data = (0.02 * numbers + 0.001 * (value.name in scales)).astype(FLOATS[value.data_type]).tobytes()
        else:
            # Bytes that are numbers in every type: FP8's NaN is 0x7f.
            value.raw_data = rng.integers(0, 120, int(size * BYTES[value.data_type]), dtype=np.uint8).tobytes()
    onnx.save(model, path)
    manifest[tower] |= stored_file(bundle, path.name)
    (bundle / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
