"""Towers whose weights lie beside the graph: every file counts, and every recipe makes what it makes of one file.

The limit of one file is lowered, so that the demo's small towers go every way that those over 2 GB go.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from support import CALIBRATION, DEMO_BUNDLE, RECIPES, assert_refused, evaluate, export

from clipq.bundle import SCHEMA_VERSION, Manifest, open_bundle, stored_tower, write_manifest
from clipq.engines.ort import OrtEngine
from clipq.errors import BundleError
from clipq.evaluate.bench.bench import plausible_feed
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.sweep import shipping
from clipq.exporters import onnx_file, quantize
from clipq.exporters.cli import main
from clipq.exporters.recipes import Int8Dynamic
from clipq.onnx_graph import data_files

TOWERS = ("image", "text")


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_INLINE", 100_000)
    monkeypatch.setattr(quantize, "SHARE_BYTES", 100_000)


def rewrite(folder, **towers):
    """Take files of a bundle as they are now into its manifest, with other changes to a tower's entry."""
    manifest = open_bundle(DEMO_BUNDLE).manifest
    update = {
        name: manifest.tower(name).model_copy(update=stored_tower(folder, f"{name}.onnx") | towers.get(name, {}))
        for name in TOWERS
    }
    write_manifest(folder, manifest.model_copy(update=update))
    return folder


def outside(folder):
    """The demo bundle with the weights of both towers beside their graphs."""
    shutil.copytree(DEMO_BUNDLE, folder)
    for name in TOWERS:
        path = folder / f"{name}.onnx"
        model = onnx.load(path)
        path.unlink()
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    return rewrite(folder)


@pytest.fixture
def bundle(tmp_path):
    return outside(tmp_path / "fp32")


def content(path):
    """Nodes, and initializers by name, of a model wherever its weights lie."""
    graph = onnx.load(path).graph
    return list(graph.node), {value.name: numpy_helper.to_array(value).tobytes() for value in graph.initializer}


def quantized(bundle, *arguments):
    done = CliRunner().invoke(main, ["quantize", str(bundle), "--calibration-set", str(CALIBRATION), *arguments])
    assert done.exit_code == 0, done.output


def test_every_recipe_makes_the_same_of_a_large_tower(small_files, bundle, bundles, tmp_path):
    quantized(bundle, *(flag for recipe in RECIPES.values() for flag in ("--recipe", recipe)), "-o", str(tmp_path))
    for name in RECIPES:
        made = open_bundle(tmp_path / name)
        for tower in TOWERS:
            assert [entry.file for entry in made.manifest.tower(tower).data] == [f"{tower}.onnx.data"], name
            assert content(made.tower_path(tower)) == content(bundles / name / f"{tower}.onnx"), name
        assert {path.name for path in made.path.iterdir()} == {entry.file for entry in made.manifest.files()} | {
            "clipq.json"
        }


OTHERS = {
    "int8-static-minmax-smoothing0.5-fp16-matmulinteger": "int8-static:smoothing=0.5,form=matmulinteger,floats=fp16",
    "int8-static-minmax-attention": "int8-static:attention=true",
    "int4-weight-only-gptq": "int4-weight-only:algorithm=gptq",
    "int4-weight-only-awq-fp16": "int4-weight-only:algorithm=awq,floats=fp16",
    "simulated-w4a6": "simulated-w4a6",
}


def test_so_do_the_recipes_that_run_the_tower(bundle, bundles, tmp_path, monkeypatch):
    flags = [flag for recipe in OTHERS.values() for flag in ("--recipe", recipe)]
    quantized(bundles / "fp32", *flags, "-o", str(tmp_path / "one"))
    monkeypatch.setattr(onnx_file, "MOST_INLINE", 100_000)
    monkeypatch.setattr(quantize, "SHARE_BYTES", 100_000)
    quantized(bundle, *flags, "-o", str(tmp_path / "two"))
    for name in OTHERS:
        for tower in TOWERS:
            assert content(tmp_path / "one" / name / f"{tower}.onnx") == content(
                tmp_path / "two" / name / f"{tower}.onnx"
            )


def test_what_fits_one_file_again_is_one(bundle, bundles, tmp_path):
    quantized(bundle, "--recipe", "fp16", "--recipe", "int8-static", "-o", str(tmp_path))
    for name in ("fp16", "int8-static-minmax"):
        made = open_bundle(tmp_path / name)
        assert made.manifest.image.data == made.manifest.text.data == ()
        assert content(made.tower_path("image")) == content(bundles / name / "image.onnx")


def test_gptq_in_groups_is_gptq(bundles, tmp_path, monkeypatch):
    recipe = ("--recipe", "int4-weight-only:algorithm=gptq")
    quantized(bundles / "fp32", *recipe, "-o", str(tmp_path / "one"))
    calls = []
    moments = quantize.second_moments
    monkeypatch.setattr(quantize, "second_moments", lambda *given: calls.append(given[1]) or moments(*given))
    monkeypatch.setattr(quantize, "MOMENTS_BYTES", 8 * 128**2 * 3)
    quantized(bundles / "fp32", *recipe, "-o", str(tmp_path / "many"))
    assert len(calls) > 6 and all(len(group) <= 3 for group in calls)
    for tower in TOWERS:
        one, many = (onnx.load(tmp_path / name / "int4-weight-only-gptq" / f"{tower}.onnx") for name in ("one", "many"))
        for mine, theirs in zip(one.graph.initializer, many.graph.initializer, strict=True):
            assert (numpy_helper.to_array(mine) != numpy_helper.to_array(theirs)).mean() < 1e-3


def test_the_tower_that_is_not_quantized_brings_its_weights(bundle, tmp_path):
    done = export("quantize", str(bundle), "--recipe", "int8-dynamic", "--towers", "text", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    made, source = open_bundle(tmp_path / "int8-dynamic-text-only"), open_bundle(bundle)
    assert made.manifest.image == source.manifest.image and made.manifest.image.data
    with OrtEngine(made.tower_path("image")) as engine:
        assert np.isfinite(engine.run(plausible_feed(made, "image", 2))["image_features"]).all()


def test_every_file_of_a_tower_counts(bundle):
    manifest = open_bundle(bundle).manifest
    assert manifest.schema_version == SCHEMA_VERSION and len(manifest.files()) == 6
    assert manifest.image.size == sum((bundle / f"image.onnx{end}").stat().st_size for end in ("", ".data"))


def test_other_weights_are_another_engine(bundle, tmp_path):
    """The graphs are the same to the byte, and so are the manifests but for the digest of the weights."""
    other = shutil.copytree(bundle, tmp_path / "other")
    data = bytearray((other / "image.onnx.data").read_bytes())
    data[:4096] = data[4096:8192]
    (other / "image.onnx.data").write_bytes(data)
    rewrite(other)
    one, two = (Subject(open_bundle(path), "ort-cpu", 0) for path in (bundle, other))
    assert one.bundle.manifest.image.sha256 == two.bundle.manifest.image.sha256
    assert one.bundle.digest != two.bundle.digest
    assert one.identity("image") != two.identity("image") and one.identity("text") == two.identity("text")


@pytest.mark.parametrize("spoil", ["change", "shorten", "remove"])
def test_weights_that_changed_are_refused(bundle, spoil):
    path = bundle / "image.onnx.data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if spoil == "remove" else path.write_bytes(data if spoil == "change" else data[:-1])
    words = "image.onnx.data", "is missing" if spoil == "remove" else "does not match the digest"
    assert_refused(evaluate("inspect", str(bundle)), *words)


def test_weights_that_the_manifest_does_not_list_are_refused(bundle, tmp_path):
    rewrite(bundle, image={"data": ()})
    words = "image.onnx keeps weights in image.onnx.data", "does not list"
    assert_refused(evaluate("inspect", str(bundle)), *words)
    assert_refused(export("quantize", str(bundle), "--recipe", "fp16", "-o", str(tmp_path)), *words)
    raw = json.loads((bundle / "clipq.json").read_text())
    del raw["image"]["data"], raw["text"]["data"]
    (bundle / "clipq.json").write_text(json.dumps(raw | {"schema_version": 3}))
    assert_refused(evaluate("inspect", str(bundle)), *words)


@pytest.mark.parametrize("where", ["../weights", "/etc/hostname", "a/../../weights", "", "*/_ORT_MEM_ADDR_/*"])
def test_weights_outside_the_bundle_are_refused(bundle, where):
    model = onnx.load(bundle / "image.onnx", load_external_data=False)
    for entry in next(tensor for tensor in model.graph.initializer if tensor.external_data).external_data:
        if entry.key == "location":
            entry.value = where
    onnx.save(model, bundle / "image.onnx")
    (bundle.parent / "weights").write_bytes((bundle / "image.onnx.data").read_bytes())
    raw = json.loads((bundle / "clipq.json").read_text())
    stored = {"bytes": (bundle / "image.onnx").stat().st_size, "sha256": onnx_sha(bundle / "image.onnx")}
    raw["image"] |= stored
    (bundle / "clipq.json").write_text(json.dumps(raw))
    assert_refused(evaluate("inspect", str(bundle)), "image.onnx", "keeps weights in")


def onnx_sha(path):
    from clipq.files import sha256_file

    return sha256_file(path)


def test_a_manifest_cannot_list_weights_outside(bundle):
    raw = json.loads((bundle / "clipq.json").read_text())
    raw["image"]["data"][0]["file"] = "../weights"
    (bundle / "clipq.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle)


def test_older_manifests_have_no_data():
    raw = json.loads((DEMO_BUNDLE / "clipq.json").read_text())
    assert raw["schema_version"] < 4 and "data" not in raw["image"]
    assert open_bundle(DEMO_BUNDLE).manifest.image.data == ()
    assert Manifest.model_validate_json((rewritten := open_bundle(DEMO_BUNDLE).manifest).model_dump_json()) == rewritten


def test_evaluation_of_weights_beside_the_graph(bundle, tmp_path):
    shutil.copytree(DEMO_BUNDLE, tmp_path / "one")
    done = evaluate(
        "run", str(bundle), str(tmp_path / "one"), "--reference", "one", "--data", "demo:test:n=200",
        "--repeats", "3", "-o", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir()}
    (ours,) = (one for name, one in records.items() if name.startswith("fp32"))
    assert ours["bundle"]["file_bytes"] == sum((bundle / f"{t}.onnx{e}").stat().st_size for t in TOWERS for e in ("", ".data"))  # fmt: skip
    deltas = [row["delta"] for row in ours["measurements"] if row["metric"] == "acc1" and row["delta"] is not None]
    assert deltas and not any(deltas)
    assert {one["verdict"] for one in ours["census"]} == {"float"}
    done = evaluate("inspect", str(bundle), "--json")
    assert done.returncode == 0 and all(row["kernels"] for row in json.loads(done.stdout))


def test_weights_are_shipped(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "FETCHED", tmp_path / "fetched")
    storage = Storage(f"memory://{tmp_path.name}")
    subject = Subject(open_bundle(bundle), "ort-cpu", 0)
    digest = subject.bundle.digest
    shipping.ship(subject.bundle, storage)
    shutil.rmtree(bundle)
    fetched = shipping.fetched(subject, storage).bundle
    assert fetched.digest == digest and (fetched.path / "image.onnx.data").is_file()


def test_a_file_for_each_weight_becomes_one(small_files, tmp_path):
    """As torch writes large towers in opset 17."""
    model = onnx.load(DEMO_BUNDLE / "image.onnx")
    before = content(DEMO_BUNDLE / "image.onnx")
    onnx.save(model, tmp_path / "many.onnx", save_as_external_data=True, all_tensors_to_one_file=False)
    assert len(data_files(tmp_path, "many.onnx")) > 20
    (tmp_path / "out").mkdir()
    onnx_file.save(onnx_file.load(tmp_path / "many.onnx"), tmp_path / "out" / "one.onnx")
    assert data_files(tmp_path / "out", "one.onnx") == ("one.onnx.data",)
    assert content(tmp_path / "out" / "one.onnx") == before


def test_exported_towers_follow_the_same_rule(small_files, tmp_path):
    pytest.importorskip("open_clip", reason="needs the export extra")
    done = CliRunner().invoke(main, ["onnx", "demo", "-o", str(tmp_path / "fp32")])
    assert done.exit_code == 0, done.output
    made = open_bundle(tmp_path / "fp32").manifest
    assert [entry.file for tower in (made.image, made.text) for entry in tower.data] == ["image.onnx.data", "text.onnx.data"]  # fmt: skip
    assert {path.name for path in (tmp_path / "fp32").iterdir()} == {e.file for e in made.files()} | {"clipq.json"}


def test_weights_that_several_linears_read_in_shares(tmp_path, monkeypatch):
    """As in towers whose layers share weights; small linears are in every share, and nodes in any order."""
    rng = np.random.default_rng(0)
    sizes = {"A": (64, 64), "B": (64, 64), "S": (64, 1), "C": (64, 64)}
    nodes = [
        ("MatMul", ["x", "A"], "a"), ("Relu", ["a"], "r"), ("MatMul", ["r", "B"], "b"), ("MatMul", ["r", "A"], "c"),
        ("MatMul", ["r", "S"], "s"), ("Add", ["b", "c"], "d"), ("Mul", ["d", "s"], "e"), ("MatMul", ["e", "C"], "y"),
    ]  # fmt: skip
    values = [onnx.helper.make_tensor_value_info(name, 1, [None, 5, 64]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, given, [made], made) for kind, given, made in nodes], "g", values[:1], values[1:],
        [numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name) for name, size in sizes.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "x.onnx")
    feed, outputs = {"x": rng.normal(size=(2, 5, 64)).astype(np.float32)}, []
    for share in (2**30, 1000):
        monkeypatch.setattr(quantize, "SHARE_BYTES", share)
        made = quantize.quantize_tower(Int8Dynamic(), quantize.TowerSource(tmp_path / "x.onnx", tmp_path))
        assert sum(node.op_type == "MatMulInteger" for node in made.graph.node) == 5
        onnx_file.save(made, tmp_path / f"{share}.onnx")
        with OrtEngine(tmp_path / f"{share}.onnx") as engine:
            outputs.append(engine.run(feed)["y"])
    np.testing.assert_array_equal(*outputs)
