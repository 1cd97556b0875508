"""docs/extending.md: a metric takes a function and a row, and stands everywhere that a user looks.

Toys of a runtime, a recipe and a source are in engines/test_catalog.py, exporters/test_recipes.py and
test_source_kinds.py; of an axis in evaluate/axes/test_steps.py.
"""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from support import DEMO_BUNDLE, ROOT
from tables import metrics_table

import clipq
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.table import METRICS, Metric

PAGE = (ROOT / "docs" / "extending.md").read_text()


def margin(predictions, weights):
    """Mean probability of the label minus that of the best other class."""
    others = predictions.probabilities.copy()
    others[np.arange(len(predictions)), predictions.labels] = 0
    return weighted_mean(predictions.of_label - others.max(1), weights)


ROW = Metric("margin", "margin", "fraction", True, "classification, further", low=-1.0, high=1.0, function=margin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("extending")


@pytest.fixture(scope="module")
def results(bundles, folder):
    suite = clipq.Suite(view=(clipq.View(source="demo:test:n=96", name="test"),))
    paths = [DEMO_BUNDLE.parent / "bundle", bundles / "int2-weight-only-rtn"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "margin", ROW)
        yield clipq.evaluate(paths, suite=suite, output=folder)


def test_a_metric_is_a_function_and_a_row(results, folder, tmp_path):
    rows = {row["bundle"]: row for row in csv.DictReader((folder / "results.csv").open()) if row["metric"] == "margin"}
    assert set(rows) == {"bundle", "int2-weight-only-rtn"} and rows["int2-weight-only-rtn"]["delta_low"]
    measured = results["int2-weight-only-rtn"]["test", "margin"]
    assert measured.low < measured.value < measured.high and measured.delta < 0
    from clipq.metrics import margin as asked

    p = np.array([[0.75, 0.25], [0.5, 0.5]])
    assert asked(p, [0, 1]).value == pytest.approx(0.25)
    policy = tmp_path / "policy.toml"
    policy.write_text("[[rule]]\nmetric = 'margin'\nmin = -1\n")
    assert clipq.gate(results, str(policy)).state == "pass"
    policy.write_text("[[rule]]\nmetric = 'margins'\nmin = -1\n")
    with pytest.raises(clipq.ClipqError, match="did you mean margin"):
        clipq.gate(results, str(policy))
    assert "| `margin` | fraction | −1 to 1 | high | margin |" in metrics_table()


def test_the_page_shows_it_in_its_table(results, tmp_path):
    import base64
    import gzip
    import json

    page = results.report(tmp_path / "page.html").read_text()
    encoded = re.search(r'<script[^>]*id="data"[^>]*>([^<]+)<', page)[1]
    data = json.loads(gzip.decompress(base64.b64decode(encoded)))
    (key,) = [index for index, one in enumerate(data["keys"]) if one[2] == "margin"]
    table = next(one for one in data["tables"] if one["label"] == "Metrics on test")
    assert ["margin", key] in table["columns"] and data["keys"][key][3:6] == ["margin", "fraction", True]


def test_files_that_the_page_names_are_there():
    for name in set(re.findall(r"`((?:evaluate|engines|exporters|src|tests|docs)/[\w/]+\.\w+)`", PAGE)) - {"engines/NAME.py"}:  # fmt: skip
        assert (ROOT / name).exists(), name
    for folder in set(re.findall(r"`(evaluate/\w+)/`", PAGE)):
        assert (ROOT / folder).is_dir(), folder
