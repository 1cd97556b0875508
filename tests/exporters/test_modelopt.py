"""NVIDIA ModelOpt's recipes; they run where it is installed (its pins want an environment of its own)."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

import onnx
import pytest
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, export

from clipq.exporters.recipes import parse_recipe

installed = pytest.mark.skipif(find_spec("modelopt") is None, reason="ModelOpt is not installed: the extra modelopt")


def quantize(recipe, folder):
    return export(
        "quantize", str(DEMO_BUNDLE), "--recipe", recipe, "--calibration-set", str(CALIBRATION), "-o", str(folder)
    )


@installed
@pytest.mark.parametrize(
    ("recipe", "types"),
    [
        ("modelopt-int8", {"QuantizeLinear": 16, "DequantizeLinear": 32}),
        ("modelopt-int8:ranges=entropy", {"QuantizeLinear": 16, "DequantizeLinear": 32}),
        ("modelopt-fp8", {"QuantizeLinear": 16, "DequantizeLinear": 32}),
        ("modelopt-int4:algorithm=rtn", {"QuantizeLinear": 0, "DequantizeLinear": 16}),
        ("modelopt-int4", {"QuantizeLinear": 0, "DequantizeLinear": 16}),
        ("modelopt-int4:algorithm=awq-clip", {"QuantizeLinear": 0, "DequantizeLinear": 16}),
    ],
)
def test_it_quantizes_clipqs_own_places(recipe, types, tmp_path):
    done = quantize(recipe, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / parse_recipe(recipe).slug())
    operators = Counter(node.op_type for node in onnx.load(f"{done.stdout.strip()}/image.onnx").graph.node)
    assert {kind: operators[kind] for kind in types} == types


@pytest.mark.skipif(find_spec("modelopt") is not None, reason="ModelOpt is installed here")
def test_without_modelopt(tmp_path):
    assert_refused(quantize("modelopt-int8", tmp_path), "needs NVIDIA ModelOpt", "clip-quant[modelopt]")
    assert not list(tmp_path.iterdir())
    listed = export("list").stdout
    assert "no     modelopt-int8" in listed and "environment of its own" in listed


def test_data_is_asked_for(tmp_path):
    done = export("quantize", str(DEMO_BUNDLE), "--recipe", "modelopt-fp8", "-o", str(tmp_path))
    assert_refused(done, "--calibration-set")


def test_names():
    assert parse_recipe("modelopt-int8").slug() == "modelopt-int8-max"
    assert parse_recipe("modelopt-int4:floats=fp32").slug() == "modelopt-int4-awq-lite-block128-fp32"
    assert parse_recipe("modelopt-fp8").slug() == "modelopt-fp8"
