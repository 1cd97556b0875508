"""The built-in suite on the command line: every axis is there, orderings are believable, failures are named."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from support import ON_THIS_CPU, assert_refused, evaluate

from clipq.bundle import open_bundle, stored_file, write_manifest
from clipq.evaluate.axes.classification import _resampled_scales, tuned
from clipq.evaluate.metrics.table import METRICS, metric_of
from clipq.evaluate.metrics.zeroshot import Answers, Classifier
from clipq.evaluate.results.folders import read_results
from clipq.evaluate.suites.suite import suite_text

NAMES = ("fp32", "int8-static-minmax", "int2-weight-only-rtn")


def arguments(bundles, names, folder, *, samples, corrupted=48, queries=60):
    """A run of the demo suite without latency, of so many images of each view."""
    text = suite_text("demo").split("[latency]")[0]
    for old, new in (
        ("samples = 300\n", ""),
        ("samples = 48", f"samples = {corrupted}"),
        ("samples = 32", "samples = 16"),
        ("queries = 100", f"queries = {queries}"),
        ('"all"', '"gaussian_noise", "fog", "gaussian_blur", "occlusion"'),
    ):
        text = text.replace(old, new)
    suite = folder / "suite.toml"
    suite.write_text(re.sub(r"(?m)^(source = .demo:.*)", rf"\1\nsamples = {samples}", text))
    return ["run", *(str(bundles / name) for name in names), "--suite", str(suite)]


@pytest.fixture(scope="module")
def results(bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("axes")
    done = evaluate(*arguments(bundles, NAMES, folder, samples=300), "-o", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def values(results):
    with (results / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {(r["bundle"], r["simulated"], r["view"], r["group"], r["metric"]): r for r in rows}


def value(values, bundle, view, group, metric):
    return float(values[bundle, "false", view, group, metric]["value"])


EXPECTED = [
    ("outline", "", "relative_drop.acc1"), ("outline", "", "effective_robustness.acc1"),
    ("unseen-shapes", "near", "auroc.mcm"), ("textures", "far", "fpr95_id_positive.energy"),
    ("textures", "far", "aupr_out.entropy"), ("test", "near", "auroc.msp"), ("test", "far", "auroc.max_logit"),
    ("captions", "", "image_retrieval_recall@5"), ("captions", "", "text_retrieval_recall@1"),
    ("test-c", "gaussian_noise/3", "corruption_acc1"), ("test-c", "occlusion_centre/5", "corruption_ece"),
    ("test-c", "", "mean_corruption_error"), ("test-c", "", "relative_mean_corruption_error"), ("pgd", "pgd/2", "robust_acc1"),
    ("pgd", "pgd/4", "attack_success"), ("test", "square/4", "robust_acc1"), ("test", "square/4", "queries"),
    ("test", "light", "group_gap.acc1"), ("test", "light*size", "equalized_odds_difference"),
    ("test", "light*size=night * small", "acc1"), ("test", "", "ece_tuned"), ("test", "", "logit_scale_tuned"),
    ("test", "", "ece_classwise"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_axis_is_there_with_interval_and_paired_difference(values, name):
    for key in EXPECTED:
        row = values[(name, "false", *key)]
        assert row["low"] and row["high"] and int(row["n"]) > 0, row
        if name != "fp32":
            assert row["reference"] == "fp32" and row["delta"] and row["delta_low"] and row["p_value"], row


def test_every_number_is_a_metric_of_the_table_in_one_of_its_forms_and_within_its_range(values):
    for key, row in values.items():
        metric = METRICS[metric_of(key[-1]).name]
        assert key[-1].removeprefix(metric.name) in (metric.forms or ("",)), key
        for name in ("value", "low", "high"):
            if row[name]:
                assert metric.within(float(row[name]), float(row[name])) == (float(row[name]),) * 2, (key, name)


def test_int2_is_worse_than_int8(values):
    for view, group, metric, sign in [
        ("test", "", "acc1", 1), ("palette", "", "acc1", 1), ("test", "far", "auroc.energy", 1), ("test-c", "", "mean_corruption_error", -1),
        ("test-c", "", "corruption_acc1", 1), ("captions", "", "image_retrieval_recall@1", 1),
    ]:  # fmt: skip
        int8, int2 = (value(values, name, view, group, metric) for name in NAMES[1:])
        assert sign * (int8 - int2) > 0.02, (view, group, metric, int8, int2)


def test_the_reference_is_the_unit_of_mce_and_robustness(values):
    assert value(values, "fp32", "test-c", "", "mean_corruption_error") == pytest.approx(1)
    assert value(values, "fp32", "outline", "", "effective_robustness.acc1") == pytest.approx(0, abs=1e-9)


def test_corruption_and_attack_hurt(values):
    clean = value(values, "fp32", "test-c", "", "clean_acc1")
    assert value(values, "fp32", "test-c", "gaussian_noise/5", "corruption_acc1") < clean - 0.3
    robust = [value(values, "fp32", "pgd", f"pgd/{epsilon}", "robust_acc1") for epsilon in (1, 2, 4)]
    assert robust == sorted(robust, reverse=True) and robust[2] < 0.3
    assert value(values, "fp32", "test", "square/4", "robust_acc1") < 1


def test_one_image_with_two_captions_cannot_be_paired_wrongly(values):
    """The reference's own retrieval is high on the world it was trained on: mismatched pairs would be near chance."""
    assert value(values, "fp32", "captions", "", "image_retrieval_recall@10") > 0.9


def test_deployed_minus_simulated_covers_the_axes(results):
    record = json.loads((results / "records" / f"int8-static-minmax__{ON_THIS_CPU}.json").read_text())
    metrics = {(row["view"], row["group"], row["metric"]) for row in record["deployed_minus_simulated"]}
    assert {
        ("test-c", "", "corruption_acc1"),
        ("textures", "far", "auroc.mcm"),
        ("test", "square/4", "robust_acc1"),
    } <= metrics
    assert record["attacks"][0]["kind"] == "transfer" and record["attacks"][1]["options"] == {"queries": 60}


def test_report_names_every_axis(results):
    text = (results / "report.html").read_text()
    for words in ("Out-of-distribution detection", "Corruptions", "transferred from FP32", "on the engine itself",
                  "Retrieval", "Gaps over", "Logit-scale tuning", "survive Holm", "Effective robustness"):  # fmt: skip
        assert words in text, words


def test_killed_in_the_middle_gives_the_same_values(bundles, tmp_path):
    run = arguments(bundles, NAMES[:2], tmp_path, samples=96, corrupted=12, queries=10)
    command = [sys.executable, "-m", "clipq.evaluate.cli", *run, "-o", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(list(tmp_path.glob("killed/cells/*/*.safetensors"))) < 40 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.csv").exists()
    for folder in ("killed", "calm"):
        assert evaluate(*run, "-o", str(tmp_path / folder)).returncode == 0
    killed, calm = (tmp_path / folder / "results.csv" for folder in ("killed", "calm"))
    assert killed.read_bytes() == calm.read_bytes()


def broken(source, target):
    """A bundle whose image tower answers NaN: its digests are right, so nothing but the answers betrays it."""
    shutil.copytree(source, target)
    model = onnx.load(target / "image.onnx")
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zero_for_nan")
    model.graph.initializer.append(zero)
    model.graph.node.append(onnx.helper.make_node("Div", ["before", "zero_for_nan"], ["infinite"]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["infinite", "zero_for_nan"], [output]))
    onnx.save(model, target / "image.onnx")
    manifest = open_manifest(target)
    tower = manifest.image.model_copy(update=stored_file(target, "image.onnx"))
    write_manifest(target, manifest.model_copy(update={"image": tower}))
    return target


def open_manifest(folder):
    from clipq.bundle import Manifest

    return Manifest.model_validate_json((folder / "clipq.json").read_bytes())


def test_a_broken_engine_is_named_and_the_others_go_on(bundles, tmp_path):
    bad = broken(bundles / "int8-dynamic", tmp_path / "bad-engine")
    assert open_bundle(bad).name == "bad-engine"
    run = ["--data", "demo:test:n=96", "-o", str(tmp_path / "out"), "--no-bench"]
    done = evaluate("run", str(bundles / "fp32"), str(bad), str(bundles / "int2-weight-only-rtn"), *run)
    assert done.returncode == 0, done.stderr
    assert "bad-engine failed and was not measured" in done.stdout and "not finite" in done.stdout
    with (tmp_path / "out" / "results.csv").open() as stream:
        assert {row["bundle"] for row in csv.DictReader(stream)} == {"fp32", "int2-weight-only-rtn"}
    record = json.loads((tmp_path / "out" / "records" / f"bad-engine__{ON_THIS_CPU}.json").read_text())
    assert "image tower on demo-test" in record["failed"] and record["measurements"] == []
    assert "failed and was not measured" in (tmp_path / "out" / "report.html").read_text()
    assert_refused(
        evaluate("run", str(bad), *run[:2], "-o", str(tmp_path / "only"), "--no-bench"), "every engine failed"
    )
    done = evaluate(
        "run", str(bad), str(bundles / "fp32"), "--reference", "bad-engine", *run[:2], "-o", str(tmp_path / "ref")
    )
    assert_refused(done, "the reference bad-engine failed")


def test_engines_join_a_folder_of_every_axis(bundles, tmp_path):
    """What a run is going to ask is held against what records say was asked: of the same suite it is the same."""
    others = ("int8-static-minmax", "int8-static-entropy")
    for name in others:
        asked = arguments(bundles, ("fp32", name), tmp_path, samples=96, corrupted=24, queries=2)
        done = evaluate(*asked, "-o", str(tmp_path / "out"), "--no-images")
        assert done.returncode == 0, done.stderr
    found = {entry.record.bundle.name for entry in read_results([tmp_path / "out"])}
    assert found == {"fp32", *others}


def test_sure_answers_have_no_interval_and_no_warning():
    answers = SimpleNamespace(cosines=np.array([[1.0, -1.0]] * 6), labels=np.zeros(6, np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scales = _resampled_scales(answers, np.ones(6, bool), 5000.0, 0)
    assert not np.isfinite(scales).any()


def test_no_scale_is_fitted_where_the_largest_is_best():
    """Two engines whose held-out answers are all right had 123 and 285, and a difference of 162."""
    rng = np.random.default_rng(0)
    classifier = Classifier(np.eye(4, dtype=np.float32), np.arange(4), 30.0, None)
    labels = rng.integers(0, 4, 60)
    embeddings = np.eye(4, dtype=np.float32)[labels]
    answers = Answers(embeddings, classifier, labels, tuple(map(str, range(60))))
    assert tuned(answers, view="v", fraction=0.5) == []
    wrong = Answers(embeddings, classifier, np.where(np.arange(60) < 50, labels, 0), answers.ids)
    assert [one.metric for one in tuned(wrong, view="v", fraction=0.5)] == [
        "ece_untuned",
        "ece_tuned",
        "logit_scale_tuned",
    ]
