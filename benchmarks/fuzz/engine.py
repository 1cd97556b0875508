"""An engine of a few kilobytes: towers, tokenizer, prompts and manifest, so that a command takes a fraction of a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipq.files import sha256_bytes

SIZE, WIDTH, TOKENS = 16, 16, 8
CLASSES = ("cat", "dog", "tree", "house")
# What a mutation can break is in it: two sets of templates, class names by data set.
PROMPTS = {
    "templates": {"imagenet-80": ["a photo of a {}.", "a {}."], "simple-7": ["{}"]},
    "class_names": {"tiny": list(CLASSES)},
}


def write_engine(folder: Path) -> Path:
    """Write an FP32 bundle of random weights, the same ones each time."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["<pad>", "<unk>", "a", "photo", "of", ".", *CLASSES]
    files = {
        "image.onnx": _image_tower(rng),
        "text.onnx": _text_tower(rng, len(words)),
        "tokenizer.json": json.dumps(_tokenizer(words)).encode(),
        "prompts.json": json.dumps(PROMPTS).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    stored = {name: stored_file(name, content) for name, content in files.items()}
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "checkpoint": {"name": "tiny", "weights_sha256": None},
        "recipe": {
            "name": "fp32", "options": {}, "towers": ["image", "text"], "calibration": None, "source_digest": None,
        },
        "image": {
            **stored["image.onnx"], "input_name": "image", "input_dtype": "float32",
            "input_shape": [None, 3, SIZE, SIZE], "output_name": "image_features", "recipe": "fp32",
            "parity": [{"batch": 1, "max_abs": 1e-7, "cosine": 1.0}],
        },
        "text": {
            **stored["text.onnx"], "input_name": "text", "input_dtype": "int64", "input_shape": [None, TOKENS],
            "output_name": "text_features", "recipe": "fp32", "parity": [],
        },
        "embed_dim": WIDTH, "logit_scale": 20.0, "logit_bias": None,
        "preprocess": {
            "image_size": [SIZE, SIZE], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
        },
        "tokenizer": {**stored["tokenizer.json"], "cleaning": "lower", "context_length": TOKENS},
        "prompts": stored["prompts.json"],
        "environment": {"clipq": "0.1.0"},
    }  # fmt: skip
    (folder / "clipq.json").write_text(json.dumps(manifest, indent=2))
    return folder


def stored_file(name: str, content: bytes) -> dict[str, Any]:
    """How a manifest names a file."""
    return {"file": name, "sha256": sha256_bytes(content), "bytes": len(content)}


def sign(folder: Path, name: str) -> None:
    """Put the digest of a changed file into the manifest, as its author would have."""
    manifest = json.loads((folder / "clipq.json").read_text())
    for entry in manifest.values():
        if isinstance(entry, dict) and entry.get("file") == name:
            entry.update(stored_file(name, (folder / name).read_bytes()))
    (folder / "clipq.json").write_text(json.dumps(manifest, indent=2))


def _image_tower(rng: np.random.Generator) -> bytes:
    patches = (SIZE // 8) ** 2 * 8
    weights = {
        "patch": rng.standard_normal((8, 3, 8, 8)) / 14, "flat": np.array([0, -1]),
        "first": rng.standard_normal((patches, 32)) / 6, "bias": rng.standard_normal(32) / 6,
        "last": rng.standard_normal((32, WIDTH)) / 6,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "patch"], ["patches"], strides=[8, 8]),
        helper.make_node("Reshape", ["patches", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "first"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["kept"]),
        helper.make_node("MatMul", ["kept", "last"], ["image_features"]),
    ]
    return _model(nodes, ("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE]), "image_features", weights)


def _text_tower(rng: np.random.Generator, words: int) -> bytes:
    weights = {
        "table": rng.standard_normal((words, 32)), "places": rng.standard_normal((TOKENS, 32)) / 4,
        "first": rng.standard_normal((32, 32)) / 6, "last": rng.standard_normal((32, WIDTH)) / 6, "axis": np.array([1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "text"], ["tokens"]),
        helper.make_node("Add", ["tokens", "places"], ["placed"]),
        helper.make_node("MatMul", ["placed", "first"], ["product"]),
        helper.make_node("Relu", ["product"], ["kept"]),
        helper.make_node("ReduceMean", ["kept", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "last"], ["text_features"]),
    ]
    return _model(nodes, ("text", TensorProto.INT64, ["batch", TOKENS]), "text_features", weights)


def _model(
    nodes: list[onnx.NodeProto], fed: tuple[str, int, list[Any]], answer: str, weights: dict[str, np.ndarray]
) -> bytes:
    name, kind, shape = fed
    stored = [
        numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), key)
        for key, value in weights.items()
    ]
    graph = helper.make_graph(
        nodes, "tower", [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(answer, TensorProto.FLOAT, ["batch", WIDTH])], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


def _tokenizer(words: list[str]) -> dict[str, Any]:
    return {
        "version": "1.0", "added_tokens": [], "normalizer": None,
        "truncation": {"direction": "Right", "max_length": TOKENS, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": TOKENS}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<pad>",
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: number for number, word in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip
