"""Towers cut at their integer products: with the products of this CPU they have the bits of ONNX Runtime."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipq.bundle import open_bundle
from clipq.cpu import cpu_level
from clipq.demo import world
from clipq.engines.integer_products import IntegerProducts
from clipq.engines.ort import OrtEngine
from clipq.engines.predicted import PredictedEngine
from clipq.engines.saturation import take_saturation
from clipq.errors import EngineError
from clipq.preprocess import normalize
from clipq.tokenizer import TextTokenizer

pytestmark = pytest.mark.skipif(cpu_level().machine != "x86_64", reason="what runs on x86 is seen on x86 alone")
EMULATOR = shutil.which("qemu-x86_64")
NO_EMULATOR = "needs qemu-x86_64 (Debian: qemu-user), which emulates a CPU without VNNI"

RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = numpy.load(sys.argv[2])
name = session.get_inputs()[0].name
numpy.save(sys.argv[3], numpy.concatenate([session.run(None, {name: x[i : i + 32]})[0] for i in range(0, len(x), 32)]))
"""


def here(product, weights, rows):
    """Products as this CPU has them."""
    return weights.saturated(rows) if cpu_level().saturates else weights.exact(rows)


def emulated(path, array, folder):
    np.save(folder / "in.npy", array)
    arguments = [sys.executable, "-c", RUN, str(path), str(folder / "in.npy"), str(folder / "out.npy")]
    done = subprocess.run([EMULATOR, "-cpu", "Haswell", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out.npy")


def outputs(engine, array):
    name = engine.inputs[0].name
    parts = [next(iter(engine.run({name: array[i : i + 32]}).values())) for i in range(0, len(array), 32)]
    return np.concatenate(parts)


def cosines(one, other):
    one, other = (x.reshape(len(x), -1).astype(np.float64) for x in (one, other))
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def store(path, nodes, constants, shape, output="y"):
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def convolution(path, weights, size, *, bias=True, zero=3, **attributes):
    """Quantize, convolve, dequantize; bytes large and weights larger, so that many sums saturate."""
    outputs = len(weights)
    constants = {
        "s": np.float32(1 / 255), "z": np.uint8(zero), "w": weights,
        "ws": np.linspace(0.002, 0.004, outputs).astype(np.float32), "wz": np.zeros(outputs, np.int8),
        "ys": np.float32(0.0017 * weights[0].size), "yz": np.uint8(120), "b": np.arange(-outputs, outputs, 2, dtype=np.int32) * 1000,
    }  # fmt: skip
    inputs = ["q", "s", "z", "w", "ws", "wz", "ys", "yz", *(["b"] if bias else [])]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("QLinearConv", inputs, ["c"], name="conv", **attributes),
        helper.make_node("DequantizeLinear", ["c", "ys", "yz"], ["y"], name="d"),
    ]
    channels = weights.shape[1] * attributes.get("group", 1)
    return store(path, nodes, constants, (channels, *size))


def large(*shape):
    """Signed weights of one sign for each output, so that pairs of them leave 16 bits."""
    rng = np.random.default_rng(sum(shape))
    sign = np.where(np.arange(shape[0]) % 2, 1, -1).reshape(-1, *[1] * (len(shape) - 1))
    return (sign * rng.integers(30, 128, shape)).astype(np.int8)


CONVOLUTIONS = {
    "pointwise": (large(32, 16, 1, 1), (6, 6), {}),
    "window of an odd number of channels": (large(16, 3, 3, 3), (8, 8), {"pads": [1, 1, 1, 1]}),
    "window of channels by four": (large(16, 8, 3, 3), (8, 8), {"pads": [1, 1, 1, 1]}),
    "strides and lopsided pads": (large(24, 8, 3, 3), (9, 7), {"pads": [0, 1, 1, 2], "strides": [2, 1]}),
    "dilations": (large(16, 8, 3, 3), (9, 9), {"dilations": [2, 2]}),
    "groups": (large(16, 5, 3, 3), (6, 6), {"group": 4, "pads": [1, 1, 1, 1]}),
    "groups of one channel and two outputs": (large(16, 1, 3, 3), (6, 6), {"group": 8}),
    "along a line": (large(16, 6, 5), (12,), {"pads": [2, 2]}),
    "without a bias": (large(16, 4, 2, 2), (5, 5), {"bias": False}),
    "a kernel that is not square": (large(17, 4, 1, 3), (5, 6), {"pads": [0, 1, 0, 1]}),
}


def linear(path, op):
    inner, width = 37, 24
    weights = np.ascontiguousarray(large(width, inner).T)
    constants = {
        "s": np.float32(1 / 255), "z": np.uint8(9), "w": weights, "ws": np.float32(0.003), "wz": np.int8(0),
        "wss": np.linspace(0.001, 0.003, width).astype(np.float32), "wzs": np.zeros(width, np.int8),
        "ys": np.float32(0.0017 * inner), "yz": np.uint8(100), "b": np.linspace(-1, 1, width).astype(np.float32),
        "ib": np.arange(width, dtype=np.int32) * 500, "off": np.int8(7),
    }  # fmt: skip
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q")
    dequantize = helper.make_node("DequantizeLinear", ["c", "ys", "yz"], ["y"], name="d")
    microsoft = {"domain": "com.microsoft"}
    nodes = {
        "QLinearMatMul": [quantize, helper.make_node(
            "QLinearMatMul", ["q", "s", "z", "w", "wss", "wzs", "ys", "yz"], ["c"], name="p"), dequantize],
        "MatMulInteger": [quantize, helper.make_node("MatMulInteger", ["q", "w", "z", "off"], ["c"], name="p"),
            helper.make_node("Cast", ["c"], ["y"], name="cast", to=TensorProto.FLOAT)],
        "MatMulIntegerToFloat": [quantize, helper.make_node(
            "MatMulIntegerToFloat", ["q", "w", "s", "wss", "z", "wzs", "b"], ["y"], name="p", **microsoft)],
        "DynamicQuantizeMatMul": [helper.make_node(
            "DynamicQuantizeMatMul", ["x", "w", "wss", "wzs", "b"], ["y"], name="p", **microsoft)],
        "QGemm": [quantize, helper.make_node(
            "QGemm", ["q", "s", "z", "w", "wss", "wzs", "ib", "ys", "yz"], ["c"], name="p", alpha=1.0, **microsoft),
            dequantize],
    }[op]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    return store(path, nodes, {name: value for name, value in constants.items() if name in used}, (inner,))


LINEARS = ("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")


def made(name, folder):
    """A tower by name, and inputs that saturate many of its sums."""
    path = folder / "tower.onnx"
    rng = np.random.default_rng(0)
    if name in LINEARS:
        return linear(path, name), rng.uniform(0.3, 1, (40, 37)).astype(np.float32)
    weights, size, attributes = CONVOLUTIONS[name]
    path = convolution(path, weights, size, **attributes)
    channels = weights.shape[1] * attributes.get("group", 1)
    return path, rng.uniform(0.3, 1, (3, channels, *size)).astype(np.float32)


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *LINEARS])
def test_products_of_ours_give_the_engines_bits(name, tmp_path):
    path, array = made(name, tmp_path)
    tower = IntegerProducts(path)
    assert len(tower.products) == 1
    found = tower.run({"x": array}, here)["y"]
    with OrtEngine(path, threads=1) as engine:
        expected = engine.run({"x": array})["y"]
    assert (found == expected).all() and expected.std() > 0
    assert take_saturation(path, [{"x": array}]).share > 0.15


@pytest.mark.skipif(EMULATOR is None, reason=NO_EMULATOR)
@pytest.mark.parametrize("name", [*CONVOLUTIONS, *LINEARS])
def test_predictions_of_products_that_saturate_have_the_bits_of_an_emulated_cpu(name, tmp_path):
    path, array = made(name, tmp_path)
    with PredictedEngine(path) as engine:
        found = outputs(engine, array)
    assert (found == emulated(path, array, tmp_path)).all()
    if not cpu_level().saturates:
        with OrtEngine(path, threads=1) as engine:
            assert (found != outputs(engine, array)).mean() > 0.3


@pytest.mark.skipif(EMULATOR is None, reason=NO_EMULATOR)
@pytest.mark.parametrize("recipe", ["int8-static-minmax", "int8-dynamic"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_predictions_of_the_demo_are_what_an_emulated_cpu_gives(recipe, tower, bundles, tmp_path):
    bundle = open_bundle(bundles / recipe)
    if tower == "image":
        pixels = np.stack([world.sample("test", index)[1] for index in range(64)])
        array = normalize(pixels, bundle.manifest.preprocess)
    else:
        array = TextTokenizer(bundle)([f"a {word} photo, {index}" for index, word in enumerate(world.TEXTURES * 16)])
    path = bundle.tower_path(tower)
    with PredictedEngine(path) as engine:
        found = outputs(engine, array)
    close = cosines(found, emulated(path, array, tmp_path))
    # Floating point on another CPU ends in other last digits, and now and then one of them turns a rounding.
    assert close.min() >= 1 - 1e-3 and (close > 1 - 1e-6).mean() >= 0.9
    if not cpu_level().saturates:
        with OrtEngine(path, threads=1) as engine:
            assert cosines(found, outputs(engine, array)).min() < 1 - 1e-3


def test_depthwise_convolutions_are_exact_and_left_alone(tmp_path):
    path = convolution(tmp_path / "tower.onnx", large(16, 1, 3, 3), (6, 6), group=16)
    assert IntegerProducts(path).products == ()


def test_unsigned_weights_are_exact_and_left_alone(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("MatMulInteger", ["q", "w", "z", "z"], ["c"], name="p"),
        helper.make_node("Cast", ["c"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    constants = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.full((8, 3), 200, np.uint8)}
    path = store(tmp_path / "tower.onnx", nodes, constants, (8,))
    assert IntegerProducts(path).products == ()
    assert take_saturation(path, [{"x": np.ones((1, 8), np.float32)}]).verdict == "exact everywhere"


def test_products_of_two_signed_activations_are_refused(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("QuantizeLinear", ["x", "s", "n"], ["r"], name="r"),
        helper.make_node("Transpose", ["r"], ["t"], name="t"),
        helper.make_node("MatMulInteger", ["q", "t", "z", "n"], ["c"], name="p"),
        helper.make_node("Cast", ["c"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    path = store(tmp_path / "tower.onnx", nodes, {"s": np.float32(0.1), "z": np.uint8(0), "n": np.int8(0)}, (8,))
    with pytest.raises(EngineError, match="not looked into"):
        IntegerProducts(path)
    found = take_saturation(path, [])
    assert found.verdict == "unknown" and "not looked into" in found.unknown


def test_what_is_counted(tmp_path):
    """Two outputs, four inputs: of the first output's two sums one saturates where the bytes are largest."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["c"], name="product"),
        helper.make_node("Cast", ["c"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    weights = np.array([[100, 1], [100, 1], [60, -128], [60, 127]], np.int8)
    path = store(tmp_path / "tower.onnx", nodes, {"s": np.float32(1), "z": np.uint8(0), "w": weights}, (4,))
    bright, dark = np.full((2, 4), 255, np.float32), np.full((3, 4), 100, np.float32)
    found = take_saturation(path, [{"x": bright}, {"x": dark}])
    (product,) = found.products
    assert (product.name, product.op, product.sums, product.saturated) == ("product", "MatMulInteger", 5 * 4, 2)
    assert found.samples == 5 and found.share == 2 / 20 and found.verdict == "differs without VNNI"
    assert take_saturation(path, [{"x": dark}]).verdict == "none saturated"
    weights = np.full((4, 2), 64, np.int8)
    path = store(tmp_path / "safe.onnx", nodes, {"s": np.float32(1), "z": np.uint8(0), "w": weights}, (4,))
    assert take_saturation(path, [{"x": bright}]).verdict == "exact everywhere"
