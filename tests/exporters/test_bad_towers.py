"""Towers that cannot be quantized: weights that are no numbers, or too large, and files that are no graph."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, evaluate, export

from clipq.files import sha256_file

RECIPES = [
    "fp16", "int8-static", "int8-static:smoothing=0.5,form=matmulinteger,floats=fp16", "int8-dynamic", "int8-weight-only",
    "int4-weight-only", "int4-weight-only:algorithm=hqq", "int4-weight-only:algorithm=gptq",
    "int4-weight-only:algorithm=awq", "int4-weight-only:form=qdq,symmetric=true", "int2-weight-only", "simulated-w4a6",
]  # fmt: skip


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(DEMO_BUNDLE, tmp_path / "fp32")


def store(bundle, data, tower="image"):
    """Put a file in a tower's place, and its digest into the manifest: it is what it says it is."""
    path = bundle / f"{tower}.onnx"
    path.write_bytes(data)
    raw = json.loads((bundle / "clipq.json").read_text())
    raw[tower] |= {"sha256": sha256_file(path), "bytes": len(data)}
    (bundle / "clipq.json").write_text(json.dumps(raw))


def spoil(bundle, value, *, kind="MatMul", tower="image"):
    """Set one weight of the tower's first node of a kind; the initializer's name."""
    model = onnx.load(bundle / f"{tower}.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    name = next(name for node in model.graph.node if node.op_type == kind for name in node.input if name in stored)
    weight = numpy_helper.to_array(stored[name]).copy()
    weight.reshape(-1)[7] = value
    stored[name].CopyFrom(numpy_helper.from_array(weight, name))
    store(bundle, model.SerializeToString(), tower)
    return name


def quantize(bundle, recipe, *flags):
    return export("quantize", str(bundle), "--recipe", recipe, "--calibration-set", str(CALIBRATION), *flags)


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_that_are_no_numbers(bundle, recipe):
    name = spoil(bundle, np.nan)
    assert_refused(quantize(bundle, recipe), name, "not finite", "nan")
    assert [path.name for path in bundle.parent.iterdir()] == ["fp32"]


@pytest.mark.parametrize(("value", "kind"), [(np.inf, "MatMul"), (-np.inf, "LayerNormalization"), (np.nan, "Conv")])
def test_in_any_weight(bundle, value, kind):
    name = spoil(bundle, value, kind=kind)
    assert_refused(quantize(bundle, "int4-weight-only"), name, "not finite", str(value))


def test_the_other_tower_can_be_quantized(bundle, tmp_path):
    spoil(bundle, np.nan)
    assert quantize(bundle, "int8-dynamic", "--towers", "text").returncode == 0


def test_an_attention_mask_is_no_weight(bundle):
    """The text tower's holds zeros and minus infinity, or the least number there is."""
    model = onnx.load(bundle / "text.onnx")
    (mask,) = (v for v in model.graph.initializer if np.isinf(numpy_helper.to_array(v)).any())
    values = numpy_helper.to_array(mask)
    assert set(np.unique(values)) == {0, -np.inf}
    least = np.where(values < 0, np.finfo(np.float32).min, np.float32(0))
    mask.CopyFrom(numpy_helper.from_array(least, mask.name))
    store(bundle, model.SerializeToString(), "text")
    done = quantize(bundle, "fp16", "--towers", "text")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("recipe", ["fp16", "int8-weight-only:floats=fp16", "int8-static:floats=fp16"])
@pytest.mark.parametrize("value", [3e5, -7e4, 1e9])
def test_weights_beyond_half_precision(bundle, recipe, value):
    name = spoil(bundle, value, kind="LayerNormalization")
    assert_refused(quantize(bundle, recipe), name, f"{value:g}", "65504", "floats=fp32")
    assert [path.name for path in bundle.parent.iterdir()] == ["fp32"]


def test_weights_that_half_precision_rounds(bundle):
    spoil(bundle, 1e-9, kind="LayerNormalization")
    assert quantize(bundle, "fp16").returncode == 0


def graph(nodes, inputs=("image",), outputs=("image_features",)):
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names] for names in (inputs, outputs)]  # fmt: skip
    return helper.make_model(helper.make_graph(nodes, "g", *values), opset_imports=[helper.make_opsetid("", 21)])


def changed(change):
    model = onnx.load(DEMO_BUNDLE / "image.onnx")
    change(model)
    return model.SerializeToString()


WHOLE = (DEMO_BUNDLE / "image.onnx").read_bytes()
DAMAGED = {
    "empty": b"",
    "a byte": b"\x08",
    "random": random.Random(0).randbytes(5000),
    "text": b"<html><body>Please log in, location: here</body></html>",
    "half": WHOLE[: len(WHOLE) // 2],
    "without its end": WHOLE[:-1000],
    "holes": WHOLE[:500] + bytes(range(256)) + WHOLE[756:],
    "another message": graph([]).graph.SerializeToString(),
    "no nodes": graph([]).SerializeToString(),
    "no outputs": graph([helper.make_node("Relu", ["image"], ["y"])], outputs=()).SerializeToString(),
    "a circle": graph([helper.make_node("Add", ["image", "image_features"], ["image_features"])]).SerializeToString(),
    "unknown operator": graph([helper.make_node("Nonsense", ["image"], ["image_features"])]).SerializeToString(),
    "other names": graph([helper.make_node("Relu", ["x"], ["y"])], ("x",), ("y",)).SerializeToString(),
    "a missing weight": changed(lambda model: model.graph.initializer.pop(3)),
    "a shape that is none": changed(lambda model: model.graph.initializer[3].dims.append(-1)),
    "an endless shape": changed(lambda model: model.graph.initializer[3].dims.extend([2**40, 2**40])),
    "no type": changed(lambda model: setattr(model.graph.initializer[3], "data_type", 0)),
    "a type of another size": changed(lambda model: setattr(model.graph.initializer[3], "data_type", 10)),
    "no values": changed(lambda model: model.graph.initializer[3].ClearField("raw_data")),
    "no opset": changed(lambda model: model.ClearField("opset_import")),
    "an opset to come": changed(lambda model: setattr(model.opset_import[0], "version", 9999)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_files_that_are_no_tower(bundle, damage):
    store(bundle, DAMAGED[damage])
    for recipe in ("fp16", "int8-static"):
        assert_refused(quantize(bundle, recipe))
    for flag in ((), ("--simulated",)):
        done = evaluate("inspect", str(bundle), *flag)
        assert_refused(done)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    done = evaluate("run", str(bundle), "--simulated", "--data", "demo:test", "-o", str(bundle.parent / "out"))
    assert_refused(done)
    assert [path.name for path in bundle.parent.iterdir()] == ["fp32"]


def doubled(model):
    model.graph.initializer.append(model.graph.initializer[3])


def in_segments(model):
    model.graph.initializer[3].segment.end = 1


def read_elsewhere(model):
    weights = {tensor.name for tensor in model.graph.initializer}
    name = next(node.input[1] for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights)
    model.graph.node.append(helper.make_node("Identity", [name], ["weight"], name="weight"))
    model.graph.output.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, None))


GRAPHS = {
    "an output twice": lambda model: model.graph.output.append(model.graph.output[0]),
    "a second output": lambda model: model.graph.output.append(helper.make_empty_tensor_value_info("val_58")),
    "a weight as output": read_elsewhere,
    "another input": lambda model: model.graph.input.append(helper.make_tensor_value_info("x", 1, [None, 3])),
    "a weight twice": doubled,
    "a weight in segments": in_segments,
    "no operator": lambda model: setattr(model.graph.node[20], "op_type", ""),
}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("recipe", ["fp16", "int8-dynamic", "int8-static"])
def test_graphs_that_libraries_read_in_another_way(bundle, graph, recipe):
    """ONNX Runtime loads most of them: other libraries do not, or take another weight."""
    store(bundle, changed(GRAPHS[graph]))
    done = quantize(bundle, recipe, "--towers", "image")
    assert_refused(done, str(bundle / "image.onnx") if "put" not in graph else "image.onnx", "again")
    assert ".clipq-making" not in done.stderr and len(done.stderr.splitlines()) <= 2, done.stderr
    assert [path.name for path in bundle.parent.iterdir()] == ["fp32"]


def test_nodes_without_names(bundle, tmp_path):
    """Those to quantize are told by name: the same weights as ever become integers."""
    store(bundle, changed(lambda model: [node.ClearField("name") for node in model.graph.node]))
    kinds = []
    for source in (bundle, DEMO_BUNDLE):
        done = quantize(source, "int8-static", "--towers", "image", "-o", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
        graph = onnx.load(tmp_path / "out" / "int8-static-minmax-image-only" / "image.onnx").graph
        kinds.append([(node.op_type, len(node.input)) for node in graph.node])
    assert kinds[0] == kinds[1]
    assert quantize(bundle, "int4-weight-only:algorithm=hqq", "--towers", "image").returncode == 0


@pytest.mark.parametrize("recipe", ["fp16", "int4-weight-only:floats=fp16"])
def test_a_weight_that_vanishes_in_half_precision(bundle, recipe):
    """The converter would make every value of it its own smallest."""
    model = onnx.load(bundle / "image.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("ln_1.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e-9), weight.name))
    store(bundle, model.SerializeToString())
    assert_refused(quantize(bundle, recipe), weight.name, "half precision begins at", "floats=fp32")


@pytest.mark.parametrize("recipe", RECIPES)
def test_blocks_of_zeros(bundle, recipe):
    """As in pruned checkpoints: nothing is divided by their largest value."""
    model = onnx.load(bundle / "text.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and min(tensor.dims) >= 64:
            array = numpy_helper.to_array(tensor).copy()
            array[:32], array[:, 5] = 0, 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    store(bundle, model.SerializeToString(), "text")
    done = quantize(bundle, recipe, "--towers", "text")
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr


def test_weights_that_old_exporters_list_as_inputs(bundle, tmp_path):
    def listed(model):
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    store(bundle, changed(listed))
    for recipe in ("fp16", "int8-dynamic", "int4-weight-only:algorithm=hqq", "int8-static"):
        done = quantize(bundle, recipe, "--towers", "image", "-o", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
    for path in (tmp_path / "out").glob("*/image.onnx"):
        assert [value.name for value in onnx.load(path).graph.input] == ["image"]


@pytest.mark.parametrize("place", ["int8-dynamic", "int8-dynamic/fp32", "linked"])
def test_the_source_is_not_replaced_by_what_is_made_of_it(tmp_path, place):
    source = shutil.copytree(DEMO_BUNDLE, tmp_path / place)
    if place == "linked":
        (tmp_path / "int8-dynamic").symlink_to(source)
    elif source.name == "fp32":
        (source.parent / "clipq.json").write_text("{}")
    assert_refused(quantize(source, "int8-dynamic", "-o", str(tmp_path)), "where the FP32 bundle lies", "-o")
    assert sha256_file(source / "clipq.json") == sha256_file(DEMO_BUNDLE / "clipq.json")


def test_a_tokenizer_is_named_where_it_lies(bundle):
    """Not in the folder in which the new bundle was made."""
    (bundle / "tokenizer.json").write_text("{}")
    raw = json.loads((bundle / "clipq.json").read_text())
    raw["tokenizer"] |= {"sha256": sha256_file(bundle / "tokenizer.json"), "bytes": 2}
    (bundle / "clipq.json").write_text(json.dumps(raw))
    assert_refused(quantize(bundle, "fp16"), str(bundle / "tokenizer.json"))


def test_towers_in_folders_of_the_bundle(bundle):
    raw = json.loads((bundle / "clipq.json").read_text())
    (bundle / "towers").mkdir()
    for name in ("image", "text"):
        (bundle / f"{name}.onnx").rename(bundle / "towers" / f"{name}.onnx")
        raw[name]["file"] = f"towers/{name}.onnx"
    (bundle / "clipq.json").write_text(json.dumps(raw))
    assert quantize(bundle, "int8-dynamic").returncode == 0
    assert (bundle.parent / "int8-dynamic" / "towers" / "image.onnx").is_file()


@pytest.mark.parametrize("file", ["image.onnx", "./image.onnx", "clipq.json", "prompts.json"])
def test_a_file_of_two_meanings(bundle, file):
    """One made anew would be written over by the other."""
    raw = json.loads((bundle / "clipq.json").read_text())
    raw["text"] |= {"file": file, "sha256": sha256_file(bundle / file), "bytes": (bundle / file).stat().st_size}
    (bundle / "clipq.json").write_text(json.dumps(raw))
    assert_refused(quantize(bundle, "int8-dynamic"), "has two meanings")
