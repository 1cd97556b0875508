"""The Python door: docs/python.md as it stands, what is promised, and what is refused."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from support import DEMO_BUNDLE, ROOT, assert_refused, evaluate
from synthetic import predictions, record, worse, write_results

import clipq
import clipq.metrics
from clipq.errors import BundleError, ClipqError, DataError, NotInResults, PolicyError, RecipeError, ResultsError
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
    same, table = names["same"], names["table"]
    assert (same.dtypes == table.dtypes[same.columns]).all()
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
        "ClipqError", "Corruptions", "ForeignEngine", "Settings", "Suite", "View", "__version__", "adopt", "compare",
        "compare_predictions", "evaluate", "export", "export_cells", "gate", "import_cells", "metrics", "open_bundle", "quantize", "read_results",
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
        ({"reference": P}, "give a pair, (probabilities, labels)"),
        (
            {"candidate": (np.where(P[3, 0] == P, np.nan, P), Y)},
            "candidate: sample 3 has a probability that is not finite",
        ),
        (
            {"candidate": (np.log(P + 1e-9), Y)},
            "candidate: predictions are not probabilities: rows must be non-negative",
        ),
        ({"candidate": (P[:0], Y[:0])}, "one sample at least"),
        ({"candidate": (np.ma.masked_array(P, P[3, 0] == P), Y)}, "candidate: some values are masked"),
        ({"reference": (P, np.ma.masked_array(Y, Y[0] == Y))}, "reference: some values are masked"),
        ({"candidate": (P[:, 0], Y)}, "give samples × classes"),
        ({"reference": (P[:, :1], Y)}, "reference: fewer than two classes"),
        ({"candidate": (None, None)}, "candidate: labels are object"),
        ({"groups": ["a"] * 2000}, "give a value per sample by column"),
        ({"groups": {"race": "a"}}, "groups 'race' 'a': give a value per sample"),
        ({"groups": {"race": ["a", None] * 1000}}, "groups 'race': sample 1 has no value (None)"),
        ({"groups": {"race": ["a", float("nan")] * 1000}}, "groups 'race': sample 1 has no value (nan)"),
        (
            {"groups": pd.DataFrame({"race": pd.Series(["a", None] * 1000, dtype="string")})},
            "sample 1 has no value (<NA>)",
        ),
        ({"groups": {"race": [("a", "b")] * 2000}}, "give one value per sample"),
        ({"groups": {"age": list(range(2000))}}, "(age=0 1, age=1 1, age=2 1, age=3 1, age=4 1, …)"),
        ({"groups": {"race": ["a"]}}, "groups 'race'"),
        ({"groups": {"a": ["b=c", "d"] * 1000, "a=b": ["c", "d"] * 1000}}, "both have a group 'a=b=c'"),
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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda out: clipq.open_bundle(None), "bundle None: give a path"),
        (lambda out: clipq.quantize(DEMO_BUNDLE, None, output=out), "recipes None: give one, or a list"),
        (lambda out: clipq.quantize(DEMO_BUNDLE, [], output=out), "recipes: the list is empty"),
        (lambda out: clipq.quantize(DEMO_BUNDLE, [8], output=out), "recipe 8: give it as text"),
        (lambda out: clipq.quantize(DEMO_BUNDLE, ["fp16"], towers=["image"], output=out), "towers ['image']: give both"),
        (lambda out: clipq.quantize(DEMO_BUNDLE, ["fp16", "int8-static"], output=out), "int8-static measures activation"),
        (lambda out: clipq.quantize("demo", ["fp16"], output=__file__), "is a file; give a folder"),
        (lambda out: clipq.export(3, out), "checkpoint 3: give it as text"),
        (lambda out: clipq.export("demo", out, opset=3), "opset 3: give 21"),
        (lambda out: clipq.evaluate([], data="demo:test", output=out), "bundles: the list is empty"),
        (lambda out: clipq.evaluate([None], data="demo:test", output=out), "bundle None: give a path"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, data=[], output=out), "data: the list is empty"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, data={"a": "demo:test"}, output=out), "give one, or a list"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, data=np.zeros((9, 9)), output=out), "give it as text"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, data=out / "photos", output=out), "photos: does not exist"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, suite=out / "suite.toml", output=out), "suite.toml: cannot be read"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, suite={"view": []}, output=out), "a clipq.Suite(...)"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, suite=clipq.Suite(), output=out), "there is nothing to evaluate on"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, data="demo:test", settings={}, output=out), "settings {}: give clipq."),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, data="demo:test", output=f"{__file__}/x"), "is a file; give a folder"),
        (lambda out: clipq.evaluate(DEMO_BUNDLE, data="demo:test", output=DEMO_BUNDLE), "is a bundle; give another"),
        (lambda out: clipq.read_results(), "results: the list is empty"),
        (lambda out: clipq.read_results(["results"]), "results ['results']: give a path"),
        (lambda out: clipq.compare(out, None, margin="1"), "margin '1': give a number"),
        (lambda out: clipq.compare(out, out, margin=1), "margin 1: give a number above 0 and below 1"),
        (lambda out: clipq.gate(out, None), "policy None: give it as text"),
    ],
)  # fmt: skip
def test_what_is_no_path_list_or_number_is_refused_in_a_line(call, words, tmp_path):
    with pytest.raises(ClipqError) as refused:
        call(tmp_path / "out")
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def _suite(**more):
    return clipq.Suite(view=(clipq.View(source="demo:test:n=48", name="test"),), **more)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: clipq.View("demo:test"), "View('demo:test'): give it by name; there are source, role"),
        (lambda: clipq.View(), "View: source is missing"),
        (lambda: clipq.View(source="demo:test", rol="shifted"), "View: no key 'rol'; there are source, role"),
        (lambda: clipq.View(source="demo:test", role="ood"), "role 'ood': input should be 'in-distribution'"),
        (lambda: clipq.View(source="demo:test", groups="race", samples=0), "groups 'race': input should be a valid tuple; samples 0"),
        (lambda: clipq.Corruptions(of="test", severities=3), "Corruptions: severities 3"),
        (lambda: clipq.Suite(view=clipq.View(source="demo:test")), "Suite: view.0"),
        (lambda: clipq.Suite(view=[{"source": "demo:test", "rol": 1}]), "no key 'view.0.rol'"),
        (lambda: _suite(corruptions=(clipq.Corruptions(of="tset"),)), "suite: corruptions.1.of: of 'tset' is no labelled view (test)"),
        (lambda: _suite(corruptions=(clipq.Corruptions(of="test", names=("smog",), severities=(9,)),)), "unknown corruption 'smog'"),
        (lambda: _suite(corruptions=(clipq.Corruptions(of="test", names=()),)), "names is empty"),
        (lambda: clipq.Suite(view=(clipq.View(source="demo:textures", role="far-ood"),)), "needs a view with role in-distribution"),
        (lambda: clipq.Suite(view=(clipq.View(source="demo:test"),) * 2), "two views are called 'demo-test'"),
        (lambda: clipq.Suite(view=(clipq.View(source="nowhere", classes_of="x"),)), "nowhere: does not exist"),
    ],
)  # fmt: skip
def test_suites_made_in_python_are_checked_as_files_are(make, words, tmp_path):
    with pytest.raises(DataError) as refused:
        clipq.evaluate(DEMO_BUNDLE, suite=make(), output=tmp_path / "out")
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_bundle_stands_where_its_folder_does(monkeypatch):
    bundle = clipq.open_bundle(str(DEMO_BUNDLE))
    assert clipq.open_bundle(bundle).path == bundle.path == DEMO_BUNDLE
    monkeypatch.chdir(DEMO_BUNDLE)
    assert clipq.open_bundle(".").name == DEMO_BUNDLE.name


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch": True}, "batch True: give a whole number from 1 to 256, or 'measure'"),
        ({"batch": 16.0}, "batch 16.0: give a whole number"),
        ({"threads": "2"}, "threads '2': give a whole number"),
        ({"runtime": "gpu"}, "unknown runtime 'gpu'"),
        ({"runtime": ["ort-cpu"]}, "runtime ['ort-cpu']: give it as text"),
        ({"fetch": True}, "fetch True: give a path"),
        ({"pixels": "cache"}, "pixels 'cache': give None"),
        ({"thumbnails": "no"}, "thumbnails 'no': give True or False"),
    ],
)
def test_settings_say_what_they_take(wrong, words):
    with pytest.raises(ClipqError) as refused:
        clipq.Settings(**wrong)
    assert words in str(refused.value)


def test_settings_take_what_was_meant_and_keep_pixels_as_the_commands_do(tmp_path, monkeypatch):
    made = clipq.Settings(batch=np.int64(16), threads=np.int32(2), fetch=str(tmp_path), cells=tmp_path)
    assert json.dumps([made.batch, made.threads]) == "[16, 2]" and made.fetch == tmp_path
    monkeypatch.setenv("CLIPQ_PIXEL_CACHE", str(tmp_path))
    assert clipq.Settings(threads=2).pixels.folder == tmp_path and clipq.Settings(pixels=None).pixels is None
    monkeypatch.setenv("CLIPQ_PIXEL_CACHE_GB", "much")
    with pytest.raises(ClipqError, match="CLIPQ_PIXEL_CACHE_GB=much"):
        clipq.Settings()


@pytest.mark.parametrize("size", ["nan", "inf", "-inf", "1e308", "-1"])
def test_a_size_of_the_pixel_cache_that_is_none_is_refused(size, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPQ_PIXEL_CACHE_GB", size)
    with pytest.raises(ClipqError, match="CLIPQ_PIXEL_CACHE_GB="):
        clipq.Settings()
    monkeypatch.delenv("CLIPQ_PIXEL_CACHE_GB")
    words = ["run", str(DEMO_BUNDLE), "--data", "demo:test", "--pixel-cache-gb", size, "-o", str(tmp_path / "out")]
    done = evaluate(*words)
    if "-" not in size:  # click itself says the range
        assert_refused(done, "--pixel-cache-gb", "0 to keep none")
    assert done.returncode == 2 and not (tmp_path / "out").exists()


def test_metrics_can_be_starred_formatted_and_sent_to_other_processes():
    names = {}
    exec("from clipq.metrics import *", names)
    assert set(names) - {"__builtins__"} == set(dir(clipq.metrics))
    assert pickle.loads(pickle.dumps(clipq.metrics.ece)) is clipq.metrics.ece
    found = clipq.metrics.ece(P, Y)
    assert f"{found:.3f}" == f"{found.value:.3f}" and f"{found}" == str(found)
    with pytest.raises(ClipqError, match="bins 0: give a whole number"):
        clipq.metrics.ece(P, Y, bins=0)


def test_groups_of_any_kind_have_every_sample_once():
    half = ["a"] * 1000 + ["b"] * 1000
    for groups in ({"half": half}, pd.DataFrame({"half": half}), {"half": pd.Series(half).astype("category")}):
        found = clipq.compare_predictions(reference=(P, Y), candidate=(P, Y), groups=groups)
        assert found["half=a", "acc1"].n == found["half=b", "acc1"].n == 1000
    mixed = {"kind": np.array([1, "1", 2, 2] * 500, object)}
    assert clipq.compare_predictions(reference=(P, Y), candidate=(P, Y), groups=mixed)["kind=1", "acc1"].n == 1000


def test_results_say_what_they_are_asked_by(folder):
    results = clipq.read_results(folder)
    for key in (0, None, ["fp32"], ("fp32", "test"), np.zeros(2)):
        with pytest.raises(NotInResults, match="no engine is called"):
            results[key]
    for key in (0, "test", ["test", "acc1"], (0, 1), (["test"], "acc1")):
        with pytest.raises(NotInResults, match=r"by \[view, metric\]|has no view 0"):
            results["fp32"][key]
    for words, metric in (("accuracy", "acc1"), ("top-1 accuracy", "acc1"), ("ECE", "ece")):
        with pytest.raises(NotInResults, match=f"did you mean '{metric}'"):
            results["fp32"]["test", words]
    assert results._ipython_key_completions_() == ["fp32", "bad"]
    assert ("test", "acc1") in results["fp32"]._ipython_key_completions_()
    for again in (pickle.loads(pickle.dumps(results)), copy.deepcopy(results)):
        assert again.verdicts() == results.verdicts() and again["bad"].reference is again["fp32"]


def test_a_folder_never_mixes_engines_of_other_data(session, tmp_path, monkeypatch):
    folder, names = session
    monkeypatch.chdir(folder)
    fp32, *others = names["bundles"]
    settings = clipq.Settings(thumbnails=False)

    def evaluated(bundles, name, samples):
        suite = clipq.Suite(view=(clipq.View(source=f"demo:test:n={samples}", name=name),))
        return clipq.evaluate(bundles, suite=suite, settings=settings, output=tmp_path)

    evaluated([fp32, others[0]], "test", 48)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, samples, words in (("test", 60, "on another 'test'"), ("more", 48, "on another 'test'")):
        with pytest.raises(ResultsError, match=f"holds int8-static-minmax, evaluated {words}: give another folder"):
            evaluated([fp32, others[1]], name, samples)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Engines of the same data come together, and all of them may be evaluated on other data.
    assert len(evaluated([fp32, others[1]], "test", 48)) == 2 and len(clipq.read_results(tmp_path)) == 3
    assert {entry["test", "acc1"].n for entry in evaluated(names["bundles"], "test", 60)} == {60}


def test_a_notebook_shows_what_is_asked_of_it(folder):
    shown = clipq.gate(folder, "strict")._repr_html_()
    assert "<caption>fail</caption>" in shown and "acc1.delta" in shown
    assert "B − A" in clipq.compare(folder, folder, margin=0.5)._repr_markdown_()
    assert list(inspect.signature(clipq.evaluate).parameters) == ["bundles", "data", "suite", "settings", "output"]
    assert "clipq.Suite" in inspect.getdoc(clipq.evaluate)
