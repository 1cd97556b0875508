"""docs/adopt.md, command by command, on the built-in towers in each layout."""

from __future__ import annotations

import csv
import re
import shutil

import numpy as np
import pytest
from foreign_layouts import (
    LAYOUTS,
    SIZE,
    before,
    of_batch,
    of_float16,
    of_int32,
    of_nhwc,
    of_unit_length,
    pair,
    shaped,
    stored,
    write_preprocessor,
)
from onnx import helper
from support import DEMO_BUNDLE, ROOT, evaluate, export
from test_readme import shell

from clipq.bundle import open_bundle
from clipq.files import sha256_file

DOCUMENT = (ROOT / "docs" / "adopt.md").read_text()
COMMANDS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, flags=re.S)]


def top1(results, metric="acc1", group=""):
    with (results / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == metric and row["group"] == group]
    return {row["bundle"]: float(row["value"]) for row in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every command of the document has run."""
    root = tmp_path_factory.mktemp("adopting")
    for name, lay_out in LAYOUTS.items():
        lay_out(root / name)
    shutil.copytree(DEMO_BUNDLE, root / "engines" / "fp32")
    for command in COMMANDS:
        done = shell(command, root)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert ("--against" in command) == (done.stdout.count("agrees with the reference") == 2), done.stdout
    return root


def test_every_layout_answers_as_fp32(folder):
    found = top1(folder / "results")
    quantized = found.pop("js-quantized")
    assert found.keys() == {"fp32", "js", "optimum", "immich", "service", "fastembed", "pair"}
    assert len(set(found.values())) == 1, found
    assert abs(quantized - found["fp32"]) < 0.03


def test_files_are_the_users(folder):
    mine = open_bundle(folder / "engines" / "js-quantized").manifest
    for tower, name in (("image", "vision"), ("text", "text")):
        there = folder / "clip-transformers-js" / "onnx" / f"{name}_model_quantized.onnx"
        assert mine.tower(tower).sha256 == sha256_file(there)
    assert mine.recipe.scheme.widths == "W8A8" and mine.recipe.scheme.arithmetic == "integer"


def test_the_logit_scale_of_a_graph_of_both_towers(folder):
    wanted = open_bundle(DEMO_BUNDLE).manifest.logit_scale
    assert open_bundle(folder / "engines" / "optimum").manifest.logit_scale == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("of_image", "of_text"),
    [
        (of_float16, of_float16),
        (of_nhwc, of_int32),
        (lambda m: of_batch(m, 7), lambda m: of_batch(of_unit_length(m), 5)),
    ],
    ids=["float16", "nhwc and int32", "one batch alone"],
)
def test_every_interface_answers_as_fp32(tmp_path, of_image, of_text):
    engine = pair(tmp_path / "engine", of_image, of_text)
    done = export("adopt", engine, "--like", DEMO_BUNDLE, "-o", tmp_path / "adopted")
    assert done.returncode == 0, done.stderr
    options = ("--data", "demo:test:n=120", "--no-bench", "-o", tmp_path / "results")
    done = evaluate("run", DEMO_BUNDLE, tmp_path / "adopted", *options)
    assert done.returncode == 0, done.stderr
    assert len(set(top1(tmp_path / "results").values())) == 1


def taking_64_pixels(model):
    """Its images larger than those that the built-in attack was made of."""
    ratio = stored(model, "ratio", np.array([1, 1, SIZE / 64, SIZE / 64], np.float32))
    resize = helper.make_node("Resize", [model.graph.input[0].name, "", ratio], ["small"], mode="linear")
    before(model, resize)
    shaped(model.graph.input[0], "batch", 3, 64, 64)
    return model


@pytest.fixture
def attacked(tmp_path):
    (tmp_path / "suite.toml").write_text(
        '[[view]]\nsource = "demo:test:n=48"\n[[transfer]]\nname = "moved"\nsource = "builtin:demo"\n'
    )
    return ("--suite", tmp_path / "suite.toml", "-o", tmp_path / "results", "--no-bench")


def test_stored_attacks_are_of_one_size_and_of_no_way_to_resize(tmp_path, attacked):
    """Their pixels are resized and cropped already: engines that do that otherwise are given the same."""
    done = export("adopt", LAYOUTS["clip-optimum"](tmp_path / "them"), "-o", tmp_path / "adopted")
    assert done.returncode == 0, done.stderr
    assert open_bundle(tmp_path / "adopted").manifest.preprocess.library == "transformers"
    done = evaluate("run", DEMO_BUNDLE, tmp_path / "adopted", *attacked)
    assert done.returncode == 0, done.stderr
    found = top1(tmp_path / "results", "robust_acc1", "pgd/2")
    assert found["adopted"] == found["bundle"]


def test_an_attack_of_another_size_is_refused_before_anything_runs(tmp_path, attacked):
    engine = pair(tmp_path / "engine", taking_64_pixels)
    write_preprocessor(engine, 64)
    done = export("adopt", engine, "--like", DEMO_BUNDLE, "-o", tmp_path / "adopted")
    assert done.returncode == 0, done.stderr
    done = evaluate("run", DEMO_BUNDLE, tmp_path / "adopted", *attacked, "--on-bad-image", "skip")
    assert done.returncode == 2
    assert "48 × 48 pixels, and the tower takes 64 × 64 of adopted: evaluate that apart" in done.stderr
    assert not (tmp_path / "results").exists()
