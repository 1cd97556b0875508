"""What the recipes make, read off the files and off the kernels that run."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from support import RECIPES

from clipq.bundle import open_bundle
from clipq.engines.census import take_census
from clipq.engines.ort import OrtEngine
from clipq.evaluate.bench.bench import plausible_feed
from clipq.exporters.hqq import hqq_blocks
from clipq.exporters.placement import place


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def cosine(a, b):
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


# Smallest cosine to the FP32 tower on random pixels and on prompts.
FLOOR = {"fp16": 0.9999, "int8": 0.98, "int4": 0.90, "int2": 0.05}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_embeddings_stay_close(bundles, name, tower):
    reference, bundle = open_bundle(bundles / "fp32"), open_bundle(bundles / name)
    feed = plausible_feed(reference, tower, 16)
    outputs = []
    for each in (reference, bundle):
        with OrtEngine(each.tower_path(tower)) as engine:
            (features,) = engine.run(feed).values()
            outputs.append(features)
    assert cosine(*outputs) > FLOOR[name.split("-")[0]], name


@pytest.mark.parametrize("tower", ["image", "text"])
def test_static_is_the_file_tensorrt_takes(bundles, tower):
    """Symmetric Q/DQ: int8 everywhere, every zero point 0, around every chosen linear and nothing else."""
    model = onnx.load(bundles / "int8-static-minmax-symmetric" / f"{tower}.onnx")
    values = {value.name: value for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = values[node.input[2]]
            assert zero.data_type == onnx.TensorProto.INT8 and not onnx.numpy_helper.to_array(zero).any()
    fp32 = place(onnx.load(bundles / "fp32" / f"{tower}.onnx"))
    layers = 4 if tower == "image" else 2
    assert len(fp32.linears) == 4 * layers
    assert Counter(fp32.left.values())["attention product"] == 2 * layers
    # One dequantized weight per linear; linears that read the same tensor share its Q/DQ pair.
    produced = {output: node for node in model.graph.node for output in node.output}
    quantized = [
        node for node in model.graph.node
        if node.op_type == "MatMul" and all(produced.get(name) is not None and produced[name].op_type == "DequantizeLinear" for name in node.input)
    ]  # fmt: skip
    assert len(quantized) == 4 * layers


@pytest.mark.parametrize("name", ["int8-static-minmax", "int8-static-percentile"])
def test_asymmetric_uses_uint8(bundles, name):
    model = onnx.load(bundles / name / "image.onnx")
    values = {value.name: value for value in model.graph.initializer}
    kinds = {values[node.input[2]].data_type for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize(
    "name",
    [
        "int8-static-minmax",
        "int8-static-minmax-symmetric",
        "int8-static-entropy",
        "int8-static-percentile",
        "int8-dynamic",
    ],
)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_integer_kernels_run(bundles, name, tower):
    bundle = open_bundle(bundles / name)
    census = take_census(bundle.tower_path(tower), tower, plausible_feed(bundle, tower, 8))
    # Small towers spend more on attention products, patch embedding and final projection than real ones.
    assert census.integer_share > 0.85, census
    assert any(group.arithmetic == "integer" and group.count >= 8 for group in census.groups)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_simulation_runs_in_float_and_fp32_does(bundles, tower):
    bundle = open_bundle(bundles / "int8-static-minmax")
    feed = plausible_feed(bundle, tower, 8)
    assert take_census(bundle.tower_path(tower), tower, feed, simulated=True).verdict == "float"
    assert take_census(open_bundle(bundles / "fp32").tower_path(tower), tower, feed).verdict == "float"


def test_census_counts_the_work(bundles):
    """Multiply-accumulates of the demo's image tower, worked out by hand: 4 layers, width 128, 37 tokens, 48 pixels."""
    bundle = open_bundle(bundles / "fp32")
    census = take_census(bundle.tower_path("image"), "image", plausible_feed(bundle, "image", 1))
    tokens, width = 37, 128
    linears = 4 * 12 * width * width * tokens
    attention = 4 * 2 * tokens * tokens * width
    patches = 3 * 8 * 8 * width * 36
    projection = width * 128
    assert sum(group.macs for group in census.groups) == linears + attention + patches + projection


def test_weight_only_forms(bundles):
    assert operators(bundles / "int4-weight-only-rtn" / "image.onnx")["MatMulNBits"] == 17
    assert operators(bundles / "int4-weight-only-rtn-qdq-symmetric" / "image.onnx")["DequantizeLinear"] == 17
    assert operators(bundles / "int4-weight-only-rtn-token-table" / "text.onnx")["GatherBlockQuantized"] == 1
    sizes = {
        name: (bundles / name / "image.onnx").stat().st_size
        for name in ("fp32", "int8-weight-only-rtn", "int4-weight-only-rtn", "int2-weight-only-rtn")
    }
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_hqq_beats_rounding_on_heavy_tails():
    weight = np.random.default_rng(0).standard_t(3, (64, 256)).astype(np.float32)
    blocks = hqq_blocks(weight, 4, 64)
    levels = np.stack([blocks.packed & 15, blocks.packed >> 4], -1).reshape(64, 4, 64).astype(np.float32)
    scales, zeros = blocks.scales.reshape(64, 4, 1), blocks.zero_points.reshape(64, 4, 1)
    ours = np.abs((levels - zeros) * scales - weight.reshape(64, 4, 64)).mean()
    grouped = weight.reshape(64, 4, 64)
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    scale = (high - low) / 15
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(grouped / scale + zero), 0, 15) - zero) * scale
    assert ours < np.abs(rounded - grouped).mean()


def test_hqq_equals_onnxruntimes_where_torch_is():
    torch = pytest.importorskip("torch", reason="the peer needs torch")
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, HQQWeightOnlyQuantizer

    weight = np.random.default_rng(1).standard_normal((32, 128)).astype(np.float32)
    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=32, bits=4))
    levels, scale, zero = quantizer.quantize_internal(torch.from_numpy(weight), bits=4, group_size=32)
    ours = hqq_blocks(weight, 4, 32)
    theirs = ((levels.float().reshape(-1, 32) - zero.reshape(-1, 1)) * scale.reshape(-1, 1)).numpy()
    unpacked = np.stack([ours.packed & 15, ours.packed >> 4], -1).reshape(-1, 32).astype(np.float32)
    mine = (unpacked - ours.zero_points[:, None]) * ours.scales[:, None]
    original = weight.reshape(-1, 32)
    assert np.abs(mine - original).mean() <= np.abs(theirs - original).mean() * 1.02


def test_calibration_is_recorded(bundles):
    recipe = json.loads((bundles / "int8-static-minmax" / "clipq.json").read_text())["recipe"]
    assert recipe["calibration"]["images"] == 128 and recipe["calibration"]["texts"] == 128
    assert recipe["options"] == {
        "ranges": "minmax",
        "percentile": 99.99,
        "activations": "asymmetric",
        "granularity": "per-channel",
        "weights": "8bit",
        "smoothing": 0.0,
        "floats": "fp32",
        "attention": False,
        "form": "qdq",
    }
