"""What would change nothing beside the rest is refused: options of commands, recipes and sources, keys of files.

And what is taken changes something: every option of every recipe, in the towers that it makes.
"""

from __future__ import annotations

import json

import click
import pytest
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, evaluate, export

from clipq.bundle import open_bundle
from clipq.console import Command
from clipq.data.open import open_view
from clipq.errors import DataError, RecipeError
from clipq.evaluate.cli.main import main as eval_main
from clipq.evaluate.suites.schema import ROLES_OF, Suite, ViewEntry
from clipq.evaluate.suites.suite import check_suite, read_suite
from clipq.evaluate.sweep.grid import read_grid
from clipq.exporters.api import quantized
from clipq.exporters.calibration_set import open_calibration_set
from clipq.exporters.catalog import option_values
from clipq.exporters.cli import main as export_main
from clipq.exporters.placement import place
from clipq.exporters.recipes import known_recipes, parse_recipe
from clipq.exporters.scaling import protect_salient, smooth
from clipq.progress import Progress

FP32 = str(DEMO_BUNDLE)
TEST = "demo:test:n=96"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("run", "demo", "-o", "OUT", "--target", "sm_89"), ("--target is for plans",)),
        (("run", "demo", "-o", "OUT", "--batch", "1,2,4"), ("--batch is for plans",)),
        (("run", "demo", "-o", "OUT", "--towers", "image"), ("--towers is for recipes",)),
        (("run", "demo", "-o", "OUT", "--recipe", "fp32", "--calibration-set", "."), ("--calibration-set is for recipes",)),
        (("build", FP32, "--runtime", "tensorrt", "--calibration-set", "."), ("--calibration-set is for --calibrator",)),
        (("build", FP32, "--runtime", "tensorrt", "--calibration-cache", "."), ("--calibration-cache is for --calibrator",)),
        (
            ("build", FP32, "--runtime", "tensorrt", "--calibrator", "minmax", "--calibration-cache", ".",
             "--calibration-set", "."),
            ("--calibration-set", "leave one of them out"),
        ),
        (("attack", "demo", "--data", TEST, "-o", "OUT", "--method", "fgsm", "--steps", "3"), ("--steps is PGD's",)),
        (("attack", "demo", "--data", TEST, "-o", "OUT", "--method", "fgsm", "--restarts", "3"), ("--restarts is PGD's",)),
        (
            ("quantize", FP32, "-o", "OUT", "--recipe", "int4-weight-only:token_table=true", "--towers", "image"),
            ("token_table=true is about the text tower",),
        ),
    ],
)  # fmt: skip
def test_options_of_exporting(tmp_path, command, words):
    done = export(*(str(tmp_path / "out") if part == "OUT" else part for part in command))
    assert_refused(done, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--latency-batch", "4"), ("--repeats", "5")])
def test_nothing_is_timed_beside_no_bench(tmp_path, option):
    done = evaluate("run", FP32, "--data", TEST, "-o", str(tmp_path / "out"), "--no-bench", *option)
    assert_refused(done, f"{option[0]} times nothing")


@pytest.mark.parametrize(
    ("command", "asked", "option"),
    [
        (export, ("quantize", FP32, "--recipe", "fp16", "--runtime", "ort-cpu", "--runtime", "ort-cuda"), "--runtime"),
        (evaluate, ("run", FP32, "--data", TEST, "--batch-size", "8", "--batch-size", "16"), "--batch-size"),
        (evaluate, ("gate", "nowhere", "--policy", "strict", "--policy", "demo"), "--policy"),
        (evaluate, ("sweep", "nowhere.toml", "-o", "a", "-o", "b"), "-o"),
    ],
)
def test_of_two_values_for_one_none_is_chosen(command, asked, option):
    """Repeatable options beside them (``--runtime`` of ``run``) invite to it; the first one was dropped in silence."""
    assert_refused(command(*asked), f"{option} is given twice and takes one value")


def test_every_command_refuses_so():
    for group in (eval_main, export_main):
        assert {type(one) for one in _commands(group)} == {Command}


def _commands(group):
    for one in group.commands.values():
        yield from _commands(one) if isinstance(one, click.Group) else [one]


def test_the_former_name_of_an_option_works_and_is_not_shown(tmp_path):
    asked = ("run", FP32, "--data", TEST, "-o", str(tmp_path / "out"))
    assert_refused(evaluate(*asked, "--no-bench", "--batch", "4"), "--latency-batch times nothing")
    for command in ("run", "bench"):
        shown = evaluate(command, "--help").stdout
        assert "--latency-batch" in shown and "--batch " not in shown
    wrong = evaluate("bench", FP32, "--batch-size", "2").stderr
    assert "No such option '--batch-size'" in wrong and "'--batch'" not in wrong
    times = evaluate("bench", FP32, "--batch", "2", "--repeats", "3", "--tower", "text", "--json").stdout
    assert [row["batch"] for row in json.loads(times)] == [2]


def test_templates_that_no_view_is_left_for(tmp_path):
    view = f"[[view]]\nsource = '{TEST}'\nname = 'test'\n"
    (tmp_path / "own.toml").write_text(view + "templates = 'simple-7'\n")
    asked = ("run", FP32, "--no-bench", "--suite", str(tmp_path / "own.toml"), "--templates", "imagenet-80")
    assert_refused(evaluate(*asked, "-o", str(tmp_path / "out")), "'imagenet-80'", "no view is left")
    (tmp_path / "one.toml").write_text(f"templates = 'simple-7'\n{view}")
    assert read_suite(str(tmp_path / "one.toml")).templates_of("test") == "simple-7"


def test_a_calibration_set_that_nothing_measures(tmp_path):
    """No error: scripts give one set to all of their recipes. The bundle does not say that it was measured on it."""
    asked = ("quantize", FP32, "-o", str(tmp_path), "--recipe", "int8-dynamic", "--calibration-set", str(CALIBRATION))
    done = export(*asked)
    assert done.returncode == 0, done.stderr
    assert open_bundle(tmp_path / "int8-dynamic").manifest.recipe.calibration is None


def test_checkpoints_for_machines():
    assert "RN50/openai" in json.loads(export("list", "--checkpoints", "--json").stdout)


@pytest.mark.parametrize(
    ("text", "runtime", "words"),
    [
        ("int8-static:percentile=99", "ort-cpu", "percentile changes nothing without ranges=percentile"),
        ("simulated-w4a8:ranges=mse,percentile=99.99", "ort-cpu", "percentile changes nothing"),
        ("int4-weight-only:form=qdq,symmetric=true,kernel=int8", "ort-cpu", "kernel changes nothing without form="),
        ("int4-weight-only:kernel=float", "tensorrt", "kernel changes nothing"),
        ("int2-weight-only:token_table=true", "ort-cpu", "exists for 4 bits"),
        ("int8-weight-only:token_table=true,algorithm=gptq", "ort-cpu", "exists for 4 bits"),
        ("int8-static:weights=7bit", "tensorrt", "weights=7bit is not for tensorrt, which adds products in 32 bits"),
        ("int8-static:weights=7bit", "ort-cuda", "is not for ort-cuda"),
        ("int8-static:weights=7bit,weights=8bit", "ort-cpu", "'weights' is given twice"),
        ("int8-static:weights=per-tensor,granularity=per-channel", "ort-cpu", "'granularity' is given twice"),
        ("simulated-w8a8:weights=7bit", "ort-cpu", "unknown option"),
        ("int8-weight-only:weights=7bit", "ort-cpu", "unknown option"),
    ],
)
def test_options_of_recipes(text, runtime, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(text, runtime)


@pytest.mark.parametrize(
    "base",
    [
        "fp16", "int8-static:ranges=percentile", "int8-static:form=matmulinteger", "int8-dynamic", "int8-weight-only",
        "int4-weight-only:block_size=64", "int4-weight-only:form=qdq,symmetric=true", "simulated-w4a8:ranges=percentile",
    ],
)  # fmt: skip
def test_every_option_of_a_recipe_changes_a_tower(tmp_path, base):
    source = open_bundle(DEMO_BUNDLE)
    calibration = open_calibration_set(CALIBRATION, source)
    numbers = {"percentile": ("90",), "smoothing": ("0.5",), "block_size": ("16",)}

    def towers(text):
        made = quantized(source, parse_recipe(text), calibration, "both", tmp_path, Progress())
        return [made.manifest.image.sha256, made.manifest.text.sha256]

    first = towers(base)
    name, _, given = base.partition(":")
    resolved = {option: str(value).lower() for option, value in parse_recipe(base).options().items()}
    own = dict(item.split("=") for item in given.split(",") if item)
    for option, values in option_values(known_recipes()[name]).items():
        for value in numbers.get(option, values):
            if value == resolved[option]:
                continue
            # What the value does not go with, such as the percentile of other ranges, is left out.
            text = f"{name}:" + ",".join(f"{key}={one}" for key, one in {**own, option: value}.items())
            try:
                parse_recipe(text)
            except RecipeError:
                continue
            assert towers(text) != first, text


@pytest.mark.parametrize("role", ["in-distribution", "shifted", "groups", "near-ood", "far-ood", "retrieval"])
def test_keys_that_a_role_makes_nothing_of(role):
    values = {"classes_of": "test", "label_map": __file__, "templates": "simple-7", "groups": ("light",),
              "smallest_group": 20, "baseline": "test", "published": "flickr30k" if role == "retrieval" else "cifar10"}  # fmt: skip
    assert values.keys() == ROLES_OF.keys()
    inside = ViewEntry(source=TEST, name="test")
    for key, value in values.items():
        entry = ViewEntry(source="demo:textures", name="other", role=role, **{key: value})
        try:
            check_suite(Suite(view=(inside, entry)))
            said = ""
        except DataError as error:
            said = str(error)
        assert (f"role {role} makes nothing of {key}" in said) == (role not in ROLES_OF[key]), (key, said)


def test_a_smallest_group_of_no_groups(tmp_path):
    (tmp_path / "suite.toml").write_text(f"[[view]]\nsource = '{TEST}'\nsmallest_group = 5\n")
    with pytest.raises(DataError, match="line 3: smallest_group needs groups"):
        read_suite(str(tmp_path / "suite.toml"))


def test_options_of_sources(tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "20_0_0_2017.jpg")
    (tmp_path / "labels.csv").write_text("file,label,light\n20_0_0_2017.jpg,a,day\n")
    for source in (f"{tmp_path}/labels.csv:label=light", f"utkface:{tmp_path}:label=race"):
        with pytest.raises(DataError, match="captions have no labels; leave out :label="):
            open_view(source, "captions")
        # One source for what has labels and for what needs none.
        assert len(open_view(source, "images").samples) == 1
    with pytest.raises(DataError, match="has no captions"):
        open_view(f"utkface:{tmp_path}", "captions")
    with pytest.raises(DataError, match="option 'n' is given twice"):
        open_view("demo:test:n=96,n=128")


@pytest.mark.parametrize(
    ("line", "words"),
    [("calibration_set = '.'", "calibration_set is for recipes"), ("gpus = 0.5", "gpus 0.5 are for GPU runtimes")],
)
def test_keys_of_grids(tmp_path, line, words):
    (tmp_path / "grid.toml").write_text(f"suite = 'demo'\nbundles = ['{FP32}']\n{line}\n")
    with pytest.raises(DataError, match=words):
        read_grid(tmp_path / "grid.toml")


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        (("card", "RESULTS", "-o", "card.html"), ".md"),
        (("compare", "RESULTS", "RESULTS", "--markdown", "tables.HTML"), ".md"),
        (("gate", "RESULTS", "--policy", "strict", "--junit", "junit.json"), ".xml"),
        (("gate", "init", "RESULTS", "-o", "policy.json"), ".toml"),
        (("suite", "init", "-o", "suite.json"), ".toml"),
    ],
)
def test_files_are_what_their_names_end_in(tmp_path, command, ending):
    assert_refused(evaluate(*command, cwd=tmp_path), ending)
    assert not list(tmp_path.iterdir())


def test_nothing_to_simulate():
    assert_refused(evaluate("inspect", FP32, "--simulated"), "no Q/DQ nodes")
    assert_refused(evaluate("inspect", FP32, "--fetch"), "--fetch fetches nothing without --data")


def test_arguments_from_python():
    import clipq

    pair = ([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    with pytest.raises(DataError, match="acc1 has no bins"):
        clipq.metrics.acc1(*pair, bins=5)
    with pytest.raises(DataError, match="there are no groups"):
        clipq.compare_predictions(reference=pair, candidate=pair, smallest_group=5)


def test_scaling_without_layer_norms_is_told_of():
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(32, dtype=np.float32), "weight")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 32]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    model = helper.make_model(helper.make_graph([node], "tower", ends[:1], ends[1:], [weight]))
    assert not smooth(model, place(model), 0.5, iter(()))
    assert not protect_salient(model, place(model), parse_recipe("int4-weight-only:algorithm=awq"), iter(()))
