"""Files written for TensorRT 8.6: the same function in older operators, or a refusal."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from driver import make_trt
from onnx import TensorProto, helper, numpy_helper
from support import DEMO_BUNDLE

from clipq.bundle import open_bundle
from clipq.engines.ort import OrtEngine
from clipq.engines.tensorrt_library import Log, TensorRtLibrary
from clipq.errors import BuildError
from clipq.evaluate.bench.bench import plausible_feed
from clipq.exporters import parser_check
from clipq.exporters.opset import as_opset_17, readable


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-static-minmax"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_function_is_the_same(bundles, recipe, tower, tmp_path):
    path = bundles / recipe / f"{tower}.onnx"
    model = as_opset_17(onnx.load(path))
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 17
    assert not any(node.op_type == "Gelu" for node in model.graph.node)
    # The parser takes a part of a shape for the whole of it (seen on an H200 with 8.6.0).
    assert not any(node.op_type == "Shape" and node.attribute for node in model.graph.node)
    # "Assertion params.weights.type() != DataType::kINT8 failed", seen there too.
    assert not any(
        value.data_type == TensorProto.INT8 and value.dims
        for value in model.graph.initializer
        if "zero" not in value.name
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "written.onnx")
    feed = plausible_feed(open_bundle(bundles / recipe), tower, 4)
    # Without optimizations: fused kernels of quantized graphs round some activations to the neighbouring integer.
    with OrtEngine(path, simulated=True) as before, OrtEngine(tmp_path / "written.onnx", simulated=True) as after:
        (expected,), (found,) = before.run(feed).values(), after.run(feed).values()
    assert np.abs(expected - found).max() < (5e-3 if recipe == "fp16" else 1e-4)


@pytest.mark.parametrize(("shape", "axis"), [((3, 5), 1), ((3, 5), 0), ((3, 5), -1), ((4, 3, 2, 2), 0), ((3, 5), None)])
def test_weights_as_floats_become_the_same_integers(shape, axis):
    """Of every value INT8 has, with scales along any axis; an integer that something else reads stays."""
    rng = np.random.default_rng(0)
    integers = rng.integers(-128, 128, shape).astype(np.int8)
    scales = rng.random(() if axis is None else (shape[axis],)).astype(np.float32) * 0.01 + 1e-6
    zeros = np.zeros(scales.shape, np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "DQ", **({} if axis is None else {"axis": axis})),
        helper.make_node("Add", ["x", "d"], ["y"]),
        helper.make_node("Cast", ["w"], ["integers"], to=TensorProto.FLOAT),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in (("w", integers), ("s", scales), ("z", zeros))]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y", "integers")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    model = as_opset_17(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    (quantize,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    model.graph.output.append(helper.make_tensor_value_info(quantize.output[0], TensorProto.INT8, shape))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y, same, again = session.run(None, {"x": np.zeros(shape, np.float32)})
    np.testing.assert_array_equal(again, integers)
    np.testing.assert_array_equal(same, integers)
    expected = integers * (
        scales
        if axis is None
        else np.moveaxis(np.broadcast_to(scales, np.moveaxis(integers, axis, -1).shape), -1, axis)
    )
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_only_an_old_parser_gets_another_file(tmp_path):
    for narrow in (False, True):
        library = TensorRtLibrary("tensorrt", make_trt(None, version="8.6.0", narrow=narrow), Log())
        with readable(DEMO_BUNDLE / "image.onnx", library) as path:
            assert (path == DEMO_BUNDLE / "image.onnx") is not narrow
            assert onnx.load(path).opset_import[0].version == (17 if narrow else 21)


def test_what_came_later_is_refused(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n"])
    scale = helper.make_tensor("s", TensorProto.FLOAT16, [], [1.0])
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [value], [output], [scale, zero]), opset_imports=[helper.make_opsetid("", 20)]
    )
    with pytest.raises(BuildError, match=r"opset 17, which is what TensorRT 8.6 reads .*floats=fp32"):
        as_opset_17(model)
    onnx.save(model, tmp_path / "m.onnx")
    library = SimpleNamespace(name="tensorrt 8.6.0", features=SimpleNamespace(recent_opsets=False))
    with (
        pytest.raises(BuildError, match=r"^tensorrt 8\.6\.0, m\.onnx: not a graph"),
        readable(tmp_path / "m.onnx", library),
    ):
        pass


def test_the_way_out_fits_the_reason(tmp_path, bundles):
    """4 bits have no older form; another export would not give them one."""
    library = SimpleNamespace(name="tensorrt 8.6.0", features=SimpleNamespace(recent_opsets=False))
    path = bundles / "int4-weight-only-rtn-qdq-symmetric" / "image.onnx"
    with (
        pytest.raises(BuildError, match="no such weights: take fp16 or int8-static:floats=fp32"),
        readable(path, library),
    ):
        pass


def test_blocks_of_int8_are_refused(tmp_path):
    """A scale per block came with opset 21."""
    constants = [
        helper.make_tensor("w", TensorProto.INT8, [4, 2], [1] * 8), helper.make_tensor("s", TensorProto.FLOAT, [2, 2], [1.0] * 4)
    ]  # fmt: skip
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=2)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 2]) for name in ("x", "y")]
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["x", "d"], ["y"])], "g", values[:1], values[1:], constants
    )
    with pytest.raises(BuildError, match=r"opset 17, which is what TensorRT 8.6 reads"):
        as_opset_17(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_check_judges_the_file_that_is_read(bundles, monkeypatch):
    """The parser's node numbers and operators are those of the rewritten file; what cannot be written is a verdict."""
    seen = []

    class Parser:
        num_errors = 0

        def __init__(self, network, logger):
            pass

        def parse_from_file(self, path):
            seen.append({node.op_type for node in onnx.load(path).graph.node})

        def supports_operator(self, op):
            return op != "Erf"

    trt = SimpleNamespace(Builder=lambda logger: None, OnnxParser=Parser)
    library = SimpleNamespace(
        name="tensorrt 8.6.0", trt=trt, features=SimpleNamespace(recent_opsets=False), logger=None, log=Log()
    )
    monkeypatch.setattr(parser_check, "_parser", lambda runtime: (library, library.name))
    monkeypatch.setattr(parser_check, "create_network", lambda library, builder: (None, False))
    verdict = parser_check.check_bundle(open_bundle(bundles / "fp32"), "tensorrt")
    assert "Erf" in seen[0] and "Gelu" not in seen[0]
    assert {row.op for tower in verdict.towers for row in tower.refused} == {"Erf"}
    verdict = parser_check.check_bundle(open_bundle(bundles / "int4-weight-only-rtn-qdq-symmetric"), "tensorrt")
    assert not verdict.accepted and "no such weights" in verdict.towers[0].refused[0].reason


def test_gelu_by_tanh_is_refused():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    node = helper.make_node("Gelu", ["x"], ["y"], name="g", approximate="tanh")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(BuildError, match="by tanh"):
        as_opset_17(model)
