"""Engines that others made: what their files take and give is read, and they answer as the same weights do in clipq's own."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from foreign_layouts import (
    LAYOUTS,
    LOGIT_SCALE,
    SIZE,
    TOKENS,
    before,
    behind,
    called,
    masked,
    of_batch,
    of_float16,
    of_int32,
    of_nhwc,
    of_unit_length,
    pair,
    save,
    shaped,
    stored,
    tower,
    with_hidden_states,
    write_preprocessor,
    write_tokenizer,
)
from onnx import TensorProto, helper
from support import DEMO_BUNDLE

import clipq
from clipq.bundle import TOWERS, Bundle, open_bundle
from clipq.engines.catalog import open_engine
from clipq.exporters.adopt.samples import default_samples
from clipq.exporters.cli import main
from clipq.files import sha256_file
from clipq.tokenizer import TextTokenizer


def cosines(bundle, name, count=11):
    """Of a bundle's embeddings with those of the built-in one, each fed as it says itself, by one rounding of crops."""
    both, mine, theirs = [], open_bundle(bundle), open_bundle(DEMO_BUNDLE).manifest
    rounding = {"library": mine.manifest.preprocess.library}
    preprocess = theirs.preprocess.model_copy(update=rounding)
    for one in (mine, Bundle(DEMO_BUNDLE, theirs.model_copy(update={"preprocess": preprocess}))):
        with open_engine(one, name, "ort-cpu") as engine:
            (found,) = engine.run(default_samples().feed(one, name, count)).values()
        found = found.astype(np.float64)
        both.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    return (both[0] * both[1]).sum(1)


def adopted(tmp_path, **given):
    return clipq.adopt(clipq.ForeignEngine(**given), tmp_path / "bundle")


def agrees(bundle, least=0.99999):
    for name in TOWERS:
        assert cosines(bundle, name).min() > least, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_as_they_come(layout, tmp_path):
    folder = LAYOUTS[layout](tmp_path / layout)
    says_all = layout == "clip-optimum"
    asked = {"folder": folder} | ({} if says_all else {"like": DEMO_BUNDLE})
    asked |= {"variant": "fp32"} if layout == "clip-transformers-js" else {}
    bundle = open_bundle(adopted(tmp_path, **asked))
    agrees(bundle.path)
    manifest = bundle.manifest
    assert manifest.recipe.scheme.is_fp32 and manifest.logit_scale == pytest.approx(LOGIT_SCALE, rel=1e-4)
    theirs = {sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    for name in TOWERS:
        assert {entry.sha256 for entry in manifest.tower(name).files()} <= theirs


def test_a_pair_of_plain_files_takes_all_else_of_a_bundle_like_it(tmp_path):
    pair(tmp_path / "them")
    bundle = adopted(tmp_path, image=tmp_path / "them/image.onnx", text=tmp_path / "them/text.onnx", like=DEMO_BUNDLE)
    agrees(bundle)
    sources = open_bundle(bundle).manifest.adopted.sources
    assert {sources[what] for what in ("preprocessing", "tokenizer", "logit scale")} == {"--like bundle"}


def positions(model):
    """With ``position_ids``; where they are not 0, 1, 2, … the embedding is not finite."""
    ids = helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", TOKENS])
    behind(
        model,
        helper.make_node("Equal", ["position_ids", stored(model, "in_order", np.arange(TOKENS)[None])], ["same"]),
        helper.make_node("Cast", ["same"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["ones"], ["divisor"], keepdims=0),
        helper.make_node("Div", ["raw", "divisor"], ["?"]),
    )
    model.graph.input.append(ids)
    return model


def positions_of_one_text(model):
    model = positions(model)
    shaped(model.graph.input[-1], TOKENS)
    return model


def taking(model, name, kind, *dims):
    """With one more input, which does nothing."""
    model.graph.input.append(helper.make_tensor_value_info(name, kind, dims))
    return model


INTERFACES = {
    "int32": ({}, {"of_text": of_int32}, 1),
    "float16": ({"of_image": of_float16}, {"of_text": of_float16}, 5e-3),
    "nhwc": ({"of_image": of_nhwc}, {}, 1),
    "unit": ({"of_image": of_unit_length}, {"of_text": of_unit_length}, 1),
    "batch 1": ({"of_image": partial(of_batch, size=1)}, {"of_text": partial(of_batch, size=1)}, 1),
    "batch 8": ({"of_image": partial(of_batch, size=8)}, {"of_text": partial(of_batch, size=8)}, 1),
    "hidden": ({"of_image": partial(with_hidden_states, tokens=37)}, {"of_text": partial(with_hidden_states, tokens=TOKENS)}, 1),
    "mask": ({}, {"of_text": masked}, 1),
    "positions": ({}, {"of_text": positions}, 1),
    "positions of one text": ({}, {"of_text": positions_of_one_text}, 1),
    "all": ({"of_image": lambda one: of_batch(of_nhwc(one), 3)}, {"of_text": lambda one: of_batch(of_int32(masked(one)), 2)}, 1),
}  # fmt: skip


@pytest.mark.parametrize("interface", INTERFACES)
def test_whatever_a_tower_takes_it_is_fed(interface, tmp_path):
    of_image, of_text, _ = INTERFACES[interface]
    pair(tmp_path / "them", **of_image, **of_text)
    bundle = adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)
    agrees(bundle, 0.9999 if interface == "float16" else 0.99999)
    scheme = open_bundle(bundle).manifest.recipe.scheme
    assert scheme.widths == ("W16A16" if interface == "float16" else "W32A32")


def test_one_batch_alone_is_used_and_said(tmp_path, monkeypatch):
    """In an evaluation, and by the stopwatch: the reference is timed at that batch as well, and beside it alone."""
    pair(tmp_path / "them", partial(of_batch, size=4), partial(of_batch, size=1))
    adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)
    monkeypatch.setattr("clipq.evaluate.bench.bench.ATTEMPTS", 1)
    suite = clipq.Suite(view=(clipq.View(source="demo:test:n=61"),), latency={"batches": (1, 8), "repeats": 3})
    (tmp_path / "bundle").rename(tmp_path / "them-adopted")
    found = clipq.evaluate([DEMO_BUNDLE, tmp_path / "them-adopted"], suite=suite, output=tmp_path / "out")
    reference, mine = (
        next(one.record for one in found.entries if (one.record.bundle.adopted is None) == own) for own in (True, False)
    )
    assert sorted((one.tower, one.batch) for one in mine.latency) == [("image", 4), ("text", 1)]
    timed = {(one.tower, one.batch) for one in reference.latency}
    assert timed == {("image", 1), ("image", 8), ("image", 4), ("text", 1), ("text", 8)}
    rows = {(row.view, row.group): row.delta for row in mine.measurements if row.metric == "latency_ms.p50"}
    assert set(rows) == {("tower:image", "batch=4"), ("tower:text", "batch=1")} and None not in rows.values()
    assert mine.bundle.adopted.sources["image batch"] == "fixed in the file: 4"
    agreement = next(row.value for row in mine.measurements if row.metric == "agreement")
    assert agreement == 1 and mine.unlike_reference == ()


def test_the_precision_is_the_graphs(tmp_path):
    folder = LAYOUTS["clip-transformers-js"](tmp_path / "js")
    bundle = open_bundle(adopted(tmp_path, folder=folder, variant="quantized", like=DEMO_BUNDLE))
    scheme = bundle.manifest.recipe.scheme
    assert (scheme.widths, scheme.arithmetic, scheme.method) == ("W8A8", "integer", "dynamic")
    assert bundle.manifest.recipe.options["text_products"] == "100 % W8A8 dynamic"


def test_the_precision_of_a_graph_within_a_graph(tmp_path):
    """As tools write models of two ways: everything lies in the branches."""
    folder = LAYOUTS["clip-transformers-js"](tmp_path / "js")
    path = folder / "onnx" / "vision_model_quantized.onnx"
    model = onnx.load(path)
    graph = model.graph
    branches = [onnx.GraphProto(name=f"branch{number}") for number in range(2)]
    for number, branch in enumerate(branches):
        branch.CopyFrom(onnx.GraphProto(name=branch.name, node=graph.node, initializer=graph.initializer))
        for one in branch.node:
            one.input[:] = [name and f"{name}{'' if name == graph.input[0].name else number}" for name in one.input]
            one.output[:] = [name and f"{name}{number}" for name in one.output]
        for tensor in branch.initializer:
            tensor.name += str(number)
        branch.output.append(onnx.ValueInfoProto(name=f"{graph.output[0].name}{number}"))
    for field in (graph.node, graph.initializer, graph.value_info):
        del field[:]
    stored(model, "which", np.array(True))
    names = dict(zip(("then_branch", "else_branch"), branches, strict=True))
    graph.node.append(helper.make_node("If", ["which"], [graph.output[0].name], **names))
    save(model, path)
    bundle = open_bundle(adopted(tmp_path, folder=folder, variant="quantized", like=DEMO_BUNDLE))
    assert bundle.manifest.recipe.options["image_products"] == "97 % W8A8 dynamic, 3 % W32A32 fp32"
    assert bundle.manifest.recipe.towers == ("image", "text")


def test_masks_are_what_the_tokenizer_says(tmp_path):
    """Of its own encodings, wherever it pads, with the end token or another."""
    state = json.loads((DEMO_BUNDLE / "tokenizer.json").read_text())
    bundle = open_bundle(DEMO_BUNDLE)
    texts = ["", "a", "a photo of a red cube", "word " * 50, "!"]
    for pad, direction in ((0, "Right"), (886, "Right"), (0, "Left"), (886, "Left")):
        copy = shutil.copytree(DEMO_BUNDLE, tmp_path / f"{pad}{direction}")
        state["padding"] |= {"pad_id": pad, "direction": direction}
        (copy / "tokenizer.json").write_text(json.dumps(state))
        tokenizer = TextTokenizer(type(bundle)(copy, bundle.manifest))
        wanted = [one.attention_mask for one in tokenizer._tokenizer.encode_batch(texts)]
        assert tokenizer.mask(tokenizer(texts)).tolist() == wanted, (pad, direction)


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json"])
def test_long_texts_are_cut_where_the_tokenizer_says(where, tmp_path):
    folder = pair(tmp_path / "them")
    write_tokenizer(folder)
    said = json.loads((folder / where).read_text())
    left = {"direction": "Left", "max_length": TOKENS, "strategy": "LongestFirst", "stride": 0}
    said |= {"truncation": left} if where == "tokenizer.json" else {"truncation_side": "left"}
    (folder / where).write_text(json.dumps(said))
    tokenizer = TextTokenizer(open_bundle(adopted(tmp_path, folder=folder, like=DEMO_BUNDLE)))
    long, short = tokenizer(["a red cube " * 30 + "and a blue cone", "and a blue cone"])
    tail = short[1 : tokenizer.mask(short[None]).sum()]
    assert (long[-len(tail) :] == tail).all() and long[0] == short[0]


@pytest.mark.parametrize(("name", "value", "said"), [
    ("pad_token", ["<pad>"], r"pads with \['<pad>'\], which .*tokenizer.json does not know"),
    ("padding_side", 5, r"tokenizer_config.json: padding_side 5: right or left"),
    ("truncation_side", "middle", r"tokenizer_config.json: truncation_side 'middle': right or left"),
])  # fmt: skip
def test_a_tokenizers_configuration_is_checked(name, value, said, tmp_path):
    folder = pair(tmp_path / "them")
    write_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(clipq.ClipqError, match=said):
        adopted(tmp_path, folder=folder, like=DEMO_BUNDLE)


def test_an_output_can_be_named(tmp_path):
    def twice(model):
        called(model, "text", "first")
        other = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 128])
        model.graph.node.append(helper.make_node("Neg", [model.graph.output[0].name], ["other"]))
        model.graph.output.append(other)
        return model

    pair(tmp_path / "them", of_text=twice)
    given = {"folder": tmp_path / "them", "like": DEMO_BUNDLE}
    with pytest.raises(
        clipq.ClipqError, match=r"which of first, other is the embedding\? say it with --text-output NAME"
    ):
        adopted(tmp_path, **given)
    with pytest.raises(clipq.ClipqError, match=r"--text-output othr: .*gives first, other; did you mean other\?"):
        adopted(tmp_path, **given, text_output="othr")
    agrees(adopted(tmp_path, **given, text_output="first"))
    assert cosines(adopted(tmp_path, **given, text_output="other"), "text").max() < -0.99999


def bad(tmp_path, name):
    """A folder with something wrong, and what the line must say."""
    folder = tmp_path / "them"
    pair(folder)
    if name == "half":
        (folder / "text.onnx").unlink()
        return folder, "holds the image tower image.onnx and no text tower; give them: --image FILE --text FILE"
    if name == "two image towers":
        shutil.copy(folder / "image.onnx", folder / "other.onnx")
        return folder, "holds 2 image towers (image.onnx, other.onnx)"
    if name == "variants":
        shutil.copy(folder / "image.onnx", folder / "image_q4.onnx")
        return folder, "choose one with --variant fp32 or q4"
    if name == "context length":
        write_tokenizer(folder)
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(said | {"model_max_length": 77}))
        return folder, "the text tower takes 24 tokens and tokenizer_config.json says 77"
    if name == "weights":
        save(called(tower("text"), "text", "text_embedding"), folder / "text.onnx", beside=True)
        (folder / "text.onnx.data").unlink()
        return folder, "keeps weights in text.onnx.data, which is not there"
    if name == "custom operator":
        model = behind(onnx.load(folder / "image.onnx"), helper.make_node("Npu", ["raw"], ["?"], domain="com.vendor"))
        model.opset_import.append(helper.make_opsetid("com.vendor", 3))
        save(model, folder / "image.onnx")
        return folder, "com.vendor:Npu(-1) is not a registered function/op (the file asks for operators of"
    if name == "newer opset":
        model = onnx.load(folder / "text.onnx")
        model.opset_import[0].version = 99
        save(model, folder / "text.onnx")
        return folder, "the file asks for operators of ai.onnx 99"
    if name == "widths":
        model = onnx.load(folder / "text.onnx")
        few = stored(model, "few", np.arange(96))
        save(behind(model, helper.make_node("Gather", ["raw", few], ["?"], axis=1)), folder / "text.onnx")
        return folder, "image_embedding has 128 columns and the text tower's text_embedding 96"
    if name == "hidden states":
        model = onnx.load(folder / "image.onnx")
        axis = stored(model, "axis", np.array([1]))
        behind(model, helper.make_node("Unsqueeze", ["raw", axis], ["?"]))
        shaped(model.graph.output[0], "batch", 1, 128)
        save(model, folder / "image.onnx")
        return folder, "for 3 rows, and no embedding for each; export the tower with its pooling"
    if name == "another input":
        model = onnx.load(folder / "image.onnx")
        model.graph.input.append(helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [1]))
        save(model, folder / "image.onnx")
        return folder, "takes 'temperature' (float32, 1) beside pixels, and nobody says what it is fed"
    if name == "size":
        write_preprocessor(folder)
        said = json.loads((folder / "preprocessor_config.json").read_text())
        larger = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
        (folder / "preprocessor_config.json").write_text(json.dumps(said | larger))
        return folder, "the image tower takes float32 [None, 3, 48, 48], it is given float32 [None, 3, 64, 64]"
    if name == "two files disagree":
        write_preprocessor(folder)
        shutil.copy(DEMO_BUNDLE.parent / "checkpoint" / "open_clip_config.json", folder)
        said = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(said | {"image_mean": [0.4, 0.5, 0.5]}))
        return folder, "open_clip_config.json and preprocessor_config.json disagree in mean"
    if name == "one embedding":
        model = onnx.load(folder / "text.onnx")
        save(
            before(model, helper.make_node("Mul", ["text", stored(model, "no", np.int64(0))], ["zeros"])),
            folder / "text.onnx",
        )
        return folder, "gives two different texts one embedding"
    raise AssertionError(name)


BAD = (
    "half", "two image towers", "variants", "context length", "weights", "custom operator", "newer opset", "widths",
    "hidden states", "another input", "size", "two files disagree", "one embedding",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_engine_is_told_in_a_line(name, tmp_path):
    folder, said = bad(tmp_path, name)
    done = CliRunner().invoke(main, ["adopt", str(folder), "--like", str(DEMO_BUNDLE), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2 and said in done.output, done.output
    assert len(done.output.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["them"]


@pytest.mark.parametrize(("of", "given", "said"), [
    ("image", ("bool_masked_pos", TensorProto.BOOL, "batch", 64), r"\(bool, batch × 64\) beside pixels"),
    ("image", ("pixel_attention_mask", TensorProto.INT64, "batch", 64), r"\(int64, batch × 64\) beside pixels"),
    ("image", ("pixel_mask", TensorProto.INT64, "batch", SIZE, SIZE), r"\(int64, batch × 48 × 48\) beside pixels"),
    ("text", ("attention_mask", TensorProto.FLOAT, "batch", 1, 24, 24), r"\(float32, batch × 1 × 24 × 24\) beside token"),
])  # fmt: skip
def test_masks_that_are_not_of_token_ids_are_not_fed(of, given, said, tmp_path):
    """All ones would hide every patch of an image, and say nothing."""
    pair(tmp_path / "them", **{f"of_{of}": lambda model: taking(model, *given)})
    with pytest.raises(clipq.ClipqError, match=f"takes '{given[0]}' {said}.*nobody says what it is fed"):
        adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)


def test_other_graphs_beside_the_towers_are_not_theirs(tmp_path):
    """A projection of embeddings is no tower; a graph of both whose interface is another says nothing of logits."""
    folder = pair(tmp_path / "them", of_float16, lambda model: called(model, "input_ids", "output"))
    made = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 128]) for name in ("x", "y")}
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "projection", [made["x"]], [made["y"]])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "head.onnx")
    shutil.copy(LAYOUTS["clip-optimum"](tmp_path / "both") / "model.onnx", folder / "model.onnx")
    bundle = adopted(tmp_path, folder=folder, like=DEMO_BUNDLE)
    agrees(bundle, 0.9999)
    assert open_bundle(bundle).manifest.adopted.sources["logit scale"] == f"--like {DEMO_BUNDLE.name}"
    (folder / "model.onnx").unlink()
    (folder / "image.onnx").unlink()
    shutil.rmtree(bundle)
    with pytest.raises(clipq.ClipqError, match=r"head.onnx: takes x: neither pixels .* export the tower with such"):
        adopted(tmp_path, folder=folder, like=DEMO_BUNDLE)


def test_what_nobody_says_is_asked_for(tmp_path):
    folder = pair(tmp_path / "them")
    for beside, said in (
        (lambda: None, "how are images resized and normalized?"),
        (lambda: write_preprocessor(folder), "no tokenizer.json lies beside the towers"),
        (lambda: write_tokenizer(folder), "the logit scale is in no file"),
    ):
        beside()
        with pytest.raises(clipq.ClipqError, match=said.replace("?", r"\?")):
            adopted(tmp_path, folder=folder)
    agrees(adopted(tmp_path, folder=folder, logit_scale=LOGIT_SCALE))
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.checkpoint.name == "adopted:them" and "imagenet-1k" in bundle.prompts.class_names


@pytest.mark.parametrize(("given", "said"), [
    ({}, "give FOLDER, or both towers: --image FILE --text FILE"),
    ({"image": "a.onnx"}, "give FOLDER, or both towers: --text FILE"),
    ({"folder": ".", "image": "a.onnx"}, "or --image and --text, not both"),
    ({"folder": "none"}, "no such file or folder"),
    ({"folder": "empty"}, "holds no .onnx, .plan or .engine file"),
])  # fmt: skip
def test_what_is_asked_for_is_checked_first(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(clipq.ClipqError, match=said):
        adopted(tmp_path, **given)


def test_a_file_that_ends_the_runtime_does_not_end_clipq(tmp_path, monkeypatch):
    monkeypatch.setattr("clipq.exporters.adopt.onnx_files._TRIAL", "import os; os.kill(os.getpid(), 11)")
    pair(tmp_path / "them")
    with pytest.raises(clipq.ClipqError, match="ends with signal 11 when it loads this file"):
        adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)


def test_adopted_engines_are_quantized_as_their_files_take_inputs(tmp_path):
    pair(tmp_path / "them", lambda one: of_batch(of_nhwc(one), 3), lambda one: of_int32(masked(one)))
    adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)
    from clipq.exporters.calibration_set import DEMO_SET

    made = clipq.quantize(
        tmp_path / "bundle", ["int8-static:ranges=minmax"], calibration=DEMO_SET, output=tmp_path / "made"
    )
    plain = clipq.quantize("demo", ["int8-static:ranges=minmax"], output=tmp_path / "plain")
    assert open_bundle(made[1]).manifest.adopted is None
    assert open_bundle(made[1]).manifest.recipe.scheme == open_bundle(plain[1]).manifest.recipe.scheme
    for name in TOWERS:
        assert np.median(cosines(made[1], name)) == pytest.approx(np.median(cosines(plain[1], name)), abs=2e-3)


def test_one_graph_of_both_is_not_quantized_by_towers(tmp_path):
    adopted(tmp_path, folder=LAYOUTS["clip-optimum"](tmp_path / "them"))
    with pytest.raises(clipq.ClipqError, match="is one graph of both towers"):
        clipq.quantize(tmp_path / "bundle", ["int8-dynamic"], output=tmp_path / "made")
    assert open_bundle(tmp_path / "bundle").manifest.size == (tmp_path / "them" / "model.onnx").stat().st_size


def test_sizes_are_those_of_the_demo():
    assert (SIZE, TOKENS) == (48, 24)


def plan(path, magic=b"vtrt", size=None, version=(1, 7, 1, 116)):
    body = b"\0" * 64
    head = magic + b"\0" * 12 + (28 + len(body) if size is None else size).to_bytes(8, "little") + bytes(version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + body)


def test_plans_are_adopted_by_their_headers(tmp_path):
    """Where no GPU runs them, inputs and outputs are those of the ONNX files they were built of."""
    for name in ("visual", "textual"):
        plan(tmp_path / "them" / f"{name}.plan")
    with pytest.raises(
        clipq.ClipqError, match="a plan tells its inputs and outputs on its GPU alone: give --like BUNDLE"
    ):
        adopted(tmp_path, folder=tmp_path / "them", logit_scale=1.0)
    bundle = open_bundle(adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE))
    assert bundle.built_for == "tensorrt-rtx" and bundle.manifest.text.plan.library == "tensorrt_rtx 1.7.1.116"
    assert bundle.manifest.recipe.scheme.widths == "bits unknown" and not bundle.manifest.recipe.scheme.is_fp32
    plan(tmp_path / "them" / "textual.plan", size=99)
    with pytest.raises(clipq.ClipqError, match="has 92 bytes and says 99; copy the plan again"):
        adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)
    plan(tmp_path / "them" / "textual.plan", magic=b"ftrt", version=(10, 13, 3, 9))
    with pytest.raises(clipq.ClipqError, match=r"built by tensorrt 10\.13\.3\.9 and by tensorrt_rtx 1\.7\.1\.116"):
        adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)


def test_scales_that_are_no_numbers_are_said(tmp_path):
    """ONNX Runtime's static quantizer leaves such behind a causal mask: the engine runs, at chance."""

    def scaled(model):
        scales = np.ones(128, np.float32)
        scales[3] = np.nan
        return behind(model, helper.make_node("Mul", ["raw", stored(model, "scales", scales)], ["all"]),
                      helper.make_node("IsNaN", ["all"], ["none"]),
                      helper.make_node("Where", ["none", stored(model, "zero", np.float32(0)), "all"], ["?"]))  # fmt: skip

    pair(tmp_path / "them", of_text=scaled)
    bundle = open_bundle(adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE))
    assert bundle.manifest.adopted.sources["text weights"] == "scales has 1 values that are not finite, the first nan"


def test_nothing_says_to_export_what_others_made(tmp_path):
    """Nobody can export it again: the way out must hold for bundles however they were made."""
    pair(tmp_path / "them")
    bundle = adopted(tmp_path, folder=tmp_path / "them", like=DEMO_BUNDLE)
    (bundle / "tokenizer.json").write_text("{}")
    manifest = json.loads((bundle / "clipq.json").read_text())
    manifest["tokenizer"] |= {"sha256": sha256_file(bundle / "tokenizer.json"), "bytes": 2}
    (bundle / "clipq.json").write_text(json.dumps(manifest))
    with pytest.raises(clipq.ClipqError, match="make the bundle again"):
        TextTokenizer(open_bundle(bundle))


def test_a_configuration_is_read_as_exporting_reads_it(tmp_path):
    """open_clip's own word for "any, in training" is bicubic in an engine."""
    folder = pair(tmp_path / "them")
    said = json.loads((DEMO_BUNDLE.parent / "checkpoint" / "open_clip_config.json").read_text())
    said["preprocess_cfg"]["interpolation"] = "random"
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    bundle = open_bundle(adopted(tmp_path, folder=folder, like=DEMO_BUNDLE))
    assert bundle.manifest.preprocess == open_bundle(DEMO_BUNDLE).manifest.preprocess
    assert bundle.manifest.adopted.sources["preprocessing"] == "open_clip_config.json"
