"""``weights=7bit``: what is written into the files, read back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import CALIBRATION, DEMO_BUNDLE

from clipq.bundle import open_bundle
from clipq.exporters.api import quantized
from clipq.exporters.calibration_set import open_calibration_set
from clipq.exporters.quantize import TowerSource, prepared, quantize_tower
from clipq.exporters.recipes import parse_recipe
from clipq.progress import Progress

# Two products with 8-bit activations in a signed sum of 16 bits.
MOST = {"int8-static": 63, "int8-dynamic": 64}


def assert_fit(model, name):
    """Every integer weight of a tower fits, and the largest of them is used; returns how many there are."""
    stored = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    # Of a DequantizeLinear the integers, of MatMulInteger and ONNX Runtime's own operators the second factor.
    read = [node.input[0 if node.op_type == "DequantizeLinear" else 1] for node in model.graph.node
            if node.op_type in ("DequantizeLinear", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")]  # fmt: skip
    weights = [stored[one] for one in read if one in stored and stored[one].dtype == np.int8 and stored[one].ndim > 1]
    assert 2 * 255 * MOST[name] <= 2**15 - 1
    for weight in weights:
        assert np.abs(weight.astype(int)).max() == MOST[name]
    return len(weights)


@pytest.mark.parametrize(
    "options",
    [
        "", "granularity=per-tensor", "activations=symmetric", "activations=symmetric,ranges=mse", "ranges=entropy",
        "smoothing=0.5", "floats=fp16", "form=matmulinteger", "attention=true",
    ],
)  # fmt: skip
def test_every_weight_of_the_demos_towers(tmp_path, options):
    source = open_bundle(DEMO_BUNDLE)
    recipe = parse_recipe(f"int8-static:weights=7bit,{options}")
    made = quantized(source, recipe, open_calibration_set(CALIBRATION, source), "both", tmp_path, Progress())
    assert made.manifest.recipe.options["weights"] == "7bit" and made.manifest.recipe.scheme.widths == "W7A8"
    assert [assert_fit(onnx.load(made.tower_path(tower)), recipe.name) for tower in ("image", "text")] == [16, 8]


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_dynamic(tmp_path, granularity):
    """ONNX Runtime's own option for it; its scales follow the levels."""
    path = DEMO_BUNDLE / "text.onnx"
    recipe = parse_recipe(f"int8-dynamic:weights=7bit,granularity={granularity}")
    made = quantize_tower(recipe, TowerSource(path, tmp_path))
    assert assert_fit(made, recipe.name) == 9
    floats = {value.name: numpy_helper.to_array(value) for value in prepared(path, tmp_path).graph.initializer}
    stored = {value.name: numpy_helper.to_array(value) for value in made.graph.initializer}
    for name, weight in stored.items():
        stem = name.removesuffix("_quantized")
        if stem != name and weight.ndim == 2:
            scale = stored[f"{stem}_scale"]
            assert not stored[f"{stem}_zero_point"].any()
            assert (np.abs(weight * scale - floats[stem]) <= scale / 2 * 1.0001).all()
