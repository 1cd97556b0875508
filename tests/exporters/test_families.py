"""Every open_clip family exports with parity: shrunken here, full size under the marker ``slow``."""

from __future__ import annotations

import shutil
from collections import Counter
from importlib.util import find_spec

import onnx
import pytest
from families import SMALL, shrunken
from support import CALIBRATION, DEMO_BUNDLE, ROOT, export

from clipq.bundle import open_bundle
from clipq.engines.census import take_census
from clipq.evaluate.bench.bench import plausible_feed

open_clip = pytest.importorskip("open_clip", reason="needs the export extra")


# Plans are built without a GPU, where the extra tensorrt-rtx is installed (Linux on x86-64).
BUILT = find_spec("tensorrt_rtx") is not None


@pytest.fixture(scope="module", params=SMALL)
def family(request, tmp_path_factory):
    """A family's name, and its bundles by one command: quantized and, where that is possible, built."""
    folder = tmp_path_factory.mktemp(request.param)
    shrunken(request.param, folder / "checkpoint")
    build = ("--runtime", "tensorrt-rtx", "--target", "sm_89", "--batch", "1,2,4") if BUILT else ()
    done = export(
        "run", f"local-dir:{folder / 'checkpoint'}", "-o", str(folder / "out"), "--recipe", "int8-static",
        "--calibration-set", str(CALIBRATION), "--runtime", "ort-cpu", *build,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return request.param, folder / "out"


def test_family_exports_and_quantizes(family):
    name, out = family
    done = export("quantize", str(out / "fp32"), "--recipe", "int8-dynamic")
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(out / "fp32")
    for tower in (bundle.manifest.image, bundle.manifest.text):
        assert [parity.batch for parity in tower.parity] == [1, 7]
        assert all(parity.max_abs <= 1e-4 and parity.cosine >= 0.99999 for parity in tower.parity)
    assert (bundle.manifest.logit_bias is not None) == (name == "ViT-B-16-SigLIP")
    quantized = open_bundle(out / "int8-static-minmax")
    for tower in ("image", "text"):
        census = take_census(quantized.tower_path(tower), tower, plausible_feed(quantized, tower, 2))
        assert census.integer_share > 0.5, (tower, census)


@pytest.mark.skipif(not BUILT, reason="needs the extra tensorrt-rtx (Linux on x86-64)")
def test_families_build(family):
    """Placement on every kind of tower, text towers included: the parser finds each pair that was inserted."""
    _, out = family
    bundle = open_bundle(out / "int8-static-minmax-fp16-tensorrt-rtx-sm_89")
    for tower in ("image", "text"):
        source = onnx.load(out / "int8-static-minmax-fp16" / f"{tower}.onnx")
        operators = Counter(node.op_type for node in source.graph.node)
        plan = bundle.manifest.tower(tower).plan
        assert plan.layers["QUANTIZE INT8"] == operators["QuantizeLinear"] > 0
        assert plan.layers["DEQUANTIZE INT8"] == operators["DequantizeLinear"]
        assert not any(kind.endswith("FLOAT") for kind in plan.layers), plan.layers
        assert plan.batch == (1, 2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name != "ViT-B-16-SigLIP"])
def test_full_size(name, tmp_path):
    done = export("onnx", name, "--pretrained", "random", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for tower in (open_bundle(tmp_path / "out").manifest.image, open_bundle(tmp_path / "out").manifest.text):
        assert all(parity.max_abs <= 1e-4 for parity in tower.parity)


def test_quickgelu_mismatch_is_refused(monkeypatch):
    """OpenAI's weights under the name without -quickgelu would silently compute another function."""
    import warnings

    from clipq.errors import CheckpointError
    from clipq.exporters import checkpoints

    def mismatched(*arguments, **options):
        warnings.warn("QuickGELU mismatch between final model config (quick_gelu=False)", UserWarning, stacklevel=1)
        return open_clip.create_model("ViT-B-32", pretrained=None), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", mismatched)
    with pytest.raises(CheckpointError, match="ViT-B-32-quickgelu/openai"):
        checkpoints.load_checkpoint(checkpoints.parse_checkpoint("ViT-B-32/openai", None))


def test_demo_checkpoint_is_the_shipped_bundle(tmp_path):
    """Exporting the demo checkpoint gives the embeddings of the bundle that ships."""
    import numpy as np

    from clipq.engines.ort import OrtEngine

    done = export("onnx", "demo", "-o", str(tmp_path / "fp32"))
    assert done.returncode == 0, done.stderr
    fresh, shipped = open_bundle(tmp_path / "fp32"), open_bundle(DEMO_BUNDLE)
    assert fresh.manifest.logit_scale == shipped.manifest.logit_scale
    assert fresh.prompts == shipped.prompts and fresh.manifest.tokenizer == shipped.manifest.tokenizer
    for tower in ("image", "text"):
        feed = plausible_feed(shipped, tower, 4)
        outputs = []
        for bundle in (fresh, shipped):
            with OrtEngine(bundle.tower_path(tower)) as engine:
                (features,) = engine.run(feed).values()
                outputs.append(features / np.linalg.norm(features, axis=1, keepdims=True))
        assert np.abs(outputs[0] - outputs[1]).max() < 1e-5


def test_nothing_in_a_bundle_says_where_it_was_made(tmp_path):
    checkpoint = shutil.copytree(DEMO_BUNDLE.parent / "checkpoint", tmp_path / "home" / "mine")
    for opset in ("17", "21"):
        fp32 = tmp_path / opset
        done = export("onnx", f"local-dir:{checkpoint}", "--opset", opset, "-o", str(fp32))
        assert done.returncode == 0, done.stderr
        assert open_bundle(fp32).manifest.checkpoint.name == "local-dir:mine"
        done = export("quantize", str(fp32), "--recipe", "fp16", "-o", str(tmp_path / f"{opset}q"))
        assert done.returncode == 0, done.stderr
    # Nor where torch's and clipq's code lies, in what ships too.
    places = [str(tmp_path).encode(), b"site-packages", str(ROOT).encode()]
    for folder in (tmp_path / "17", tmp_path / "21", tmp_path / "17q", tmp_path / "21q", DEMO_BUNDLE):
        for path in folder.rglob("*.*"):
            found = [place for place in places if path.is_file() and place in path.read_bytes()]
            assert found == [], path
