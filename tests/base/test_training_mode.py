"""A tower that was exported as it is trained answers otherwise every time: refused where its bundle is opened."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import DEMO_BUNDLE, assert_refused, evaluate

from clipq.bundle import open_bundle
from clipq.errors import BundleError
from clipq.files import sha256_file


def with_nodes(folder, nodes, tower="image", functions=(), **constants):
    """The demo bundle with nodes between the tower's last one and its output: they take ``raw`` and give the output."""
    bundle = shutil.copytree(DEMO_BUNDLE, folder)
    path = bundle / f"{tower}.onnx"
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.extend(nodes)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for function in functions:
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid(function.domain, 1))
    onnx.save(model, path)
    raw = json.loads((bundle / "clipq.json").read_text())
    raw[tower] |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    (bundle / "clipq.json").write_text(json.dumps(raw))
    return bundle


HALF = np.float32(0.5)


def dropout(told="told", inputs="raw", out="image_features"):
    return helper.make_node("Dropout", [inputs, "share", told], [out], name="dropout")


def told(value):
    return helper.make_node("Constant", [], ["told"], value=helper.make_tensor("told", TensorProto.BOOL, [], [value]))


def within_a_branch():
    inner = helper.make_graph([dropout(out="a")], "then", [], [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)])  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["raw"], ["b"])], "else", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])  # fmt: skip
    return helper.make_node("If", ["told"], ["image_features"], then_branch=inner, else_branch=other)


def function(training):
    """A function that is told whether it trains by who calls it."""
    body = [helper.make_node("Dropout", ["x", "p", "t"], ["y"], name="inner")]
    made = helper.make_function("own", "drop", ["x", "p", "t"], ["y"], body, [helper.make_opsetid("", 21)])
    return (
        [helper.make_node("drop", ["raw", "share", "told"], ["image_features"], domain="own")],
        [made],
        np.array(training),
    )


def noise(operator, *inputs, **attributes):
    return [
        helper.make_node(operator, list(inputs), ["noise"], name="drawn", **attributes),
        helper.make_node("Add", ["raw", "noise"], ["image_features"]),
    ]


RANDOM = {
    "RandomNormal": noise("RandomNormal", shape=[128]),
    "RandomNormalLike": noise("RandomNormalLike", "raw"),
    "RandomUniform": noise("RandomUniform", shape=[128], seed=1.0),
    "RandomUniformLike": noise("RandomUniformLike", "raw"),
    "Bernoulli": noise("Bernoulli", "half"),
    "Multinomial": [
        helper.make_node("Multinomial", ["raw"], ["drawn"], sample_size=128, name="drawn"),
        helper.make_node("Cast", ["drawn"], ["image_features"], to=TensorProto.FLOAT),
    ],
    "BatchNormalization": [
        helper.make_node("BatchNormalization", ["raw", "one", "one", "one", "one"], ["image_features", "m", "v"], training_mode=1)
    ],
}  # fmt: skip
CONSTANTS = {"half": np.full(128, HALF), "one": np.ones(128, np.float32)}


@pytest.mark.parametrize("operator", RANDOM)
def test_what_draws_is_refused_by_name(tmp_path, operator):
    bundle = with_nodes(tmp_path / "b", RANDOM[operator], **CONSTANTS)
    with pytest.raises(
        BundleError, match=rf"image.onnx: answers otherwise every time, for {operator} .*evaluation mode"
    ):
        open_bundle(bundle)


DROPOUTS = {
    "initializer": lambda value: ([dropout()], [], np.array(value)),
    "constant": lambda value: ([told(value), dropout()], [], None),
    "in a branch": lambda value: ([within_a_branch()], [], np.array(value)),
    "in a function": function,
}


@pytest.mark.parametrize("place", DROPOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_dropout_by_what_it_is_told(tmp_path, place, training):
    nodes, functions, value = DROPOUTS[place](training)
    constants = {"share": HALF} | ({} if value is None else {"told": value})
    bundle = with_nodes(tmp_path / "b", nodes, functions=functions, **constants)
    if training:
        with pytest.raises(BundleError, match=r"for Dropout .*is exported as it is trained"):
            open_bundle(bundle)
    else:
        assert open_bundle(bundle).manifest.embed_dim == 128


def test_dropout_that_anything_may_tell_to_train(tmp_path):
    some = helper.make_node("ReduceMax", ["share"], ["most"])
    cast = helper.make_node("Cast", ["most"], ["told"], to=TensorProto.BOOL)
    with pytest.raises(BundleError, match="Dropout"):
        open_bundle(with_nodes(tmp_path / "b", [some, cast, dropout()], share=HALF))


def test_dropout_that_is_told_nothing_is_off(tmp_path):
    node = helper.make_node("Dropout", ["raw"], ["image_features"])
    assert open_bundle(with_nodes(tmp_path / "b", [node]))


def test_words_in_weights_and_names_are_no_operators(tmp_path):
    node = helper.make_node("Add", ["raw", "RandomNormal"], ["image_features"], name="after Dropout")
    assert open_bundle(with_nodes(tmp_path / "b", [node], RandomNormal=np.zeros(128, np.float32)))


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_commands_refuse_it_in_a_line(tmp_path, command):
    node = helper.make_node("RandomNormalLike", ["raw"], ["noise"], name="drawn")
    add = helper.make_node("Add", ["raw", "noise"], ["text_features"])
    bundle = with_nodes(tmp_path / "b", [node, add], tower="text")
    more = ["--data", "demo:test", "-o", str(tmp_path / "out")] if command == "run" else []
    assert_refused(evaluate(command, str(bundle), *more), "text.onnx", "RandomNormalLike", "evaluation mode")
