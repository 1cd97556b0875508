"""Q/DQ insertion on a small residual network whose right answer can be worked out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipq.engines.census import take_census
from clipq.engines.ort import OrtEngine
from clipq.exporters.hints import hints_of
from clipq.exporters.placement import place
from clipq.exporters.qdq import QdqInserter, activation_quantizer, weight_quantizer
from clipq.exporters.quantize import TowerSource, quantize_tower
from clipq.exporters.ranges import collect_ranges
from clipq.exporters.recipes import Int8Static


def network():
    """Stem → ReLU r → (conv → ReLU → conv) + r → conv: r feeds a convolution and a residual add."""
    rng = np.random.default_rng(0)
    values, nodes = [], []

    def conv(number, source, target):
        weight = rng.normal(0, 0.2, (16, 3 if number == 0 else 16, 3, 3)).astype(np.float32)
        values.extend(
            [
                numpy_helper.from_array(weight, f"w{number}"),
                numpy_helper.from_array(rng.normal(0, 0.1, 16).astype(np.float32), f"b{number}"),
            ]
        )
        nodes.append(
            helper.make_node("Conv", [source, f"w{number}", f"b{number}"], [target], name=f"conv{number}", pads=[1] * 4)
        )

    conv(0, "image", "c0")
    nodes.append(helper.make_node("Relu", ["c0"], ["r"], name="relu0"))
    conv(1, "r", "c1")
    nodes.append(helper.make_node("Relu", ["c1"], ["r1"], name="relu1"))
    conv(2, "r1", "c2")
    nodes.append(helper.make_node("Add", ["c2", "r"], ["sum"], name="add"))
    conv(3, "sum", "out")
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 16, 16, 16])], values,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("activations", ["symmetric", "asymmetric"])
def test_residual_network(tmp_path, activations):
    recipe, model = Int8Static("minmax", activations=activations), network()
    images = np.random.default_rng(1).normal(0, 1, (32, 3, 16, 16)).astype(np.float32)
    onnx.save(model, tmp_path / "fp32.onnx")
    inserter = QdqInserter(model, place(model), recipe)
    assert inserter.tensors == ["r", "r1", "c2", "sum", "out"]  # r1, not c1: what the ReLU cuts needs no range
    histograms = collect_ranges(model, inserter.tensors, [{"image": images}])
    inserter.insert({name: histogram.range(recipe) for name, histogram in histograms.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "int8.onnx")
    (add,) = [node for node in model.graph.node if node.op_type == "Add"]
    assert add.input[1] == "r"  # the residual goes on in floating point
    assert sum(node.op_type == "Relu" for node in model.graph.node) == (2 if activations == "symmetric" else 1)
    outputs = []
    for name in ("fp32", "int8"):
        with OrtEngine(tmp_path / f"{name}.onnx") as engine:
            outputs.append(engine.run({"image": images})["out"])
    error = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
    assert 0 < error < 0.05
    census = take_census(tmp_path / "int8.onnx", "image", {"image": images})
    integer = sum(group.count for group in census.groups if group.arithmetic == "integer")
    assert integer == 3, census.groups  # all but the first convolution


@pytest.mark.parametrize("activations", ["symmetric", "asymmetric"])
def test_relus_that_stay_in_floating_point_are_told(tmp_path, activations):
    onnx.save(network(), tmp_path / "image.onnx")
    images = np.random.default_rng(1).normal(0, 1, (4, 3, 16, 16)).astype(np.float32)
    source = TowerSource(tmp_path / "image.onnx", tmp_path, lambda: iter([{"image": images}]))
    recipe = Int8Static("minmax", activations=activations)
    told = {hint.code: hint.numbers for hint in hints_of(quantize_tower(recipe, source), recipe, "image")}
    relus = {"float-relus": {"relus": 1}} if activations == "symmetric" else {}
    assert told == {**relus, "saturating-weights": {"products": 3}}


def test_quantizers_by_hand():
    symmetric = activation_quantizer(-1.0, 2.54, True)
    assert float(symmetric.scale) == pytest.approx(0.02) and symmetric.zero_point.dtype == np.int8
    asymmetric = activation_quantizer(-1.0, 1.55, False)
    assert float(asymmetric.scale) == pytest.approx(0.01) and int(asymmetric.zero_point) == 100
    assert int(activation_quantizer(0.5, 2.0, False).zero_point) == 0  # zero is always representable
    weight = np.array([[1.27, -0.5], [0.0, 0.0]], np.float32)
    assert weight_quantizer(weight, None).scale == pytest.approx(0.01)
    assert weight_quantizer(weight, 1).scale.tolist() == pytest.approx([0.01, 0.5 / 127])
    assert weight_quantizer(weight, 0).scale[1] > 0


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-9])
def test_the_bias_of_a_pruned_channel_stays(tmp_path, granularity, size):
    """Its weights are next to nothing, and so would be the scale of its bias: 32 bits cut it off."""
    recipe, model = Int8Static("minmax", granularity=granularity), network()
    stored = {value.name: value for value in model.graph.initializer}
    weight = numpy_helper.to_array(stored["w3"]).copy()
    weight[5 if granularity == "per-channel" else slice(None)] *= size
    stored["w3"].CopyFrom(numpy_helper.from_array(weight, "w3"))
    stored["b3"].CopyFrom(numpy_helper.from_array(np.linspace(-3, -1, 16, dtype=np.float32), "b3"))
    images = np.random.default_rng(1).normal(0, 1, (8, 3, 16, 16)).astype(np.float32)
    onnx.save(model, tmp_path / "image.onnx")
    source = TowerSource(tmp_path / "image.onnx", tmp_path, lambda: iter([{"image": images}]))
    onnx.save(quantize_tower(recipe, source), tmp_path / "int8.onnx")
    outputs = []
    for name in ("image", "int8"):
        with OrtEngine(tmp_path / f"{name}.onnx", simulated=True) as engine:
            outputs.append(engine.run({"image": images})["out"][:, 5])
    assert np.abs(outputs[0] - outputs[1]).max() < 0.05 * np.abs(outputs[0]).max()


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("activations", ["symmetric", "asymmetric"])
def test_convolutions_of_7_bits_with_their_biases(tmp_path, activations, granularity):
    """Weights, biases and zero points as they are read back, against the network they were made of."""
    model = network()
    onnx.save(model, tmp_path / "image.onnx")
    images = np.random.default_rng(1).normal(0, 1, (4, 3, 16, 16)).astype(np.float32)
    recipe = Int8Static("minmax", activations=activations, granularity=granularity, weights="7bit")
    source = TowerSource(tmp_path / "image.onnx", tmp_path, lambda: iter([{"image": images}]))
    made = quantize_tower(recipe, source)
    floats = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    stored = {value.name: numpy_helper.to_array(value) for value in made.graph.initializer}
    maker = {node.output[0]: node for node in made.graph.node}
    for number in (1, 2, 3):
        (node,) = [one for one in made.graph.node if one.name == f"conv{number}"]
        read = [[stored[name] for name in maker[given].input[1:]] for given in node.input]
        (scale_in, zero_in), (scale, zero), (scale_bias, zero_bias) = read
        weight, bias = (stored[maker[given].input[0]] for given in node.input[1:])
        assert weight.dtype == np.int8 and np.abs(weight.astype(int)).max() == 63
        assert zero_in.dtype == (np.int8 if activations == "symmetric" else np.uint8)
        assert not zero.any() and not zero_bias.any() and zero.dtype == np.int8
        assert scale.shape == ((16,) if granularity == "per-channel" else ())
        broadcast = scale.reshape(-1, 1, 1, 1)
        assert (np.abs(weight * broadcast - floats[f"w{number}"]) <= broadcast / 2 * 1.0001).all()
        assert np.allclose(scale_bias, scale_in * scale, rtol=1e-6)
        assert (np.abs(bias * scale_bias - floats[f"b{number}"]) <= scale_bias / 2 * 1.0001).all()
