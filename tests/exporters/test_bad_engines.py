"""Engines whose files are damaged, or of operators and outputs that cannot be taken: one line that names what is wrong.

What is missing beside good files is in ``test_adopt``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_layouts import WIDTH, behind, pair, save, stored, tower
from onnx import TensorProto, helper
from support import DEMO_BUNDLE, assert_refused, export

Words = tuple[str, ...]


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


def operator_of_another_runtime(folder: Path) -> Words:
    """A quantized operator in ONNX Runtime's domain that this ONNX Runtime does not have."""
    _with_last(folder, "com.microsoft", "QLinearErf", 1)
    return ("com.microsoft:QLinearErf", "com.microsoft 1")


def unknown_operator(folder: Path) -> Words:
    model = tower("image")
    next(node for node in model.graph.node if node.op_type == "LayerNormalization").op_type = "HyperNormalization"
    save(model, pair(folder) / "image.onnx")
    return ("HyperNormalization",)


def newer_format(folder: Path) -> Words:
    model = tower("text")
    model.ir_version = 99
    save(model, pair(folder) / "text.onnx")
    return ("text.onnx", "IR version", "99")


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
    cut_weights,
    operator_of_another_runtime,
    unknown_operator,
    newer_format,
    two_embeddings,
    classifier,
    pointer,
    no_plan,
    not_finite,
)


@pytest.mark.parametrize("write", BAD, ids=lambda write: write.__name__)
def test_refused(tmp_path, write):
    words = write(tmp_path / "engine")
    done = export("adopt", tmp_path / "engine", "--like", DEMO_BUNDLE, "-o", tmp_path / "bundle")
    assert_refused(done, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine"]
