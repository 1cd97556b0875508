"""ONNX towers without their weights: small enough to carry to a machine with a GPU, filled with random ones there.

Speed and memory do not depend on the values; what a quantized tower computes from them means nothing.
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
TOWERS = ("image.onnx", "text.onnx")


def strip(bundle: Path, target: Path) -> None:
    """Copy a bundle without the values of its large initializers; what is left says their type and shape."""
    shutil.copytree(bundle, target)
    for name in TOWERS:
        model = onnx.load(target / name)
        for value in model.graph.initializer:
            if prod(value.dims) > LARGEST_KEPT and value.data_type in BYTES:
                value.ClearField("float_data")
                value.ClearField("int32_data")
                value.raw_data = b""
        onnx.save(model, target / name)


def fill(bundle: Path) -> None:
    """Give a stripped bundle random weights, in place, and write their digests into its manifest."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    rng = np.random.default_rng(0)
    for tower in ("image", "text"):
        path = bundle / f"{tower}.onnx"
        model = onnx.load(path)
        for value in model.graph.initializer:
            size = prod(value.dims)
            if value.raw_data or size <= LARGEST_KEPT or value.data_type not in BYTES:
                continue
            floats = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
            if value.data_type in floats:
                # Scales of blocks must be positive; as weights, small positive numbers do as well.
                values = rng.uniform(0.001, 0.02, size).astype(floats[value.data_type])
                value.raw_data = values.tobytes()
            else:
                # Bytes that are numbers in every type: FP8's NaN is 0x7f.
                value.raw_data = rng.integers(0, 120, int(size * BYTES[value.data_type]), dtype=np.uint8).tobytes()
        onnx.save(model, path)
        manifest[tower] |= stored_file(bundle, path.name)
    (bundle / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
