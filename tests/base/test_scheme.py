"""Schemes of files that say none: read off the recipe's name and options, once, where the file is read."""

from __future__ import annotations

import json
import shutil

import pytest
from support import DEMO_BUNDLE
from synthetic import predictions, write_results

from clipq.bundle import SCHEMA_VERSION, open_bundle
from clipq.errors import BundleError, ResultsError
from clipq.evaluate.results.record import read_record
from clipq.scheme import FP32, Scheme


def scheme(weights, activations, arithmetic, method):
    return Scheme(weight_bits=weights, activation_bits=activations, arithmetic=arithmetic, method=method)


NAMED = [
    ("int8-static", {"ranges": "entropy"}, scheme(8, 8, "integer", "entropy")),
    ("int8-static", {"ranges": "minmax", "floats": "fp16"}, scheme(8, 8, "integer", "minmax")),
    ("int4-weight-only", {"algorithm": "gptq", "floats": "fp16"}, scheme(4, 16, "float", "gptq")),
    ("int8-weight-only", {"algorithm": "rtn", "floats": "fp32"}, scheme(8, 32, "float", "rtn")),
    ("int2-weight-only", {}, scheme(2, 32, "float", "int2-weight-only")),
    ("int8-dynamic", {}, scheme(8, 8, "integer", "dynamic")),
    ("simulated-w6a8", {"ranges": "minmax"}, scheme(6, 8, "simulated", "simulated minmax")),
    ("simulated-binary", {}, scheme(0, 0, "simulated", "simulated-binary")),
    ("modelopt-int8", {"ranges": "max", "floats": "fp16"}, scheme(8, 8, "integer", "modelopt max")),
    ("modelopt-int4", {"algorithm": "awq_lite"}, scheme(4, 32, "float", "modelopt awq_lite")),
    ("modelopt-fp8", {}, scheme(8, 8, "float", "modelopt fp8")),
    ("tensorrt-int8", {"calibrator": "entropy"}, scheme(8, 8, "integer", "tensorrt entropy")),
    ("fp16", {}, scheme(16, 16, "float", "fp16")),
    ("bf16", {}, scheme(16, 16, "float", "bf16")),
    ("fp32", {}, FP32),
    ("<b>", {}, scheme(0, 0, "float", "<b>")),
]


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle")


def edit(path, key, **change):
    """Change an entry of a JSON file, and the file's schema version."""
    raw = json.loads(path.read_text())
    version = change.pop("schema_version")
    path.write_text(json.dumps(raw | {key: raw[key] | change, "schema_version": version}))


@pytest.mark.parametrize(("recipe", "options", "expected"), NAMED)
@pytest.mark.parametrize("version", [1, 2])
def test_bundles_of_older_schemas(recipe, options, expected, version, bundle):
    edit(bundle / "clipq.json", "recipe", name=recipe, options=options, schema_version=version)
    manifest = open_bundle(bundle).manifest
    assert manifest.recipe.scheme == expected and manifest.schema_version == SCHEMA_VERSION
    assert expected.is_fp32 == (recipe == "fp32")


@pytest.mark.parametrize(("recipe", "options", "expected"), NAMED)
def test_records_of_older_schemas(recipe, options, expected, tmp_path):
    (path,) = (write_results(tmp_path, {"test": predictions(20)}, {}) / "records").iterdir()
    raw = json.loads(path.read_text())
    del raw["bundle"]["scheme"]
    raw["bundle"] |= {"recipe": recipe, "options": options}
    path.write_text(json.dumps(raw | {"schema_version": 4}))
    assert read_record(path).bundle.scheme == expected
    path.write_text(json.dumps(raw))
    with pytest.raises(ResultsError, match="damaged"):
        read_record(path)


def test_the_schemes_of_today_are_not_guessed(bundle):
    edit(bundle / "clipq.json", "recipe", schema_version=3)
    with pytest.raises(BundleError, match=r"recipe\.scheme: Field required"):
        open_bundle(bundle)
    said = scheme(3, 16, "float", "nf3")
    edit(bundle / "clipq.json", "recipe", name="int8-static", scheme=said.model_dump(), schema_version=3)
    assert open_bundle(bundle).manifest.recipe.scheme == said


@pytest.mark.parametrize("recipe", [None, [], "fp32", {}, {"name": 8}, {"name": "fp32", "options": "none"}])
def test_damaged_recipes_of_older_schemas(recipe, bundle):
    raw = json.loads((bundle / "clipq.json").read_text())
    (bundle / "clipq.json").write_text(json.dumps(raw | {"recipe": recipe}))
    with pytest.raises(BundleError, match=r"clipq\.json: recipe"):
        open_bundle(bundle)
