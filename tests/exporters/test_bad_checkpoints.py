"""Checkpoints that open_clip loads and no bundle can hold: refused in one line, before minutes go into the export."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from support import DEMO_BUNDLE, assert_refused, export

pytest.importorskip("open_clip", reason="needs the export extra")


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(DEMO_BUNDLE.parent / "checkpoint", tmp_path / "mine")


def refused(checkpoint, *words):
    done = export("onnx", f"local-dir:{checkpoint}", "-o", str(checkpoint.parent / "fp32"))
    assert_refused(done, *words)
    assert "exporting" not in done.stderr
    assert [path.name for path in checkpoint.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", [0, 0, 0]),
        ("mean", [123.7, 116.3, 103.5]),
        ("mean", [0.5]),
        ("mean", "0.5"),
        ("fill_color", [1, 2, 3]),
    ],
)
def test_preprocessing(checkpoint, key, value):
    path = checkpoint / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"][key] = value
    path.write_text(json.dumps(config))
    refused(checkpoint, "local-dir:mine", f"preprocess_cfg: {key}")


def with_weight(value):
    def change(weights):
        name = next(name for name in weights if name.endswith("in_proj_weight"))
        weights[name] = weights[name].copy()
        weights[name].flat[5] = value

    return change


CHANGES = {
    "a weight that is none": (with_weight(np.nan), ["not finite", "in_proj_weight"]),
    "an infinite weight": (with_weight(np.inf), ["not finite", "in_proj_weight"]),
    "no text projection": (
        lambda weights: weights.update(text_projection=np.zeros_like(weights["text_projection"])), ["or zero"]
    ),
    "a scale that is none": (lambda weights: weights.update(logit_scale=np.array(np.nan, np.float32)), ["nan"]),
    "an endless scale": (lambda weights: weights.update(logit_scale=np.array(1000, np.float32)), ["logit_scale is inf"]),
    "a key too many": (lambda weights: weights.update(surplus=np.zeros(3, np.float32)), ["state_dict", "surplus"]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_weights(checkpoint, change):
    from safetensors.numpy import load_file, save_file

    path = checkpoint / "open_clip_model.safetensors"
    weights = load_file(path)
    alter, words = CHANGES[change]
    alter(weights)
    save_file(weights, path)
    refused(checkpoint, *words)
