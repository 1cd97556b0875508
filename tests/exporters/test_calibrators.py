"""Simulated widths, mse ranges, SmoothQuant, GPTQ and AWQ: right by definition, against other implementations, at work."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.quantization.neural_compressor.weight_only import gptq as onnxruntime_gptq
from support import CALIBRATION, assert_refused, evaluate, export

from clipq.bundle import open_bundle
from clipq.engines.ort import OrtEngine
from clipq.exporters.blocks import rounded
from clipq.exporters.calibration_set import open_calibration_set
from clipq.exporters.gptq import gptq_blocks
from clipq.exporters.placement import place
from clipq.exporters.qdq import activation_quantizer
from clipq.exporters.quantize import prepared
from clipq.exporters.ranges import RangeHistogram
from clipq.exporters.recipes import Int4WeightOnly, Int8Static, parse_recipe
from clipq.exporters.scaling import normalized_linears, protect_salient, smooth

MADE = {
    "simulated-w8a8": "simulated-w8a8", "simulated-w4a8": "simulated-w4a8", "simulated-w2a8": "simulated-w2a8",
    "int8-static-minmax-smoothing0.5": "int8-static:smoothing=0.5", "int8-static-mse": "int8-static:ranges=mse",
    "int4-weight-only-gptq": "int4-weight-only:algorithm=gptq", "int4-weight-only-awq": "int4-weight-only:algorithm=awq",
    "int2-weight-only-gptq": "int2-weight-only:algorithm=gptq",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(bundles):
    flags = [flag for recipe in MADE.values() for flag in ("--recipe", recipe)]
    done = export("quantize", str(bundles / "fp32"), "--calibration-set", str(CALIBRATION), *flags)
    assert done.returncode == 0, done.stderr
    return bundles


@pytest.fixture(scope="module")
def values(made, tmp_path_factory):
    import json

    names = ("fp32", "int8-static-minmax", "int2-weight-only-rtn", *MADE)
    out = tmp_path_factory.mktemp("calibrators")
    done = evaluate(
        "run", *(str(made / name) for name in names), "--data", "test=demo:test", "--no-bench", "--simulated", "--json",
        "-o", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    return {(row["bundle"], row["simulated"], row["metric"]): row["value"] for row in rows if row["view"] == "test"}


def test_fewer_simulated_bits_are_worse(values):
    accuracies = [values[f"simulated-w{bits}a8", True, "acc1"] for bits in (8, 4, 2)]
    assert accuracies[0] > 0.92 and accuracies[2] < 0.7 < accuracies[1]


def test_simulated_8_bits_are_the_qdq_files_simulation(made):
    """Another graph, the same levels: the twin of int8-static, up to float rounding on the edge between two levels."""
    feed = np.random.default_rng(0).standard_normal((16, 3, 48, 48)).astype(np.float32)
    outputs = []
    for name, simulated in (("simulated-w8a8", False), ("int8-static-minmax-symmetric", True)):
        with OrtEngine(made / name / "image.onnx", simulated=simulated) as engine:
            (output,) = engine.run({"image": feed}).values()
        outputs.append(output / np.linalg.norm(output, axis=1, keepdims=True))
    assert (outputs[0] * outputs[1]).sum(1).min() > 0.9995


def test_gptq_and_awq_help_where_it_hurts(values):
    rtn, gptq = (values[f"int2-weight-only-{name}", False, "cosine"] for name in ("rtn", "gptq"))
    assert gptq > rtn + 0.02
    assert values["int2-weight-only-gptq", False, "acc1"] > values["int2-weight-only-rtn", False, "acc1"] + 0.02
    for name in ("int4-weight-only-gptq", "int4-weight-only-awq", "int8-static-mse", "int8-static-minmax-smoothing0.5"):
        assert values[name, False, "acc1"] > 0.92 and values[name, False, "cosine"] > 0.99, name


def problem(seed=0, inputs=96, outputs=20):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    x = rng.normal(size=(500, inputs)) @ mixing
    return rng.normal(size=(outputs, inputs)).astype(np.float32), x.T @ x / len(x)


def unpack(blocks, bits, block_size, inputs):
    outputs = len(blocks.packed)
    shifts = bits * np.arange(8 // bits)

    def levels(packed):
        return ((packed[..., None] >> shifts) & (2**bits - 1)).reshape(*packed.shape[:-1], -1)

    columns = blocks.packed.shape[1]
    zeros = levels(blocks.zero_points.reshape(outputs, -1))[:, :columns]
    scales = blocks.scales.reshape(outputs, columns)
    values = (levels(blocks.packed).astype(float) - zeros[..., None]) * scales[..., None]
    return values.reshape(outputs, -1)[:, :inputs]


def output_error(approximate, weight, moments):
    off = approximate - weight
    return np.einsum("nk,kl,nl->", off, moments, off)


@pytest.mark.parametrize(
    ("bits", "grid"),
    [(2, "asymmetric"), (2, "symmetric"), (4, "asymmetric"), (4, "symmetric"), (4, "positive")],
)
def test_gptq_loses_less_than_rounding_and_no_more_than_onnxruntimes(bits, grid):
    weight, moments = problem()
    ours = unpack(gptq_blocks(weight, moments, bits=bits, block_size=32, grid=grid), bits, 32, 96)
    nearest = rounded(weight, bits, 32, grid)
    theirs = onnxruntime_gptq(
        weight.T.copy(), moments.copy(), num_bits=bits, group_size=32, scheme="asym" if grid == "asymmetric" else "sym"
    ).T
    error = output_error(ours, weight, moments)
    assert error < (0.7 if bits == 4 else 0.9) * output_error(nearest, weight, moments)
    assert error < 1.1 * output_error(theirs, weight, moments)


def test_gptq_with_uncorrelated_inputs_is_rounding():
    weight, _ = problem()
    ours = unpack(gptq_blocks(weight, np.eye(96), bits=4, block_size=32, grid="asymmetric"), 4, 32, 96)
    assert np.abs(ours - rounded(weight, 4, 32, "asymmetric")).max() < 1e-5


def test_gptq_pads_and_ignores_inputs_that_are_never_there():
    weight, moments = problem(inputs=90)
    moments[7] = moments[:, 7] = 0
    blocks = gptq_blocks(weight, moments, bits=4, block_size=32, grid="asymmetric")
    assert blocks.packed.shape == (20, 3, 16) and np.isfinite(blocks.scales).all()
    assert np.abs(unpack(blocks, 4, 32, 90)[:, 7]).max() < 0.3


def test_mse_range_is_the_best_of_a_dense_search():
    values = np.random.default_rng(0).standard_t(3, 50_000).astype(np.float32)
    histogram = RangeHistogram()
    histogram.add(values)
    recipe = Int8Static("mse", activations="asymmetric")
    low, high = histogram.range(recipe)

    def error(low, high):
        quantizer = activation_quantizer(low, high, symmetric=False)
        levels = np.clip(np.rint(values / quantizer.scale) + float(quantizer.zero_point), 0, 255)
        return (((levels - float(quantizer.zero_point)) * quantizer.scale - values) ** 2).mean()

    tried = min(error(f * values.min(), f * values.max()) for f in np.linspace(0.02, 1, 200))
    assert error(low, high) < 1.05 * tried < error(values.min(), values.max())


@pytest.mark.parametrize("how", ["smooth", "awq"])
def test_scales_move_without_changing_the_function(bundles, how, tmp_path):
    bundle = open_bundle(bundles / "fp32")
    calibration = open_calibration_set(CALIBRATION, bundle)
    for name in ("image", "text"):
        model = prepared(bundle.tower_path(name), tmp_path)
        placement = place(model)
        before = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
        groups = normalized_linears(model, placement)
        assert len(groups) >= 4
        (feed, *_) = calibration.feeds(bundle, name, lambda done: None)
        plain = run(model, feed)
        feeds = calibration.feeds(bundle, name, lambda done: None)
        if how == "smooth":
            smooth(model, placement, 0.5, feeds)
        else:
            protect_salient(model, placement, Int4WeightOnly("awq"), feeds)
        changed = [v.name for v in model.graph.initializer if (onnx.numpy_helper.to_array(v) != before[v.name]).any()]
        assert changed
        assert np.abs(run(model, feed) - plain).max() < 1e-4 * np.abs(plain).max()


def run(model, feed):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, str(Path(folder) / "m.onnx"))
        with OrtEngine(Path(folder) / "m.onnx") as engine:
            (output,) = engine.run(feed).values()
    return output


def test_names_and_refusals(bundles):
    assert parse_recipe("simulated-w4a8").slug() == "simulated-w4a8"
    assert parse_recipe("simulated-w4a8:ranges=mse").slug() == "simulated-w4a8-mse"
    assert parse_recipe("simulated-w3a6").weight_bits == 3
    fp32 = str(bundles / "fp32")
    assert_refused(export("quantize", fp32, "--recipe", "simulated-w9a8"), "unknown recipe 'simulated-w9a8'", "wXaY")
    assert_refused(export("quantize", fp32, "--recipe", "int4-weight-only:algorithm=gptq"), "--calibration-set")
    assert_refused(export("quantize", fp32, "--recipe", "int8-static:smoothing=1.5"), "smoothing=1.5 must lie in")
    assert "simulated-wXaY" in export("list").stdout
