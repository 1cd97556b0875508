"""What is read off a graph is what the recipe says that made it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import RECIPES

from clipq.bundle import open_bundle
from clipq.exporters.adopt.precision import read_scheme


@pytest.mark.parametrize("recipe", ["fp32", *RECIPES])
def test_clipqs_own_recipes(recipe, bundles):
    bundle = open_bundle(bundles / recipe)
    found, towers, said = read_scheme({"image": bundle.tower_path("image"), "text": bundle.tower_path("text")})
    made = bundle.manifest.recipe
    assert (found.weight_bits, found.activation_bits, found.arithmetic) == (
        made.scheme.weight_bits, made.scheme.activation_bits, made.scheme.arithmetic,
    )  # fmt: skip
    assert found.is_fp32 == (recipe == "fp32") and set(towers) == set(made.towers)
    assert said["image_products"].split()[0].isdecimal()


def graph(nodes, **constants):
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    gives = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", given, gives, stored))


WEIGHTS = np.ones((4, 8), np.float32)
LEVELS = {"scale": np.float32(0.1), "zero": np.int8(0)}
ROUNDED = [
    helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
    helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
]
CASES = {
    # As ModelOpt leaves weights: floats that are rounded when the file is loaded.
    "W8A8 static": graph(
        [*ROUNDED, helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["wq"]),
         helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["wd"]), helper.make_node("MatMul", ["xd", "wd"], ["y"])],
        w=WEIGHTS, **LEVELS),
    "W8A32 weight-only": graph(
        [helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wd"]),
         helper.make_node("Transpose", ["wd"], ["wt"]), helper.make_node("Gemm", ["x", "wt"], ["y"])],
        w=np.ones((8, 4), np.int8), **LEVELS),
    "W8A8 dynamic": graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
         helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["s"]), helper.make_node("Cast", ["s"], ["y"], to=1)],
        w=np.ones((4, 8), np.int8)),
    "W16A16 fp16": graph(
        [helper.make_node("Cast", ["x"], ["h"], to=10), helper.make_node("MatMul", ["h", "w"], ["s"]),
         helper.make_node("Cast", ["s"], ["y"], to=1)], w=WEIGHTS.astype(np.float16)),
    "W32A32 fp32": graph([helper.make_node("MatMul", ["x", "w"], ["y"])], w=WEIGHTS),
    "W4A32 MatMulNBits": graph(
        [helper.make_node("MatMulNBits", ["x", "w", "scales"], ["y"], domain="com.microsoft", K=4, N=8, bits=4, block_size=16)],
        w=np.ones((8, 1, 8), np.uint8), scales=np.ones(8, np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("said", CASES)
def test_forms_of_others(said, tmp_path):
    onnx.save(CASES[said], str(tmp_path / "one.onnx"))
    scheme, towers, words = read_scheme({"image": tmp_path / "one.onnx"})
    assert words == {"image_products": f"100 % {said}"} and towers == ("image",)
    assert f"{scheme.widths} {scheme.method}" == said


def test_a_mixture_is_said_and_counts_as_what_is_quantized(tmp_path):
    mixed = graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), *ROUNDED,
         helper.make_node("DequantizeLinear", ["v", "scale", "zero"], ["vd"]), helper.make_node("MatMul", ["xd", "vd"], ["y"])],
        w=WEIGHTS, v=np.ones((4, 8), np.int8), **LEVELS)  # fmt: skip
    onnx.save(mixed, str(tmp_path / "one.onnx"))
    scheme, _, words = read_scheme({"image": tmp_path / "one.onnx"})
    assert scheme.widths == "W8A8" and sorted(words["image_products"].split(", ")) == [
        "50 % W32A32 fp32",
        "50 % W8A8 static",
    ]
