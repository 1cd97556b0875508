"""Each mistake, planted in a file of the demo's bundle, is named; what is right, or quantized, is not called wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import DEMO_BUNDLE

from clipq.bundle import open_bundle
from clipq.errors import EngineError
from clipq.exporters.adopt.diagnosis import compare_engines
from clipq.exporters.adopt.feeds import PixelFeed, TextFeed
from clipq.exporters.adopt.samples import Samples, default_samples
from clipq.files import sha256_file
from clipq.preprocess import preprocess
from clipq.tokenizer import TextTokenizer

REFERENCE = open_bundle(DEMO_BUNDLE)
CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


class Planted:
    """A copy of a bundle to plant mistakes in; ``open`` brings the manifest's digests up to date."""

    def __init__(self, folder, source=DEMO_BUNDLE):
        self.folder = shutil.copytree(source, folder)
        self.raw = json.loads((folder / "clipq.json").read_text())

    def preprocess(self, **fields):
        self.raw["preprocess"] |= fields

    def tokenizer(self, change):
        path = self.folder / "tokenizer.json"
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    def graph(self, tower, change):
        model = onnx.load(self.folder / f"{tower}.onnx")
        change(model.graph)
        onnx.save(model, self.folder / f"{tower}.onnx")

    def open(self):
        for name in ("image", "text", "tokenizer"):
            path = self.folder / self.raw[name]["file"]
            self.raw[name] |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        (self.folder / "clipq.json").write_text(json.dumps(self.raw))
        return open_bundle(self.folder)


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path / "adopted")


def in_front(*operators):
    """Nodes between a graph's input and what takes it: (operator, constant) or (operator, constant, attributes)."""

    def change(graph):
        name = graph.input[0].name
        for node in graph.node:
            node.input[:] = ["planted" if given == name else given for given in node.input]
        made = []
        for index, (operator, value, *attributes) in enumerate(operators):
            given = name if index == 0 else f"planted-{index}"
            out = "planted" if index == len(operators) - 1 else f"planted-{index + 1}"
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"planted-by-{index}"))
            made.append(helper.make_node(operator, [given, f"planted-by-{index}"], [out], **dict(*attributes)))
        for node in reversed(made):
            graph.node.insert(0, node)

    return change


def channels(values):
    return np.array(values, np.float32).reshape(1, 3, 1, 1)


def of_tower(comparison, tower):
    """The tower's comparison, the other one agreeing."""
    one, other = comparison.image, comparison.text
    if tower == "text":
        one, other = other, one
    assert other.verdict == "agrees", other
    return one


def named(found):
    return [one.name for one in found.explanations]


def assert_named(adopted, tower, *names, reference=REFERENCE):
    found = of_tower(compare_engines(adopted, reference), tower)
    assert found.verdict == "explained" and not found.agrees, found
    assert named(found) == list(names), found
    for one in found.explanations:
        assert one.also == () and one.rows > 0 and one.cosine_with > one.cosine_without, one
    assert found.explanations[-1].cosine_with >= 0.9999, found
    for name, sentence in zip(names, found.sentences[1:], strict=True):
        assert name in sentence and "\n" not in sentence
    return found


IN_THE_CONFIGURATION = {
    "missing normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]},
    "mean and std": CLIP,
    "0..255 in place of 0..1": {"mean": [0, 0, 0], "std": [1 / 255] * 3},
    "interpolation": {"interpolation": "bilinear"},
    "resize mode": {"resize_mode": "squash"},
}


@pytest.mark.parametrize("name", IN_THE_CONFIGURATION)
def test_a_mistake_in_the_configuration(planted, name):
    planted.preprocess(**IN_THE_CONFIGURATION[name])
    assert_named(planted.open(), "image", name)


def test_mean_and_std_of_0_to_255_without_scaling(planted):
    """As a configuration has them that turns the scaling off alone."""
    planted.preprocess(mean=[0.5 / 255] * 3, std=[0.25 / 255] * 3)
    assert_named(planted.open(), "image", "0..255 in place of 0..1")


def test_padding_in_place_of_a_crop(planted):
    planted.preprocess(resize_mode="longest", fill_color=128)
    assert_named(planted.open(), "image", "resize mode")


IN_THE_GRAPH = {
    "double normalization": [("Sub", channels([0.5] * 3)), ("Div", channels([0.25] * 3))],
    "missing normalization": [("Mul", channels([0.25] * 3)), ("Add", channels([0.5] * 3))],
    "scaled twice": [("Div", channels([255] * 3))],
    "BGR in place of RGB": [("Gather", np.array([2, 1, 0]), {"axis": 1})],
    "mean and std": [
        ("Mul", channels([0.25] * 3)), ("Add", channels([0.5] * 3)), ("Sub", channels(CLIP["mean"])), ("Div", channels(CLIP["std"])),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", IN_THE_GRAPH)
def test_a_mistake_in_the_graph_of_the_image_tower(planted, name):
    planted.graph("image", in_front(*IN_THE_GRAPH[name]))
    assert_named(planted.open(), "image", name)


def test_a_graph_that_scales_and_normalizes(planted):
    planted.graph("image", in_front(("Div", channels([255] * 3)), *IN_THE_GRAPH["double normalization"]))
    assert_named(planted.open(), "image", "scaled twice")


def test_a_graph_that_normalizes_plain_pixels_is_right(planted):
    planted.graph("image", in_front(*IN_THE_GRAPH["double normalization"]))
    planted.preprocess(**IN_THE_CONFIGURATION["missing normalization"])
    assert compare_engines(planted.open(), REFERENCE).agrees


def without_template(state):
    state["post_processor"] = None


def ends(*kept):
    def change(state):
        single = state["post_processor"]["single"]
        tokens = {"start": single[0], "text": single[1], "end": single[2]}
        state["post_processor"]["single"] = [tokens[name] for name in kept]

    return change


def pad(**fields):
    return lambda state: state["padding"].update(fields)


def shorter(state):
    state["truncation"]["max_length"] = 12


def cut_in_front(state):
    state["truncation"]["direction"] = "Left"


IN_THE_TOKENIZER = {
    "missing end token": ends("start", "text"),
    "missing start token": ends("text", "end"),
    "start token": ends("end", "text", "end"),
    "truncation": shorter,
}


@pytest.mark.parametrize("name", IN_THE_TOKENIZER)
def test_a_mistake_in_the_tokenizer(planted, name):
    planted.tokenizer(IN_THE_TOKENIZER[name])
    assert_named(planted.open(), "text", name)


def test_the_wrong_end_of_long_texts_is_cut(planted):
    planted.tokenizer(cut_in_front)
    assert_named(planted.open(), "text", "truncation")


def test_capitals_that_are_not_lowered(planted):
    planted.raw["tokenizer"]["cleaning"] = "whitespace"
    assert_named(planted.open(), "text", "lower-casing")


def test_punctuation_that_is_taken_out(planted):
    planted.raw["tokenizer"]["cleaning"] = "canonicalize"
    assert_named(planted.open(), "text", "text cleaning")


def test_other_ids_of_words(planted):
    def shuffled(state):
        words = [word for word in state["model"]["vocab"] if word.endswith("</w>") and len(word) > 6]
        ids = [state["model"]["vocab"][word] for word in words]
        state["model"]["vocab"].update(zip(words, ids[1:] + ids[:1], strict=True))

    planted.tokenizer(shuffled)
    assert_named(planted.open(), "text", "vocabulary")


def looks_at_padding(graph):
    """As SigLIP's text towers: no causal mask."""
    mask = next(tensor for tensor in graph.initializer if tensor.name.endswith("attn_mask"))
    mask.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(mask)), mask.name))


def test_padding_that_no_token_looks_at_is_no_mistake(planted):
    planted.tokenizer(pad(pad_id=886, pad_token="<end_of_text>"))
    assert compare_engines(planted.open(), REFERENCE).agrees


@pytest.mark.parametrize(("name", "change"), [("padding id", {"pad_id": 1}), ("padding side", {"direction": "Left"})])
def test_padding(planted, tmp_path, name, change):
    reference = Planted(tmp_path / "reference")
    for one in (reference, planted):
        one.graph("text", looks_at_padding)
    planted.tokenizer(pad(**change))
    assert_named(planted.open(), "text", name, reference=reference.open())


def pooled_by(kind):
    """The text tower's tokens pooled otherwise: its ArgMax, which finds the end token, is replaced, or the whole of it."""

    def change(graph):
        by = {node.op_type: node for node in graph.node}
        hidden, pooled = by["GatherND"].input[0], by["GatherND"].output[0]
        if kind == "mean":
            graph.initializer.append(numpy_helper.from_array(np.array([1]), "planted-axis"))
            node = helper.make_node("ReduceMean", [hidden, "planted-axis"], [pooled], keepdims=0)
        else:
            at = 0 if kind == "first" else 23
            graph.initializer.append(numpy_helper.from_array(np.array(at), "planted-at"))
            node = helper.make_node("Gather", [hidden, "planted-at"], [pooled], axis=1)
        graph.node.insert(list(graph.node).index(by["GatherND"]), node)
        graph.node.remove(by["GatherND"])

    return change


POOLINGS = {"mean": "the mean of all tokens", "first": "the first token", "last": "the last token"}


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_of_the_text_tower(planted, kind):
    planted.graph("text", pooled_by(kind))
    found = assert_named(planted.open(), "text", "pooling")
    assert POOLINGS[kind] in found.sentences[1]


def test_pooling_of_the_image_tower(planted):
    def change(graph):
        select = next(node for node in graph.node if node.output[0] == "select_12")
        graph.initializer.append(numpy_helper.from_array(np.array([1]), "planted-axis"))
        mean = helper.make_node("ReduceMean", [select.input[0], "planted-axis"], list(select.output), keepdims=0)
        graph.node.insert(list(graph.node).index(select), mean)
        graph.node.remove(select)

    planted.graph("image", change)
    assert_named(planted.open(), "image", "pooling")


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_projection_that_is_left_out(planted, tower):
    def change(graph):
        last = graph.node[-1]
        graph.node[-1].CopyFrom(helper.make_node("Identity", [last.input[0]], list(last.output)))

    planted.graph(tower, change)
    assert_named(planted.open(), tower, "projection")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1], "resize_mode": "squash"}}, {"missing normalization", "resize mode"}),
        ({"preprocess": {"interpolation": "bilinear", "resize_mode": "squash"}}, {"interpolation", "resize mode"}),
        ({"preprocess": CLIP, "graph": IN_THE_GRAPH["BGR in place of RGB"]}, {"mean and std", "BGR in place of RGB"}),
        ({"tokenizer": ends("text")}, {"missing start token", "missing end token"}),
        ({"tokenizer": ends("start", "text"), "cleaning": "whitespace"}, {"missing end token", "lower-casing"}),
    ],
)  # fmt: skip
def test_two_mistakes_at_once(planted, change, names):
    planted.preprocess(**change.get("preprocess", {}))
    planted.raw["tokenizer"]["cleaning"] = change.get("cleaning", "lower")
    if "graph" in change:
        planted.graph("image", in_front(*change["graph"]))
    if "tokenizer" in change:
        planted.tokenizer(change["tokenizer"])
    found = of_tower(
        compare_engines(planted.open(), REFERENCE), "text" if {"tokenizer", "cleaning"} & set(change) else "image"
    )
    assert set(named(found)) == names and found.verdict == "explained", found


def test_a_mistake_beside_one_that_is_not_known(planted):
    """What is explained is said, and that it is not all."""

    def noisy(graph):
        weight = next(tensor for tensor in graph.initializer if tensor.name.endswith("visual.proj"))
        array = numpy_helper.to_array(weight)
        noise = np.random.default_rng(0).normal(0, array.std() / 3, array.shape).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(array + noise, weight.name))

    planted.graph("image", noisy)
    planted.preprocess(**IN_THE_CONFIGURATION["missing normalization"])
    found = of_tower(compare_engines(planted.open(), REFERENCE), "image")
    assert found.verdict == "explained in part" and named(found) == ["missing normalization"]
    assert "what remains is not explained" in found.sentences[-1]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_another_network_is_no_known_mistake(planted, tower):
    def other(graph):
        rng = np.random.default_rng(0)
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and "mask" not in tensor.name:
                array = numpy_helper.to_array(tensor)
                drawn = rng.normal(0, array.std(), array.shape).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))

    planted.graph(tower, other)
    for fields in ({}, IN_THE_CONFIGURATION["resize mode"] | IN_THE_CONFIGURATION["mean and std"]):
        planted.preprocess(**fields if tower == "image" else {})
        found = of_tower(compare_engines(planted.open(), REFERENCE), tower)
        assert found.verdict == "not explained" and found.explanations == ()
        assert "no known mistake explains the difference" in found.sentences[0]


def test_one_answer_to_everything(planted):
    def blind(graph):
        graph.node.insert(0, helper.make_node("Sub", ["image", "image"], ["nothing"]))
        for node in list(graph.node)[1:]:
            node.input[:] = ["nothing" if name == "image" else name for name in node.input]

    planted.graph("image", blind)
    found = of_tower(compare_engines(planted.open(), REFERENCE), "image")
    assert found.verdict == "not explained" and "have one embedding" in found.sentences[0]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_what_is_no_number_is_refused(planted, tower):
    def spoiled(graph):
        tensor = next(t for t in graph.initializer if t.name == graph.node[-1].input[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name))

    planted.graph(tower, spoiled)
    with pytest.raises(EngineError, match=f"the adopted {tower} tower answers what is no direction .* 64 of 64"):
        compare_engines(planted.open(), REFERENCE)


def test_other_widths(planted):
    """Not compared row by row: how alike samples are to each other is."""

    def narrower(graph):
        tensor = next(t for t in graph.initializer if t.name == graph.node[-1].input[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, :64].copy(), tensor.name))
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64

    for tower in ("image", "text"):
        planted.graph(tower, narrower)
    planted.raw["embed_dim"] = 64
    comparison = compare_engines(planted.open(), REFERENCE)
    for found in (comparison.image, comparison.text):
        assert found.verdict == "not comparable" and found.similarity > 0.9 and not found.agrees
        assert "other widths" in found.sentences[0] and f"{found.similarity:.3f}" in found.sentences[0]


RIGHT = ["fp16", "int8-static-minmax", "int8-static-entropy", "int8-dynamic", "int8-weight-only-rtn", "int4-weight-only-hqq", "int2-weight-only-rtn"]  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_quantized_engine_that_is_right_is_not_called_wrong(bundles, name):
    found = compare_engines(open_bundle(bundles / name), REFERENCE)
    assert found.agrees and found.image.explanations == found.text.explanations == (), found
    assert all("agrees with the reference" in line for line in found.sentences)


@pytest.mark.parametrize("engine", ["int8-static-minmax", "int4-weight-only-hqq"])
@pytest.mark.parametrize("name", ["missing normalization", "mean and std", "resize mode"])
def test_a_mistake_is_told_beside_what_quantization_does(bundles, tmp_path, engine, name):
    planted = Planted(tmp_path / "adopted", bundles / engine)
    planted.preprocess(**IN_THE_CONFIGURATION[name])
    found = compare_engines(planted.open(), REFERENCE)
    assert named(found.image) == [name] and found.image.verdict == "explained", found.image
    assert found.text.agrees


@pytest.mark.parametrize("engine", ["int8-static-minmax", "int4-weight-only-hqq"])
@pytest.mark.parametrize("name", ["missing end token", "truncation", "lower-casing"])
def test_a_mistake_of_the_tokenizer_beside_quantization(bundles, tmp_path, engine, name):
    planted = Planted(tmp_path / "adopted", bundles / engine)
    if name == "lower-casing":
        planted.raw["tokenizer"]["cleaning"] = "whitespace"
    else:
        planted.tokenizer(IN_THE_TOKENIZER[name])
    found = compare_engines(planted.open(), REFERENCE)
    assert named(found.text) == [name] and found.text.verdict == "explained", found.text


def test_feeds_are_what_evaluation_feeds():
    samples = default_samples()
    assert (len(samples.images), len(samples.texts)) == (64, 64)
    pixels = np.stack([preprocess(image, REFERENCE.manifest.preprocess) for image in samples.images])
    assert np.array_equal(PixelFeed.of(REFERENCE).arrays(samples), pixels)
    assert np.array_equal(TextFeed.of(REFERENCE).arrays(samples), TextTokenizer(REFERENCE)(samples.texts))


def test_samples_of_ones_own():
    samples = default_samples()
    found = compare_engines(REFERENCE, REFERENCE, Samples(samples.images[:5], samples.texts[:3]))
    assert (found.image.samples, found.text.samples) == (5, 3) and found.agrees
