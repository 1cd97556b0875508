"""Real TensorRT-RTX builds on a machine without a GPU: what the parsed network quantizes, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, export

from clipq.bundle import open_bundle
from clipq.engines.tensorrt_library import Log, open_library
from clipq.errors import BuildError
from clipq.exporters import build
from clipq.exporters.build import BuildSettings, build_plan, open_toolchain
from clipq.progress import Progress

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx (Linux on x86-64)")
TARGET = ("--runtime", "tensorrt-rtx", "--target", "sm_89")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The issue's own command: everything of the demo for the CPU, and plans for a GPU that is not here."""
    pytest.importorskip("open_clip", reason="needs the export extra")
    folder = tmp_path_factory.mktemp("built")
    done = export(
        "run", "demo", "-o", str(folder), "--recipe", "fp16", "--recipe", "int8-static", "--recipe", "int4-weight-only",
        "--runtime", "ort-cpu", *TARGET,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(str(path) for path in folder.iterdir())
    return folder


def plan_of(folder, slug, tower="image"):
    bundle = open_bundle(folder / f"{slug}-tensorrt-rtx-sm_89")
    return bundle, bundle.manifest.tower(tower)


@pytest.mark.parametrize(
    ("slug", "tower", "layers"),
    [
        ("fp32", "image", {"CONVOLUTION FLOAT": 1, "MATRIX_MULTIPLY FLOAT": 25}),
        ("fp16", "image", {"CONVOLUTION HALF": 1, "MATRIX_MULTIPLY HALF": 25}),
        # Four blocks of four linears: each has its input and its weight dequantized.
        ("int8-static-minmax-fp16", "image", {"CONVOLUTION HALF": 1, "MATRIX_MULTIPLY HALF": 25, "QUANTIZE INT8": 16, "DEQUANTIZE INT8": 32, "CONSTANT INT8": 16}),
        ("int8-static-minmax-fp16", "text", {"MATRIX_MULTIPLY HALF": 13, "QUANTIZE INT8": 8, "DEQUANTIZE INT8": 16, "CONSTANT INT8": 8}),
        ("int4-weight-only-rtn-qdq-symmetric-fp16", "image", {"CONVOLUTION HALF": 1, "MATRIX_MULTIPLY HALF": 25, "DEQUANTIZE INT4": 17, "CONSTANT INT4": 17}),
    ],
)  # fmt: skip
def test_parsed_types(built, slug, tower, layers):
    _, entry = plan_of(built, slug, tower)
    assert entry.plan.layers == layers
    assert entry.plan.strongly_typed and entry.plan.flags == ()


def test_the_manifest_says_what_built_it(built):
    bundle, entry = plan_of(built, "int8-static-minmax-fp16")
    plan = entry.plan
    assert plan.runtime == "tensorrt-rtx" and plan.library == open_library("tensorrt-rtx").name
    assert plan.capability == "sm_89" and plan.gpu is None and plan.driver_cuda is None
    assert plan.batch == (1, 8, 32)
    assert plan.source_sha256 == open_bundle(built / "int8-static-minmax-fp16").manifest.image.sha256
    assert bundle.manifest.recipe.name == "int8-static" and bundle.built_for == "tensorrt-rtx"
    assert bundle.manifest.recipe.source_digest == open_bundle(built / "int8-static-minmax-fp16").digest
    assert sorted(path.name for path in bundle.path.iterdir()) == [
        "clipq.json", "image.plan", "prompts.json", "text.plan", "tokenizer.json",
    ]  # fmt: skip


def test_fewer_bits_are_smaller_plans(built):
    slugs = ("fp32", "fp16", "int8-static-minmax-fp16", "int4-weight-only-rtn-qdq-symmetric-fp16")
    sizes = [plan_of(built, slug)[1].bytes for slug in slugs]
    # The demo is so small that an INT8 plan's extra kernels outweigh its smaller weights; test_full_size has the rest.
    assert sizes[0] == max(sizes) and sizes[3] == min(sizes)


@pytest.mark.slow
def test_full_size(tmp_path):
    done = export(
        "run", "ViT-B-32", "--pretrained", "random", "-o", str(tmp_path), "--recipe", "fp16", "--recipe", "int8-static",
        "--recipe", "int4-weight-only", "--calibration-set", str(CALIBRATION), *TARGET,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sizes = {}
    for slug in ("fp16", "int8-static-minmax-fp16", "int4-weight-only-rtn-qdq-symmetric-fp16"):
        _, entry = plan_of(tmp_path, slug)
        sizes[slug.split("-")[0]] = entry.bytes / 1e6
        assert entry.plan.layers["MATRIX_MULTIPLY HALF"] == 73
    assert 175 < sizes["fp16"] < 195 and 95 < sizes["int8"] < 115 and 55 < sizes["int4"] < 70


def test_check_accepts_what_builds(built):
    done = export("check", str(built / "int8-static-minmax-fp16"), "--runtime", "tensorrt-rtx", "--json")
    assert done.returncode == 0, done.stderr
    towers = json.loads(done.stdout)["towers"]
    assert [tower["refused"] for tower in towers] == [[], []]
    assert towers[0]["layers"] == plan_of(built, "int8-static-minmax-fp16")[1].plan.layers


@pytest.mark.parametrize(
    ("recipe", "op", "reason", "count"),
    [
        ("int8-static:activations=asymmetric", "QuantizeLinear", "Non-zero zero point is not supported", 1),
        ("int8-dynamic", "DynamicQuantizeLinear", "not supported", 17),
        ("int4-weight-only", "MatMulNBits", "must be FP16", 1),
    ],
)
def test_check_names_what_would_not_build(recipe, op, reason, count, tmp_path):
    done = export("quantize", str(DEMO_BUNDLE), "--recipe", recipe, "--calibration-set", str(CALIBRATION), "-o", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundle = done.stdout.strip()
    done = export("check", bundle, "--runtime", "tensorrt-rtx", "--json")
    assert done.returncode == 1, done.stderr
    (row,) = (row for row in json.loads(done.stdout)["towers"][0]["refused"] if row["op"] == op)
    assert reason in row["reason"] and len(row["nodes"]) == count
    assert all(node in {n.name for n in onnx.load(f"{bundle}/image.onnx").graph.node} for node in row["nodes"])
    if recipe != "int8-dynamic":
        assert_refused(
            export("build", bundle, *TARGET), "cannot parse image.onnx", op, reason, "--runtime tensorrt-rtx"
        )
        assert not [path for path in tmp_path.iterdir() if "tensorrt" in path.name or path.name.startswith(".")]


def test_check_for_tensorrt_says_whose_parser_it_was():
    done = export("check", str(DEMO_BUNDLE), "--runtime", "tensorrt")
    assert done.returncode == 0, done.stderr
    assert "in place of TensorRT's" in done.stdout or "parser: tensorrt 1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--runtime", "tensorrt-rtx", "--target", "sm_90"), ("does not build for sm_90", "use tensorrt")),
        (("--runtime", "tensorrt-rtx", "--target", "turing"), ("does not build for turing", "sm_75")),
        ((*TARGET, "--batch", "8,1,2"), ("--batch 8,1,2", "must rise")),
        ((*TARGET, "--batch", "8"), ("--batch '8'", "MIN,OPT,MAX")),
        ((*TARGET, "--calibrator", "entropy2"), ("has no calibrators", "int8-static:ranges=entropy")),
    ],
)
def test_refusals(arguments, words, tmp_path):
    assert_refused(export("build", str(DEMO_BUNDLE), *arguments, "-o", str(tmp_path)), *words)
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_the_target_must_be_said(monkeypatch):
    from clipq.errors import RuntimeUnavailable
    from clipq.exporters import build

    def missing():
        raise RuntimeUnavailable("no GPU: none")

    monkeypatch.setattr(build, "current_gpu", missing)
    with pytest.raises(BuildError, match=r"no GPU: none; say which one the plans are for: --target sm_75\|"):
        open_toolchain(BuildSettings("tensorrt-rtx"))


def test_a_built_bundle_is_not_built_again(built):
    folder = str(built / "fp32-tensorrt-rtx-sm_89")
    assert_refused(export("build", folder, *TARGET), "is built already")
    assert_refused(export("check", folder, "--runtime", "tensorrt-rtx"), "is built already")
    assert_refused(export("quantize", folder, "--recipe", "fp16"), "plans")


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("int8-dynamic", "tensorrt-rtx has no kernels"),
        ("int2-weight-only", "form=qdq exists for 4 bits"),
        ("int4-weight-only:algorithm=hqq", "hqq fits zero points"),
    ],
)
def test_recipes_a_runtime_has_no_kernels_for(recipe, reason, tmp_path):
    done = export("run", "demo", "-o", str(tmp_path / "x"), "--recipe", recipe, *TARGET)
    assert_refused(done, reason)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("algorithm", ["rtn", "awq", "gptq"])
def test_four_bit_blocks_have_positive_scales_and_mean_what_they_say(algorithm, tmp_path):
    """TensorRT wants positive scales; the file dequantizes to weights within half a step of the originals."""
    recipe = f"int4-weight-only:algorithm={algorithm},form=qdq,symmetric=true"
    done = export("quantize", str(DEMO_BUNDLE), "--recipe", recipe, "--calibration-set", str(CALIBRATION), "-o", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = onnx.load(f"{done.stdout.strip()}/image.onnx")
    values = {value.name: value for value in model.graph.initializer}
    blocks = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(blocks) == 17 and all(values[node.input[0]].data_type == onnx.TensorProto.INT4 for node in blocks)
    originals = [numpy_helper.to_array(v) for v in onnx.load(DEMO_BUNDLE / "image.onnx").graph.initializer]
    for node in blocks:
        scale = numpy_helper.to_array(values[node.input[1]])
        levels = numpy_helper.to_array(values[node.input[0]]).astype(np.int8)
        assert scale.min() > 0 and levels.min() >= -8 and levels.max() <= 7
        if algorithm == "rtn":
            wide = np.repeat(scale, 32, axis=0)
            twins = [w for w in originals if w.shape == levels.shape] + [
                w.T for w in originals if w.shape[::-1] == levels.shape
            ]
            assert min(np.abs(levels * wide - twin).max() / scale.max() for twin in twins) < 0.501


def test_half_precision_holds_the_scales_exactly(tmp_path):
    done = export("quantize", str(DEMO_BUNDLE), "--recipe", "int8-static", "--recipe", "int8-static:floats=fp16", "--calibration-set", str(CALIBRATION), "-o", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    half = onnx.load(tmp_path / "int8-static-minmax-fp16" / "image.onnx")
    values = {value.name: numpy_helper.to_array(value) for value in half.graph.initializer}
    pairs = [node for node in half.graph.node if node.op_type == "DequantizeLinear"]
    scales = [values[node.input[1]] for node in pairs]
    assert {scale.dtype for scale in scales} == {np.dtype(np.float16)} and min(s.min() for s in scales) >= 6.1e-5
    weights = [values[node.input[0]] for node in pairs if node.input[0] in values]
    assert len(weights) == 16 and all(np.abs(w.astype(int)).max() <= 127 for w in weights)


def test_attention_products_are_quantized_on_request(tmp_path):
    done = export("quantize", str(DEMO_BUNDLE), "--recipe", "int8-static:attention=true", "--calibration-set", str(CALIBRATION), "-o", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    graph = onnx.load(tmp_path / "int8-static-minmax-attention" / "image.onnx").graph
    count = Counter(node.op_type for node in graph.node)
    assert count["QuantizeLinear"] == 16 + 2 * 8 and count["DequantizeLinear"] == 32 + 2 * 8


@pytest.mark.parametrize("checkpoint", [("demo",), ("RN50", "--pretrained", "random")])
def test_opset_17_is_what_tensorrt_8_6_reads(checkpoint, tmp_path):
    pytest.importorskip("open_clip", reason="needs the export extra")
    done = export("onnx", *checkpoint, "--opset", "17", "-o", str(tmp_path / "x"))
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(tmp_path / "x")
    assert bundle.manifest.environment["opset"] == "17"
    for tower in (bundle.manifest.image, bundle.manifest.text):
        assert all(parity.max_abs < 1e-5 for parity in tower.parity) and len(tower.parity) == 2
        model = onnx.load(tmp_path / "x" / tower.file)
        assert [opset.version for opset in model.opset_import if opset.domain == ""] == [17]
        assert not {"Gelu", "Attention"} & {node.op_type for node in model.graph.node}
    done = export("check", str(tmp_path / "x"), "--runtime", "tensorrt")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100])
def test_a_damaged_timing_cache_is_written_anew(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "TIMING_CACHES", tmp_path)
    toolchain = open_toolchain(BuildSettings("tensorrt-rtx", target="sm_89"))
    cache = tmp_path / f"{toolchain.library.name.replace(' ', '-')}-sm_89.timing"
    cache.write_bytes(damage)
    built = build_plan(DEMO_BUNDLE / "image.onnx", toolchain, cache=tmp_path / "ranges", progress=Progress())  # fmt: skip
    assert len(built.plan) > 1_000_000 and cache.read_bytes() not in (b"", damage)


def test_a_build_that_fails_on_earlier_timings_goes_without_them(tmp_path, monkeypatch, caplog):
    """As TensorRT 8.6.0 did on an H200: the cache is a help for speed alone, so the build goes on, and says so."""
    monkeypatch.setattr(build, "TIMING_CACHES", tmp_path)
    toolchain = open_toolchain(BuildSettings("tensorrt-rtx", target="sm_89"))
    trt, given = toolchain.library.trt, []

    class Builder(trt.Builder):
        def build_serialized_network(self, network, config):
            given.append(cache.is_file())
            if len(given) == 2:
                toolchain.library.log.errors += ["Myelin error", "The timing cache will not be used!"]
                return None
            return super().build_serialized_network(network, config)

    monkeypatch.setattr(trt, "Builder", Builder)
    cache = tmp_path / f"{toolchain.library.name.replace(' ', '-')}-sm_89.timing"
    plans = [
        build_plan(DEMO_BUNDLE / "image.onnx", toolchain, cache=tmp_path / "ranges", progress=Progress()).plan
        for _ in range(2)
    ]  # fmt: skip
    assert given == [False, True, True] and cache.is_file() and all(len(plan) > 1_000_000 for plan in plans)
    assert "building again without earlier builds' timings: " in caplog.text
    assert "Myelin error; The timing cache will not be used!" in caplog.text


def test_a_build_that_fails_for_another_reason_fails_once(tmp_path, monkeypatch):
    """And says its own reason, not what an earlier build got over; the timings of the others stay."""
    monkeypatch.setattr(build, "TIMING_CACHES", tmp_path)
    toolchain = open_toolchain(BuildSettings("tensorrt-rtx", target="sm_89"))
    trt, calls = toolchain.library.trt, []

    class Builder(trt.Builder):
        def build_serialized_network(self, network, config):
            calls.append(1)
            toolchain.library.log.errors.append("no tactic")

    cache = tmp_path / f"{toolchain.library.name.replace(' ', '-')}-sm_89.timing"
    build_plan(DEMO_BUNDLE / "image.onnx", toolchain, cache=tmp_path / "r", progress=Progress())  # fmt: skip
    kept = cache.read_bytes()
    toolchain.library.log.errors.append("an error of before")
    monkeypatch.setattr(trt, "Builder", Builder)
    with pytest.raises(BuildError, match=r"cannot build image\.onnx: no tactic$"):
        build_plan(DEMO_BUNDLE / "image.onnx", toolchain, cache=tmp_path / "r", progress=Progress())  # fmt: skip
    assert calls == [1] and cache.read_bytes() == kept


def test_errors_are_told_by_how_they_began_and_ended():
    log = Log()
    log.errors += ["first\n  cause", "second", "second", "third", "the end"]
    assert log.take_errors() == "first cause; …; third; the end"
    assert log.take_errors() == "" and not log.errors
