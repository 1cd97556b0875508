"""docs/adopt.md, command by command, on the built-in towers in each layout."""

from __future__ import annotations

import csv
import re
import shutil

import pytest
from foreign_layouts import LAYOUTS, of_batch, of_float16, of_int32, of_nhwc, of_unit_length, pair
from support import DEMO_BUNDLE, ROOT, evaluate, export
from test_readme import shell

from clipq.bundle import open_bundle
from clipq.files import sha256_file

DOCUMENT = (ROOT / "docs" / "adopt.md").read_text()
COMMANDS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, flags=re.S)]


def top1(results):
    with (results / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "acc1" and not row["group"]]
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
