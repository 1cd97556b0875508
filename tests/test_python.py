"""The Python door: docs/python.md as it stands, what is promised, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from support import DEMO_BUNDLE, ROOT
from synthetic import predictions, record, worse, write_results

import clipq
import clipq.metrics
from clipq.errors import BundleError, DataError, NotInResults, PolicyError, RecipeError, ResultsError
from clipq.evaluate.metrics.table import METRICS
from clipq.evaluate.results.estimates import Engine, measurements
from clipq.progress import progress_bars

PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
BASE = predictions(2000, accuracy=0.8)
WORSE = worse(BASE, 0.1)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The names that the page's code leaves behind, in the folder that it ran in."""
    folder, names = tmp_path_factory.mktemp("python"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in BLOCKS:
            exec(compile(block, "docs/python.md", "exec"), names)
    return folder, names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    bad = {"views": {"test": WORSE}, "milliseconds": 2.0}
    return write_results(tmp_path_factory.mktemp("door") / "r", {"test": BASE}, {"bad": bad, "dead": {"views": {"test": BASE}, "failed": "out <of> memory"}})  # fmt: skip


def test_the_page_runs_and_says_what_the_command_says(session):
    folder, names = session
    assert names["row"].reference == "fp32" and names["judged"].state in ("pass", "fail", "investigate")
    assert names["night"].n < names["row"].n
    assert clipq.compare(folder / "results", names["results"], margin=0.02).outcome == "same or better"
    done = subprocess.run(
        [sys.executable, "-m", "clipq.evaluate.cli", "run", *map(str, names["bundles"]), "--data", "test=demo:test:n=240", "-o", "again", "--no-bench"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    def measured(path):
        rows = (folder / path / "results.csv").read_text().splitlines()
        return [row for row in rows if ",tower:" not in row and ",file_bytes," not in row]

    assert measured("results") == measured("again")
    record = json.loads(next((folder / "results" / "records").glob("fp32*")).read_text())
    assert record["arguments_given"]["command"] == "clipq.evaluate"


def test_all_is_what_the_page_promises_and_every_name_is_there():
    assert sorted(clipq.__all__) == [
        "ClipqError", "Corruptions", "Settings", "Suite", "View", "__version__", "compare", "compare_predictions",
        "evaluate", "export", "gate", "metrics", "open_bundle", "quantize", "read_results",
    ]  # fmt: skip
    for name in clipq.__all__:
        assert getattr(clipq, name) is not None and name in dir(clipq)
        assert name == "__version__" or f"clipq.{name}" in PAGE, name
    with pytest.raises(AttributeError, match="clipq has no 'evalute'"):
        clipq.evalute  # noqa: B018


def test_importing_clipq_loads_next_to_nothing():
    code = "import sys, clipq; print([m for m in ('numpy', 'pydantic', 'onnx', 'onnxruntime', 'click', 'clipq.errors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_evaluate_can_be_called_whatever_was_imported_before():
    code = "import clipq.evaluate.run, clipq; clipq.evaluate([], data='x', suite='paper')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DataError: give data=SOURCE" in done.stderr.splitlines()[-1], done.stderr


def test_every_metric_of_predictions_is_there_with_its_interval():
    for name in [name for name, metric in METRICS.items() if metric.function]:
        found = getattr(clipq.metrics, name)(BASE.probabilities, BASE.labels)
        assert found.low <= found.value <= found.high and found.n == len(BASE) and float(found) == found.value
        assert getattr(clipq.metrics, name).__doc__
        assert name in dir(clipq.metrics)
    # The interval is the command's.
    made, _, _ = record("fp32", {"test": BASE}, recipe="fp32")
    row = next(one for one in made.measurements if one.metric == "ece")
    ece = clipq.metrics.ece(BASE.probabilities, BASE.labels)
    assert (ece.value, ece.low, ece.high) == (row.value, row.low, row.high)
    with pytest.raises(AttributeError, match="there are acc1, acc5"):
        clipq.metrics.accuracy  # noqa: B018


def test_arrays_are_compared_as_engines_are():
    found = clipq.compare_predictions(reference=(BASE.probabilities, BASE.labels), candidate=(WORSE.probabilities, WORSE.labels))  # fmt: skip
    base, mine = (record(name, {"": one}, recipe="fp32")[1] for name, one in (("fp32", BASE), ("int8", WORSE)))
    engines = [Engine(name, "", "", False) for name in ("int8", "fp32")]
    for row in measurements(engines[0], mine, engines[1], base):
        ours = found[row.metric]
        for column in ("value", "low", "high", "n", "delta", "delta_low", "delta_high", "p_value"):
            assert getattr(ours, column) == getattr(row, column), (row.metric, column)
    assert found.verdicts()["", "acc1"] == "worse" and found["flips_lost"].value > 0.05
    assert len(found.to_pandas()) == len(found.rows()) and "worse" in found._repr_html_()
    with pytest.raises(NotInResults, match="no 'acc' was measured"):
        found["acc"]


P, Y = BASE.probabilities, BASE.labels


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"candidate": (P[:-1], Y[:-1])}, "2000 samples and the candidate 1999"),
        ({"candidate": (P, np.roll(Y, 1))}, "labels differ at sample"),
        ({"candidate": (P * 7, Y)}, "candidate: predictions are not probabilities"),
        ({"reference": (P, Y.astype(float))}, "reference: labels are float64"),
        ({"candidate": ([["a"]], [0])}, "candidate: give arrays of numbers"),
        ({"groups": {"race": ["a"]}}, "groups 'race'"),
        ({"groups": {"race": ["a"] * 2000}}, "fewer than two groups"),
        ({"candidate": (np.c_[P, np.zeros(len(P))], Y)}, "another number of classes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given, words):
    with pytest.raises(DataError) as refused:
        clipq.compare_predictions(**{"reference": (P, Y), "candidate": (P, Y), **given})
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_results_in_python(folder, tmp_path):
    results = clipq.read_results(folder)
    assert [entry.name for entry in results] == ["fp32", "bad"] and results.failed[0].name == "dead"
    assert results["bad"]["test", "acc1"].delta < 0 and results.verdicts()["bad"]["accuracy"].verdict == "worse"
    assert results.sentences()["bad"].startswith("4.0× smaller")
    rows = results.rows()
    assert len(results.to_pandas()) == len(rows) and {row["engine"] for row in rows} == {"fp32", "bad"}
    shown = results._repr_html_()
    assert "▼" in shown and "out &lt;of&gt; memory" in shown and "confidence calibration" in shown
    for form in ("html", "md", "json", "csv"):
        assert results.report(tmp_path / f"x.{form}").stat().st_size > 100
    with pytest.raises(ResultsError, match=r"ends in \.html"):
        results.report(tmp_path / "x.doc")
    assert clipq.gate(folder, "strict").state == "fail" and clipq.compare(folder, results, margin=0.5).outcome
    with pytest.raises(PolicyError):
        clipq.gate(results, "stricter")
    with pytest.raises(DataError, match="margin"):
        clipq.compare(folder, folder, margin=0)


def test_wrong_use_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="give data=SOURCE"):
        clipq.evaluate([DEMO_BUNDLE], output=tmp_path / "x")
    with pytest.raises(BundleError):
        clipq.evaluate(tmp_path / "nothing", data="demo:test", output=tmp_path / "x")
    with pytest.raises(RecipeError, match="give a list"):
        clipq.quantize(DEMO_BUNDLE, "int8-static", output=tmp_path / "x")
    with pytest.raises(RecipeError, match="towers 'images'"):
        clipq.quantize(DEMO_BUNDLE, ["int8-dynamic"], towers="images", output=tmp_path / "x")
    with pytest.raises(RecipeError, match="no such folder"):
        clipq.quantize(DEMO_BUNDLE, ["int8-static"], calibration=tmp_path / "none", output=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_notebook_shows_how_far_it_is(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda bundle, raw: shown.append(bundle["text/html"]))
    display = ModuleType("IPython.display")
    display.display = lambda bundle, raw, display_id: handle
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with pytest.raises(BundleError):
        clipq.evaluate("nothing", data="demo:test")
    with progress_bars() as progress:
        progress.start("images of <x>", 8)
    assert shown[0].endswith("starting") and shown[-2:] == ['<progress value="0" max="8"></progress> images of &lt;x&gt; 0/8', ""]  # fmt: skip
    monkeypatch.setenv("CLIPQ_PROGRESS", "0")
    del shown[:]
    with progress_bars() as progress:
        progress.start("images", 8)
    assert shown == []
