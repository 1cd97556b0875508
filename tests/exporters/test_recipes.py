from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from click.testing import CliRunner
from support import CALIBRATION, DEMO_BUNDLE, ROOT, assert_refused, export

import clipq
from clipq.bundle import open_bundle
from clipq.errors import RecipeError
from clipq.exporters import build, recipes
from clipq.exporters.catalog import option_values
from clipq.exporters.cli import main
from clipq.exporters.quantize import quantize_tower
from clipq.exporters.recipes import KINDS, known_recipes, parse_recipe
from clipq.progress import Progress
from clipq.scheme import FP32, Scheme, with_scheme


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("int8-static", "int8-static-minmax"),
        ("int8-static:ranges=entropy,weights=per-tensor", "int8-static-entropy-per-tensor"),
        ("int8-static:ranges=percentile,percentile=99.9", "int8-static-percentile-percentile99.9"),
        ("int8-static:granularity=per-tensor,weights=7bit", "int8-static-minmax-per-tensor-7bit"),
        ("int8-dynamic", "int8-dynamic"),
        ("int8-dynamic:weights=7bit,weights=per-tensor", "int8-dynamic-per-tensor-7bit"),
        ("int4-weight-only:block-size=128,algorithm=hqq", "int4-weight-only-hqq-block128"),
        ("int4-weight-only:kernel=float,token_table=true", "int4-weight-only-rtn-float-kernel-token-table"),
        ("fp16", "fp16"),
    ],
)
def test_slugs_tell_variants_apart(text, slug):
    assert parse_recipe(text).slug() == slug


@pytest.mark.parametrize(
    ("text", "runtime", "resolved", "slug"),
    [
        ("int8-static", "ort-cpu", "asymmetric qdq fp32", "minmax"),
        ("int8-static", "tensorrt-rtx", "symmetric qdq fp16", "minmax-fp16"),
        ("int8-static", "ort-tensorrt", "symmetric qdq fp16", "minmax-fp16"),
        ("int8-static:floats=fp32", "tensorrt", "symmetric qdq fp32", "minmax-symmetric"),
        ("int8-static", "ort-cuda", "symmetric matmulinteger fp16", "minmax-fp16-matmulinteger"),
        ("int8-static:form=qdq", "ort-cuda", "symmetric qdq fp16", "minmax-fp16"),
        # What is asked for stays, whatever the runtime; the forms of GPUs are the GPUs' file.
        ("int8-static:activations=symmetric", "ort-cpu", "symmetric qdq fp32", "minmax-symmetric"),
        ("int8-static:activations=asymmetric", "ort-cpu", "asymmetric qdq fp32", "minmax"),
        ("int8-static:floats=fp16", "ort-cpu", "symmetric qdq fp16", "minmax-fp16"),
        ("int8-static:form=matmulinteger", "ort-cpu", "symmetric matmulinteger fp32", "minmax-matmulinteger"),
        ("int8-static:floats=fp16,activations=asymmetric", "ort-cpu", "asymmetric qdq fp16", "minmax-asymmetric-fp16"),
        ("int8-static:form=qdq,activations=asymmetric", "ort-cuda", "asymmetric qdq fp16", "minmax-asymmetric-fp16"),
    ],
)
def test_the_default_is_the_runtimes(text, runtime, resolved, slug):
    recipe = parse_recipe(text, runtime)
    assert [recipe.options()[option] for option in ("activations", "form", "floats")] == resolved.split()
    assert recipe.slug() == f"int8-static-{slug}"
    assert parse_recipe("simulated-w8a8", runtime).activations == "symmetric"


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx", "ort-tensorrt"])
def test_tensorrt_is_given_no_zero_points(runtime):
    with pytest.raises(RecipeError, match=f"activations=asymmetric is not for {runtime}, which takes no zero points"):
        parse_recipe("int8-static:activations=asymmetric", runtime)


@pytest.mark.parametrize("name", known_recipes())
def test_every_option_is_recorded(name):
    recipe = parse_recipe(name)
    assert set(recipe.options()) == {field.name for field in dataclasses.fields(recipe)}
    assert recipe.summary


FLOATS = {"W{}A32": "floats=fp32", "W{}A16": "floats=fp16"}


@pytest.mark.parametrize(
    ("text", "widths", "arithmetic", "method"),
    [
        ("fp16", "W16A16", "float", "fp16"),
        ("int8-static:ranges=entropy,floats=fp16", "W8A8", "integer", "entropy"),
        ("int8-static:form=matmulinteger", "W8A8", "integer", "minmax"),
        ("int8-static:weights=7bit", "W7A8", "integer", "minmax"),
        ("int8-dynamic:weights=per-tensor", "W8A8", "integer", "dynamic"),
        ("int8-dynamic:weights=7bit", "W7A8", "integer", "dynamic"),
        *[(f"int{n}-weight-only:{floats}", widths.format(n), "float", "rtn")
          for n in (2, 4, 8) for widths, floats in FLOATS.items()],
        ("int4-weight-only:algorithm=hqq", "W4A32", "float", "hqq"),
        ("modelopt-int8:ranges=entropy", "W8A8", "integer", "modelopt entropy"),
        ("modelopt-int4", "W4A16", "float", "modelopt awq-lite"),
        ("modelopt-int4:floats=fp32,algorithm=rtn", "W4A32", "float", "modelopt rtn"),
        ("modelopt-fp8", "W8A8", "float", "modelopt fp8"),
        ("simulated-w4a6:ranges=mse", "W4A6", "simulated", "simulated mse"),
    ],
)  # fmt: skip
def test_schemes(text, widths, arithmetic, method):
    scheme = parse_recipe(text).scheme
    assert (scheme.widths, scheme.arithmetic, scheme.method) == (widths, arithmetic, method)


@pytest.mark.parametrize(
    ("runtime", "refused"),
    [
        ("ort-cpu", set()),
        ("ort-cuda", {"int8-dynamic"}),
        ("tensorrt", {"int8-dynamic", "int8-weight-only", "int2-weight-only"}),
    ],
)
def test_recipes_say_what_older_files_are_read_as(runtime, refused):
    for name in known_recipes().keys() - refused:
        recipe = parse_recipe(name, runtime)
        entry = {"name": name, "options": recipe.options()}
        assert recipe.scheme.model_dump() == with_scheme(entry, "name")["scheme"] and not recipe.scheme.is_fp32


def test_a_recipe_without_a_scheme_cannot_be_made():
    with pytest.raises(TypeError, match="scheme"):
        recipes.Recipe()


def test_the_manifest_says_the_scheme(bundles):
    found = {
        path.name: open_bundle(path).manifest.recipe.scheme
        for path in bundles.iterdir()
        if json.loads((path / "clipq.json").read_text())["schema_version"] >= 3
    }
    assert set(found) == {path.name for path in bundles.iterdir()} - {"fp32"}
    assert found["int8-static-entropy"] == parse_recipe("int8-static:ranges=entropy").scheme
    assert {name: scheme.widths for name, scheme in found.items() if "weight-only-rtn" in name} == {
        "int8-weight-only-rtn": "W8A32", "int4-weight-only-rtn": "W4A32", "int2-weight-only-rtn": "W2A32",
        "int4-weight-only-rtn-qdq-symmetric": "W4A32", "int4-weight-only-rtn-token-table": "W4A32",
    }  # fmt: skip


def test_a_calibrators_plans_say_integers(monkeypatch, tmp_path):
    built = build.BuiltPlan(b"plan", flags=("INT8",), strongly_typed=False, layers={})
    monkeypatch.setattr(build, "build_plan", lambda *arguments, **options: built)
    settings = build.BuildSettings("tensorrt", calibrator="entropy2")
    toolchain = build.Toolchain(settings, SimpleNamespace(name="tensorrt 10.9.0"), "sm_89", None)
    source = open_bundle(DEMO_BUNDLE)
    made = build.build_bundle(source, toolchain, tmp_path / "made", calibration=SimpleNamespace(), progress=Progress())
    recipe = made.manifest.recipe
    assert recipe.name == "tensorrt-int8" and recipe.source_digest == source.digest
    assert recipe.scheme.model_dump() == with_scheme(recipe.model_dump(), "name")["scheme"]
    assert (recipe.scheme.widths, recipe.scheme.method) == ("W8A8", "tensorrt entropy2")


def documented(heading):
    """The rows of the table of docs/recipes.md with this first heading, cells without backticks."""
    lines = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")) + 2
    for line in lines[start:]:
        if not line.startswith("|"):
            return
        yield [cell.replace("`", "").strip() for cell in line.strip("|").split("|")]


def test_the_document_has_every_recipe_with_its_scheme():
    said = {name: (widths.split(", "), arithmetic) for name, widths, arithmetic, *_ in documented("recipe")}
    known = {"fp32": ([FP32.widths], FP32.arithmetic), "simulated-wXaY": (["WXAY"], "simulated")}
    for kind in KINDS[:-1]:
        own = option_values(kind)
        choices = {option: values for option, values in {"floats": ("fp32", "fp16"), "weights": ("8bit", "7bit")}.items() if option in own}  # fmt: skip
        schemes = [kind(**dict(zip(choices, values, strict=True))).scheme for values in product(*choices.values())]
        known[kind.name] = (list(dict.fromkeys(scheme.widths for scheme in schemes)), schemes[0].arithmetic)
    assert said == known


def test_the_document_has_every_option_with_its_values():
    said = [
        (recipe, option, tuple(values.split()))
        for option, values, of, _ in documented("option")
        for recipe in of.split()
    ]
    known = [(kind.name, option, values) for kind in KINDS for option, values in option_values(kind).items()]
    assert sorted(said) == sorted(known)


def test_a_new_recipe_is_a_row_and_a_function(monkeypatch, tmp_path):
    """Listed, quantized by, and its scheme in the manifest: nothing else knows recipes by name."""

    @dataclasses.dataclass(frozen=True)
    class Toy(recipes.Recipe):
        name = "toy"
        summary = "weights as they are"

        depth: int = 3

        @property
        def scheme(self):
            return Scheme(weight_bits=self.depth, activation_bits=16, arithmetic="float", method="toy")

    @quantize_tower.register(Toy)
    def _(recipe, source):
        return onnx.load(source.path)

    monkeypatch.setattr(recipes, "KINDS", (*KINDS, Toy))
    listed = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)
    assert {"kind": "recipe", "name": "toy", "state": "run", "detail": "weights as they are [depth=3]"} in listed
    done = CliRunner().invoke(main, ["quantize", "demo", "--recipe", "toy:depth=5", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    made = open_bundle(tmp_path / "toy-depth5").manifest
    assert made.recipe.name == made.image.recipe == "toy" and made.recipe.options == {"depth": 5}
    assert made.recipe.scheme.widths == "W5A16" and made.recipe.scheme.method == "toy"


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
    absent = {"data": [], "plan": None, "answers": None, "layout": "nchw", "further_inputs": [], "further_outputs": []}
    assert manifest["text"] == {**source["text"], **absent} and manifest["image"]["sha256"] != source["image"]["sha256"]
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


def test_demo_is_the_built_in_bundle_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert export("quantize", "demo", "--recipe", "fp16", "-o", "out").returncode == 0
    assert clipq.quantize("demo", ["fp16"], output="again")[0] == Path("again/fp32")
    assert_refused(export("quantize", "./demo", "--recipe", "fp16", "-o", "out"), "no clipq.json")
