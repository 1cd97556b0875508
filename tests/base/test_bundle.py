from __future__ import annotations

import hashlib
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


def put(copy, *path_and_value):
    *path, key, value = path_and_value
    manifest = json.loads((copy / "clipq.json").read_text())
    place = manifest
    for part in path:
        place = place[part]
    place[key] = value
    # Python writes NaN and Infinity, and reads them.
    (copy / "clipq.json").write_text(json.dumps(manifest))


def deep(levels):
    return "[" * levels + "]" * levels


NONSENSE = [
    ("preprocess", "image_size", [-1, -1]),
    ("preprocess", "image_size", [0, 48]),
    ("preprocess", "image_size", [48, 10**30]),
    ("preprocess", "image_size", [32, 32]),
    ("preprocess", "std", [0.25, -1, 0.25]),
    ("preprocess", "std", [0, 1, 1]),
    ("preprocess", "mean", [float("nan"), 0, 0]),
    ("preprocess", "fill_color", 256),
    ("tokenizer", "context_length", 0),
    ("tokenizer", "context_length", 23),
    ("tokenizer", "context_length", 10**9),
    ("logit_scale", 0),
    ("logit_scale", -1),
    ("logit_scale", float("inf")),
    ("logit_scale", 1e-300),
    ("logit_scale", 1e308),
    ("logit_bias", float("nan")),
    ("logit_bias", -1e308),
    ("preprocess", "mean", [123.7, 116.3, 103.5]),
    ("preprocess", "std", [1e-40, 0.25, 0.25]),
    ("embed_dim", 10**30),
    ("embed_dim", 0),
    ("embed_dim", -3),
    ("image", "input_name", ""),
    ("image", "output_name", ""),
    ("image", "input_dtype", "int64"),
    ("text", "input_dtype", "float32"),
    ("text", "input_shape", [None, 3, 24]),
    ("image", "input_shape", []),
    ("image", "file", ""),
    ("image", "file", "."),
    ("image", "file", "/etc/passwd"),
    ("image", "file", "a/../../image.onnx"),
    ("image", "file", "image.onnx\0"),
    ("image", "bytes", -1),
    ("text", "sha256", "x"),
    ("recipe", "towers", []),
    ("recipe", "calibration", {"x": 1}),
    ("preprocess", "image_size", ["48", 48]),
    ("preprocess", "std", ["0.25", 0.25, 0.25]),
    ("logit_scale", "33"),
    ("embed_dim", True),
    ("schema_version", 0),
    ("schema_version", True),
    ("schema_version", "3"),
    ("environment", {"a": {"b": 1}}),
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_a_manifest_that_makes_no_sense_is_refused_when_it_is_opened(copy, nonsense):
    put(copy, *nonsense)
    refuses(copy, "clipq.json")


@pytest.mark.parametrize("raw", [deep(100_000), '{"schema_version": ' + deep(100_000) + "}", "[]", "null", "1" * 5000])
def test_a_manifest_that_is_another_json(copy, raw):
    (copy / "clipq.json").write_text(raw)
    refuses(copy, "clipq.json")


SETS = {"imagenet-80": ["a {}"], "simple-7": ["a {}"]}
NAMES = {"demo": ["cat"]}


@pytest.mark.parametrize(
    ("sets", "names"),
    [
        ({}, NAMES),
        ({"imagenet-80": []}, NAMES),
        ({**SETS, "imagenet-80": ["a photo"]}, NAMES),
        ({"imagenet-80": ["a {}"]}, NAMES),
        (SETS, {}),
        (SETS, {"demo": []}),
        (SETS, {"demo": [""]}),
    ],
)
def test_prompts_without_templates_or_names(copy, sets, names):
    data = json.dumps({"templates": sets, "class_names": names}).encode()
    (copy / "prompts.json").write_bytes(data)
    put(copy, "prompts", {"file": "prompts.json", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    refuses(copy, "prompts.json")


def tower_that_differs(copy, tmp_path, *path_and_value):
    put(copy, *path_and_value)
    assert_refused(
        evaluate("run", str(copy), "--data", "demo:test:n=24", "-o", str(tmp_path / "results")),
        "the manifest says",
    )
    quantized = ("quantize", str(copy), "--recipe", "int8-static", "--calibration-set", str(CALIBRATION))
    assert_refused(export(*quantized, "-o", str(tmp_path / "made")))
    assert not any((tmp_path / "made").glob("*"))


@pytest.mark.parametrize("what", ["input_name", "output_name"])
def test_a_tower_that_is_not_what_the_manifest_says(copy, tmp_path, what):
    tower_that_differs(copy, tmp_path, "image", what, "other")


def test_a_tower_of_another_dimension(copy, tmp_path):
    tower_that_differs(copy, tmp_path, "embed_dim", 127)


def untruncated(tokenizer):
    return json.dumps(json.loads(tokenizer) | {"truncation": None}).encode()


def unpadded(tokenizer):
    return json.dumps(json.loads(tokenizer) | {"padding": None}).encode()


def padded(length):
    def change(tokenizer):
        read = json.loads(tokenizer)
        read["padding"]["strategy"] = {"Fixed": length}
        return json.dumps(read).encode()

    return change


def with_dropout(tokenizer):
    read = json.loads(tokenizer)
    read["model"]["dropout"] = 0.5
    return json.dumps(read).encode()


def with_stride(tokenizer):
    """The library's panic, which it writes to stderr itself, a page long."""
    read = json.loads(tokenizer)
    read["truncation"]["stride"] = 10_000
    return json.dumps(read).encode()


def of_few_words(tokenizer):
    """It fails on any other, for it does not know its own word for them."""
    read = json.loads(tokenizer) | {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None}
    read |= {"model": {"type": "WordLevel", "vocab": {"a": 1}, "unk_token": "[UNK]"}, "added_tokens": []}
    return json.dumps(read).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (padded(2**63), "tokens, the manifest says 24"),
        (padded(10**11), "tokens, the manifest says 24"),
        (padded(25), "tokens, the manifest says 24"),
        (lambda data: b"{}", "not a tokenizer file"),
        (with_dropout, "at random (dropout 0.5)"),
        (with_stride, "stride"),
        (of_few_words, "cannot tokenize"),
        (untruncated, "tokens, the manifest says 24"),
        (unpadded, "tokens, the manifest says 24"),
    ],
)
def test_a_tokenizer_that_is_none_is_told_before_anything_is_embedded(copy, tmp_path, change, words):
    data = change((copy / "tokenizer.json").read_bytes())
    (copy / "tokenizer.json").write_bytes(data)
    put(copy, "tokenizer", "sha256", hashlib.sha256(data).hexdigest())
    put(copy, "tokenizer", "bytes", len(data))
    done = evaluate("run", str(copy), "--data", "demo:test", "-o", str(tmp_path / "results"))
    assert_refused(done, "tokenizer.json", words)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "results").exists()


def test_no_bundle(tmp_path):
    refuses(tmp_path / "none", "does not exist")
    refuses(tmp_path, "has no clipq.json")


def test_quantizing_a_damaged_bundle_leaves_nothing(copy):
    (copy / "image.onnx").write_bytes(b"")
    done = export("quantize", str(copy), "--recipe", "int8-static", "--calibration-set", str(CALIBRATION))
    assert_refused(done, "image.onnx")
    assert [path.name for path in copy.parent.iterdir()] == ["fp32"]
