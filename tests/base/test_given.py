from __future__ import annotations

import pytest
from support import DEMO_BUNDLE, assert_refused, evaluate, export

from clipq.evaluate.metrics.table import METRICS, spoken
from clipq.given import closest, hint

BUNDLE = str(DEMO_BUNDLE)


def test_what_was_meant():
    assert closest("sorce", ["name", "source"]) == "source"
    assert closest("quite another", ["name", "source"]) == "" and closest("x", []) == ""
    assert hint("nmae", ["name"]) == "; did you mean name?"
    for asked, name in {
        "accuracy": "acc1", "top1": "acc1", "Top-1": "acc1", "top5": "acc5", "adaptive ece": "ece_adaptive", "brier score": "brier",
        "ECE": "ece", "latency": "latency_ms", "worst_group": "group_worst", "recall": "mean_per_class_recall",
    }.items():  # fmt: skip
        assert closest(asked, METRICS, spoken()) == name


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["run", BUNDLE, "--suite", "pper"], "paper"),
        (["run", BUNDLE, "--data", "demo:test", "--runtime", "ort-cup"], "ort-cpu"),
        (["run", BUNDLE, "--data", "demo:test", "--reference", "bundel"], "bundle"),
        (["run", BUNDLE, "--data", "demo:test:nn=1"], "n"),
        (["gate", "x", "--policy", "mlperf99"], "mlperf-99"),
        (["suite", "init", "qiuck"], "quick"),
    ],
)
def test_names_that_there_are_not(tmp_path, monkeypatch, words, meant):
    monkeypatch.chdir(tmp_path)
    assert_refused(evaluate(*words, *(["-o", "out"] if "gate" not in words else [])), f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("recipe", "meant"),
    [("int8-statc", "int8-static"), ("int8-static:rnges=entropy", "ranges"), ("int8-static:ranges=entrpy", "entropy")],
)
def test_recipes_that_there_are_not(tmp_path, recipe, meant):
    assert_refused(export("quantize", BUNDLE, "--recipe", recipe, "-o", str(tmp_path)), f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('[[view]]\nsorce = "demo:test"', "source"),
        ('[[veiw]]\nsource = "demo:test"', "view"),
        (
            '[[view]]\nsource = "demo:test"\nname = "a"\n[[corruptions]]\nof = "a"\nnames = ["gausian_noise"]',
            "gaussian_noise",
        ),
    ],
)
def test_suites(tmp_path, text, meant):
    (tmp_path / "suite.toml").write_text(text)
    assert_refused(evaluate("suite", "check", str(tmp_path / "suite.toml")), f"did you mean {meant}?")


def test_policies(tmp_path):
    (tmp_path / "policy.toml").write_text('[[rule]]\nmetric = "accuracy"\nmin = 0.5')
    assert_refused(evaluate("gate", "x", "--policy", str(tmp_path / "policy.toml")), "'accuracy'; did you mean acc1?")
