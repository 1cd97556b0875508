from __future__ import annotations

import json
import shutil

import pytest
from support import CALIBRATION, assert_refused, evaluate, export

from clipq.bundle import open_bundle


@pytest.fixture
def copy(bundles, tmp_path):
    return shutil.copytree(bundles / "fp32", tmp_path / "fp32")


def refuses(copy, *words):
    assert_refused(evaluate("inspect", str(copy)), *words)


def test_digest_covers_everything(copy):
    before = open_bundle(copy).digest
    manifest = json.loads((copy / "clipq.json").read_text())
    manifest["logit_scale"] += 1
    (copy / "clipq.json").write_text(json.dumps(manifest))
    assert open_bundle(copy).digest != before


@pytest.mark.parametrize("file", ["image.onnx", "text.onnx", "tokenizer.json", "prompts.json"])
def test_changed_file(copy, file):
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(bytes(data))
    refuses(copy, file, "does not match the digest")


def test_missing_file(copy):
    (copy / "text.onnx").unlink()
    refuses(copy, "text.onnx is missing")


def test_newer_schema(copy):
    manifest = json.loads((copy / "clipq.json").read_text())
    (copy / "clipq.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    refuses(copy, "schema version 99", "upgrade clip-quant")


def test_manifest_that_is_no_json(copy):
    (copy / "clipq.json").write_text("{")
    refuses(copy, "not valid JSON")


def test_manifest_that_points_outside(copy):
    manifest = json.loads((copy / "clipq.json").read_text())
    manifest["image"]["file"] = "../image.onnx"
    (copy / "clipq.json").write_text(json.dumps(manifest))
    refuses(copy, "outside the bundle")


def test_no_bundle(tmp_path):
    refuses(tmp_path / "none", "does not exist")
    refuses(tmp_path, "has no clipq.json")


def test_quantizing_a_damaged_bundle_leaves_nothing(copy):
    (copy / "image.onnx").write_bytes(b"")
    done = export("quantize", str(copy), "--recipe", "int8-static", "--calibration-set", str(CALIBRATION))
    assert_refused(done, "image.onnx")
    assert [path.name for path in copy.parent.iterdir()] == ["fp32"]
