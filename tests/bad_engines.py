"""Engines that cannot be adopted, each wrong in one way: half of a pair, two towers of a kind, other context length, missing
external data, unknown operators, widths that differ, hidden states alone, two outputs that both may be the embedding.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.foreign.demo import BUNDLE, write_hub_files


def pair(folder: Path) -> None:
    for tower in ("image", "text"):
        shutil.copy(BUNDLE / f"{tower}.onnx", folder)


def half_of_a_pair(folder: Path) -> str:
    shutil.copy(BUNDLE / "image.onnx", folder / "visual.onnx")
    return "visual.onnx without textual.onnx"


def two_image_towers(folder: Path) -> str:
    shutil.copy(BUNDLE / "image.onnx", folder / "image.onnx")
    shutil.copy(BUNDLE / "image.onnx", folder / "text.onnx")
    return "text.onnx is an image tower"


def other_context_length(folder: Path) -> str:
    """The tokenizer's files say 77, the text tower takes 24."""
    pair(folder)
    tokenizer = json.loads((BUNDLE / "tokenizer.json").read_text())
    tokenizer["truncation"]["max_length"] = 77
    tokenizer["padding"]["strategy"] = {"Fixed": 77}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )
    return "text.onnx takes [batch, 24], tokenizer.json and tokenizer_config.json say 77"


def missing_external_data(folder: Path) -> str:
    for tower in ("image", "text"):
        name = f"{tower}.onnx"
        beside = {"save_as_external_data": True, "location": f"{name}.data", "size_threshold": 1024}
        onnx.save(onnx.load(str(BUNDLE / name)), str(folder / name), **beside)
    (folder / "text.onnx.data").unlink()
    return "text.onnx names text.onnx.data, which is not there"


def truncated_external_data(folder: Path) -> str:
    for tower in ("image", "text"):
        name = f"{tower}.onnx"
        beside = {"save_as_external_data": True, "location": f"{name}.data", "size_threshold": 1024}
        onnx.save(onnx.load(str(BUNDLE / name)), str(folder / name), **beside)
    data = folder / "image.onnx.data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    return "image.onnx.data ends half-way"


def custom_operator(folder: Path) -> str:
    pair(folder)
    model = onnx.load(str(folder / "image.onnx"))
    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("VendorNorm", ["before"], [output], name="last", domain="com.vendor.npu"))
    model.opset_import.append(helper.make_opsetid("com.vendor.npu", 3))
    onnx.save(model, str(folder / "image.onnx"))
    return "image.onnx ends in com.vendor.npu::VendorNorm (domain version 3), which no runtime here has"


def newer_opset(folder: Path) -> str:
    pair(folder)
    model = onnx.load(str(folder / "text.onnx"))
    model.opset_import[0].version = 99
    onnx.save(model, str(folder / "text.onnx"))
    return "text.onnx declares ai.onnx 99"


def newer_ir(folder: Path) -> str:
    pair(folder)
    model = onnx.load(str(folder / "text.onnx"))
    model.ir_version = 99
    onnx.save(model, str(folder / "text.onnx"))
    return "text.onnx declares IR version 99"


def unknown_operator(folder: Path) -> str:
    pair(folder)
    model = onnx.load(str(folder / "image.onnx"))
    node = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    node.op_type = "HyperNormalization"
    onnx.save(model, str(folder / "image.onnx"))
    return f"image.onnx has ai.onnx::HyperNormalization (node {node.name!r})"


def unknown_contrib_operator(folder: Path) -> str:
    """A quantized operator of ONNX Runtime's domain that this version does not have."""
    pair(folder)
    model = onnx.load(str(folder / "image.onnx"))
    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("QLinearErf", ["before"], [output], name="last", domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(folder / "image.onnx"))
    return "image.onnx ends in com.microsoft::QLinearErf (version 1), which ONNX Runtime does not have"


def other_widths(folder: Path) -> str:
    pair(folder)
    model = onnx.load(str(folder / "text.onnx"))
    output = model.graph.output[0]
    model.graph.node[-1].output[0] = "wide"
    model.graph.initializer.append(numpy_helper.from_array(np.eye(128, 96, dtype=np.float32), "narrowing"))
    model.graph.node.append(helper.make_node("MatMul", ["wide", "narrowing"], [output.name], name="narrow"))
    output.type.tensor_type.shape.dim[1].dim_value = 96
    onnx.save(model, str(folder / "text.onnx"))
    return "image embeddings have 128 numbers, text embeddings 96"


def hidden_states(folder: Path) -> str:
    """Both towers' last_hidden_state alone, as `CLIPModel.vision_model` gives it."""
    for tower, source, tokens in (("vision", "image", 37), ("text", "text", 24)):
        model = onnx.load(str(BUNDLE / f"{source}.onnx"))
        graph = model.graph
        pooled = graph.output[0].name
        shape = numpy_helper.from_array(np.array([1, tokens, 1], np.int64), "tokens")
        axes = numpy_helper.from_array(np.array([1], np.int64), "axis")
        graph.initializer.extend([shape, axes])
        graph.node.append(helper.make_node("Unsqueeze", [pooled, "axis"], ["one"]))
        graph.node.append(helper.make_node("Tile", ["one", "tokens"], ["last_hidden_state"]))
        del graph.output[:]
        value = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", tokens, 128])
        graph.output.append(value)
        onnx.save(model, str(folder / f"{tower}_model.onnx"))
    return "last_hidden_state [batch, tokens, 128] is the only output: no pooled embedding"


def two_candidates(folder: Path) -> str:
    pair(folder)
    model = onnx.load(str(folder / "image.onnx"))
    graph = model.graph
    old = graph.output[0].name
    graph.node.append(helper.make_node("Neg", [old], ["other"]))
    graph.node.append(helper.make_node("Identity", [old], ["one"]))
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 128]) for name in ("one", "other")
    )
    onnx.save(model, str(folder / "image.onnx"))
    return "image.onnx has outputs `one` and `other`, both [batch, 128]; `one` is the embedding"


def no_embedding(folder: Path) -> str:
    """A classifier's logits over 1000 classes where the image tower should be."""
    pair(folder)
    model = onnx.load(str(folder / "image.onnx"))
    output = model.graph.output[0]
    model.graph.node[-1].output[0] = "features"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((128, 1000), np.float32), "classifier"))
    model.graph.node.append(helper.make_node("MatMul", ["features", "classifier"], ["logits"], name="classify"))
    output.name = "logits"
    output.type.tensor_type.shape.dim[1].dim_value = 1000
    onnx.save(model, str(folder / "image.onnx"))
    return "image.onnx gives logits [batch, 1000], a classifier"


def not_onnx(folder: Path) -> str:
    pair(folder)
    (folder / "text.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 2219075\n")
    return "text.onnx is a Git LFS pointer"


def not_a_plan(folder: Path) -> str:
    (folder / "visual.plan").write_bytes(b"ptrt" + bytes(64))
    (folder / "textual.plan").write_bytes(b"ftrt" + bytes(64))
    return "plans of 68 bytes, one without TensorRT's magic"


def no_preprocessing(folder: Path) -> str:
    pair(folder)
    return "no preprocessing, no tokenizer, no logit scale: --like or options are needed"


def hub_without_tokenizer(folder: Path) -> str:
    pair(folder)
    write_hub_files(folder)
    return "open_clip_config.json names no tokenizer file: --like or --tokenizer is needed"


def nan_embeddings(folder: Path) -> str:
    pair(folder)
    model = onnx.load(str(folder / "text.onnx"))
    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nothing"))
    model.graph.node.append(helper.make_node("Add", ["before", "nothing"], [output], name="spoil"))
    onnx.save(model, str(folder / "text.onnx"))
    return "text.onnx answers NaN"


BAD: tuple[Callable[[Path], str], ...] = (
    half_of_a_pair,
    two_image_towers,
    other_context_length,
    missing_external_data,
    truncated_external_data,
    custom_operator,
    newer_opset,
    newer_ir,
    unknown_operator,
    unknown_contrib_operator,
    other_widths,
    hidden_states,
    two_candidates,
    no_embedding,
    not_onnx,
    not_a_plan,
    no_preprocessing,
    hub_without_tokenizer,
    nan_embeddings,
)


def main(folder: Path) -> None:
    for make in BAD:
        target = folder / "bad" / make.__name__.replace("_", "-")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        wrong = make(target)
        print(f"- `bad/{target.name}`: {wrong}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
