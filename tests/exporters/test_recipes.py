from __future__ import annotations

import dataclasses
import json

import pytest
from support import CALIBRATION, assert_refused, export

from clipq.errors import RecipeError
from clipq.exporters.recipes import KINDS, RECIPES, parse_recipe


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("int8-static", "int8-static-minmax"),
        ("int8-static:ranges=entropy,weights=per-tensor", "int8-static-entropy-per-tensor"),
        ("int8-static:ranges=percentile,percentile=99.9", "int8-static-percentile-percentile99.9"),
        ("int8-dynamic", "int8-dynamic"),
        ("int4-weight-only:block-size=128,algorithm=hqq", "int4-weight-only-hqq-block128"),
        ("int4-weight-only:kernel=float,token_table=true", "int4-weight-only-rtn-float-kernel-token-table"),
        ("fp16", "fp16"),
    ],
)
def test_slugs_tell_variants_apart(text, slug):
    assert parse_recipe(text).slug() == slug


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_is_recorded(name):
    recipe = parse_recipe(name)
    assert set(recipe.options()) == {field.name for field in dataclasses.fields(recipe)}
    assert recipe.summary


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int8-statik", "did you mean int8-static"),
        ("int8-static:ranges=kl", "known: minmax, entropy, percentile"),
        ("int8-static:range=minmax", "unknown option"),
        ("int8-static:percentile=many", "not a number"),
        ("int8-static:percentile=10", "must lie in"),
        ("int4-weight-only:form=qdq,algorithm=hqq", "form=qdq"),
        ("int2-weight-only:form=qdq", "form=qdq"),
        ("int4-weight-only:block_size=33", "known: 16, 32"),
        ("int8-static:ranges=minmax,ranges=entropy", "given twice"),
        ("int4-weight-only:symmetric=yes", "true, false"),
    ],
)
def test_wrong_recipes_are_refused(text, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(text)


def test_refusals_on_the_command_line(bundles, tmp_path):
    fp32 = str(bundles / "fp32")
    assert_refused(export("quantize", fp32), "nothing to do")
    assert_refused(export("quantize", fp32, "--recipe", "int8-static", "-o", str(tmp_path)), "--calibration-set")
    assert_refused(
        export("quantize", fp32, "--recipe", "int8-static", "--recipe", "int8-static:ranges=minmax"), "two recipes"
    )
    (tmp_path / "empty").mkdir()
    assert_refused(
        export("quantize", fp32, "--recipe", "int8-static", "--calibration-set", str(tmp_path / "empty")), "no images"
    )
    quantized = str(bundles / "int8-dynamic")
    assert_refused(export("quantize", quantized, "--recipe", "fp16", "-o", str(tmp_path)), "quantize the fp32 bundle")
    assert_refused(
        export("run", "ViT-B-32/openai", "-o", str(tmp_path / "x"), "--recipe", "int8-static"), "--calibration-set"
    )
    assert_refused(export("run", "demo", "-o", str(tmp_path / "x"), "--runtime", "tensorflow"), "unknown runtime")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_captions_that_name_no_file(bundles, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("file,caption\nb.png,a thing\n")
    done = export("quantize", str(bundles / "fp32"), "--recipe", "int8-static", "--calibration-set", str(tmp_path))
    assert_refused(done, "b.png")
    (tmp_path / "captions.csv").unlink()
    done = export("quantize", str(bundles / "fp32"), "--recipe", "int8-static", "--calibration-set", str(tmp_path))
    assert_refused(done, "class folders")


def test_one_tower_only(bundles, tmp_path):
    done = export(
        "quantize", str(bundles / "fp32"), "--recipe", "int8-static", "--towers", "image",
        "--calibration-set", str(CALIBRATION), "-o", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "int8-static-minmax-image-only" / "clipq.json").read_text())
    source = json.loads((bundles / "fp32" / "clipq.json").read_text())
    assert (
        manifest["text"] == {**source["text"], "plan": None}
        and manifest["image"]["sha256"] != source["image"]["sha256"]
    )
    assert manifest["recipe"]["towers"] == ["image"] and manifest["recipe"]["source_digest"]


def test_list_names_everything():
    done = export("list", "--json")
    rows = json.loads(done.stdout)
    assert {row["name"] for row in rows if row["kind"] == "recipe"} == {"fp32", *(kind.name for kind in KINDS)}
    assert all(row["detail"] for row in rows)


def test_unknown_checkpoints_are_refused(tmp_path):
    pytest.importorskip("open_clip", reason="needs the export extra")
    out = str(tmp_path / "out")
    assert_refused(export("onnx", "ViT-B-23/openai", "-o", out), "did you mean", "ViT-B-32")
    assert_refused(export("onnx", "ViT-B-32/openia", "-o", out), "openai")
    assert_refused(export("onnx", "ViT-B-32", "-o", out), "which weights")
    assert_refused(export("onnx", f"local-dir:{tmp_path}", "-o", out), "open_clip_config.json")
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert_refused(export("onnx", f"local-dir:{tmp_path}", "-o", out), "no weights")
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    assert_refused(export("onnx", "ViT-B-32", "--pretrained", str(tmp_path / "bad.pt"), "-o", out), "ViT-B-32/bad.pt")
    assert not (tmp_path / "out").exists()


def test_hub_out_of_reach(tmp_path):
    pytest.importorskip("open_clip", reason="needs the export extra")
    import os

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = export("onnx", "hf-hub:nobody/nothing", "-o", str(tmp_path / "out"), env=environment)
    assert_refused(done, "hub cannot be reached", "local-dir:")
