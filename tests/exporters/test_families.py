"""Every open_clip family exports with parity: shrunken here, full size under the marker ``slow``."""

from __future__ import annotations

import pytest
from families import SMALL, shrunken
from support import CALIBRATION, export

from clipq.bundle import open_bundle
from clipq.engines.census import take_census
from clipq.evaluate.bench.bench import plausible_feed

open_clip = pytest.importorskip("open_clip", reason="needs the export extra")


@pytest.mark.parametrize("name", SMALL)
def test_family_exports_and_quantizes(name, tmp_path):
    shrunken(name, tmp_path / "checkpoint")
    done = export(
        "run", f"local-dir:{tmp_path / 'checkpoint'}", "-o", str(tmp_path / "out"), "--recipe", "int8-static",
        "--recipe", "int8-dynamic", "--calibration-set", str(CALIBRATION),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(tmp_path / "out" / "fp32")
    for tower in (bundle.manifest.image, bundle.manifest.text):
        assert [parity.batch for parity in tower.parity] == [1, 7]
        assert all(parity.max_abs <= 1e-4 and parity.cosine >= 0.99999 for parity in tower.parity)
    assert (bundle.manifest.logit_bias is not None) == (name == "ViT-B-16-SigLIP")
    quantized = open_bundle(tmp_path / "out" / "int8-static-minmax")
    for tower in ("image", "text"):
        census = take_census(quantized.tower_path(tower), tower, plausible_feed(quantized, tower, 2))
        assert census.integer_share > 0.5, (tower, census)


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
    from support import DEMO_BUNDLE

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
