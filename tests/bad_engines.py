"""Engines that cannot be adopted, each wrong in one way: of what is written into a folder, what the refusal has to name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from foreign_layouts import TOKENS, WIDTH, behind, pair, save, stored, tower, write_preprocessor, write_tokenizer
from onnx import TensorProto, helper

Words = tuple[str, ...]


def half_of_a_pair(folder: Path) -> Words:
    save(tower("image"), folder / "visual.onnx")
    return ("visual.onnx", "--text FILE")


def two_image_towers(folder: Path) -> Words:
    save(tower("image"), folder / "image.onnx")
    save(tower("image"), folder / "text.onnx")
    return ("2 image towers", "image.onnx", "text.onnx")


def other_context_length(folder: Path) -> Words:
    """The tokenizer's files say 77, the text tower takes 24."""
    pair(folder)
    write_preprocessor(folder)
    write_tokenizer(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
    return (str(TOKENS), "77", "tokenizer_config.json")


def missing_weights(folder: Path) -> Words:
    for name in ("image", "text"):
        save(tower(name), folder / f"{name}.onnx", beside=True)
    (folder / "text.onnx.data").unlink()
    return ("text.onnx.data", "not there")


def cut_weights(folder: Path) -> Words:
    for name in ("image", "text"):
        save(tower(name), folder / f"{name}.onnx", beside=True)
    data = folder / "image.onnx.data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    return ("image.onnx", "out of bounds")


def _with_last(folder: Path, domain: str, operator: str, version: int) -> None:
    model = behind(tower("image"), helper.make_node(operator, ["raw"], ["?"], name="last", domain=domain))
    model.opset_import.append(helper.make_opsetid(domain, version))
    save(model, pair(folder) / "image.onnx")


def custom_operator(folder: Path) -> Words:
    _with_last(folder, "com.vendor.npu", "VendorNorm", 3)
    return ("com.vendor.npu:VendorNorm", "com.vendor.npu 3")


def operator_of_another_runtime(folder: Path) -> Words:
    """A quantized operator in ONNX Runtime's domain that this ONNX Runtime does not have."""
    _with_last(folder, "com.microsoft", "QLinearErf", 1)
    return ("com.microsoft:QLinearErf", "com.microsoft 1")


def unknown_operator(folder: Path) -> Words:
    model = tower("image")
    next(node for node in model.graph.node if node.op_type == "LayerNormalization").op_type = "HyperNormalization"
    save(model, pair(folder) / "image.onnx")
    return ("HyperNormalization",)


def newer_opset(folder: Path) -> Words:
    model = tower("text")
    model.opset_import[0].version = 99
    save(model, pair(folder) / "text.onnx")
    return ("text.onnx", "99")


def newer_format(folder: Path) -> Words:
    model = tower("text")
    model.ir_version = 99
    save(model, pair(folder) / "text.onnx")
    return ("text.onnx", "IR version", "99")


def other_widths(folder: Path) -> Words:
    model = tower("text")
    narrow = stored(model, "narrow", np.eye(WIDTH, 96, dtype=np.float32))
    behind(model, helper.make_node("MatMul", ["raw", narrow], ["?"]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 96
    save(model, pair(folder) / "text.onnx")
    return (str(WIDTH), "96")


def hidden_states(folder: Path) -> Words:
    """``last_hidden_state`` alone, as a tower without its pooling and projection gives it."""
    model = tower("image")
    axis, times = stored(model, "axis", np.array([1])), stored(model, "times", np.array([1, 37, 1]))
    behind(
        model,
        helper.make_node("Unsqueeze", ["raw", axis], ["one"]),
        helper.make_node("Tile", ["one", times], ["?"]),
    )
    output = model.graph.output[0]
    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["batch", 37, WIDTH]))
    save(model, pair(folder) / "image.onnx")
    return ("37", "pooling")


def two_embeddings(folder: Path) -> Words:
    model = tower("image")
    model.graph.node.append(helper.make_node("Neg", [model.graph.output[0].name], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", WIDTH]))
    model.graph.output[0].name = model.graph.node[-2].output[0] = model.graph.node[-1].input[0] = "one"
    save(model, pair(folder) / "image.onnx")
    return ("one", "other", "--image-output")


def classifier(folder: Path) -> Words:
    model = tower("image")
    head = stored(model, "head", np.ones((WIDTH, 1000), np.float32))
    model.graph.node[-1].output[0] = "features"
    model.graph.node.append(helper.make_node("MatMul", ["features", head], ["logits"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000]))
    save(model, pair(folder) / "image.onnx")
    return ("logits", "1000")


def pointer(folder: Path) -> Words:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 2219075\n"
    (pair(folder) / "text.onnx").write_text(text)
    return ("text.onnx", "git lfs pull")


def no_plan(folder: Path) -> Words:
    folder.mkdir()
    for name in ("visual", "textual"):
        (folder / f"{name}.plan").write_bytes(b"gibberish" * 9)
    return ("visual.plan", "trtexec")


def not_finite(folder: Path) -> Words:
    model = tower("text")
    behind(model, helper.make_node("Add", ["raw", stored(model, "nan", np.float32(np.nan))], ["?"]))
    save(model, pair(folder) / "text.onnx")
    return ("text.onnx", "not finite")


BAD: tuple[Callable[[Path], Words], ...] = (
    half_of_a_pair,
    two_image_towers,
    other_context_length,
    missing_weights,
    cut_weights,
    custom_operator,
    operator_of_another_runtime,
    unknown_operator,
    newer_opset,
    newer_format,
    other_widths,
    hidden_states,
    two_embeddings,
    classifier,
    pointer,
    no_plan,
    not_finite,
)
