"""What the report says in words, on results whose truth is known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import exact, predictions, record, worse

from clipq.evaluate.metrics.predictions import Predictions
from clipq.evaluate.metrics.statistics import Draws, wilson
from clipq.evaluate.results.estimates import Estimate
from clipq.evaluate.results.folders import gather
from clipq.evaluate.results.record import AttackRecord
from clipq.evaluate.verdicts.by_axis import axis_verdicts, findings, sentence
from clipq.evaluate.verdicts.judgement import breaks_promise

BASE = predictions(3000, accuracy=0.8)


def entry_of(candidate, *, base=BASE, base_extra=(), views=None, base_views=None, **asked):
    common = {key: asked[key] for key in ("metrics",) if key in asked}
    reference = record("fp32", base_views or {"test": base}, recipe="fp32", milliseconds=4.0, file_bytes=4_000_000, extra=base_extra, **common)  # fmt: skip
    made = record("int4", views or {"test": candidate}, **{"reference": "fp32", "base": reference[1], "milliseconds": 2.0, "file_bytes": 1_290_000} | asked)  # fmt: skip
    return gather([(Path("r"), [reference[0], made[0]])]).candidates[0]


def spread(view, group, metric, value, error, *, seed=0):
    """An estimate whose draws are normal around its value."""
    return Estimate(view, group, metric, Draws(value, value + error * np.random.default_rng(seed).normal(size=1000), 500), "fraction")  # fmt: skip


def moved(predictions, shift):
    """The same answers with confidences moved (towards certainty, if positive)."""
    logits = np.log(predictions.probabilities)
    scaled = np.exp(logits * np.exp(shift))
    return Predictions(scaled / scaled.sum(axis=1, keepdims=True), predictions.labels)


def test_size_speed_and_loss():
    entry = entry_of(worse(BASE, 0.05))
    text = sentence(entry)
    assert text.startswith("int4 on ort-cpu: 3.1× smaller, 2.0× faster [") and text.endswith(".")
    said = re.search(r"; top-1 −(\d\.\d) points \[−(\d\.\d), −(\d\.\d)\]", text)
    assert said, text
    lost = 100 * (BASE.correct & ~worse(BASE, 0.05).correct).mean()
    value, low, high = map(float, said.groups())
    assert value == pytest.approx(lost, abs=0.06) and high < value < low
    assert axis_verdicts(entry)["accuracy"].verdict == "worse"


def test_slower_and_larger_and_neither():
    slower = findings(entry_of(BASE, milliseconds=8.0, file_bytes=8_000_000))
    assert slower.startswith("2.0× larger, 2.0× slower [")
    neither = findings(entry_of(BASE, milliseconds=4.0, file_bytes=4_000_000))
    assert neither.startswith("as large, no faster or slower beyond the interval [")
    assert findings(entry_of(BASE, milliseconds=None)).startswith("3.1× smaller, speed not measured")


def test_unchanged_is_said_with_its_bound():
    entry = entry_of(worse(BASE, 0.001))
    found = axis_verdicts(entry)["accuracy"]
    row = found.rows[0]
    said = re.search(r"top-1 unchanged within ±(\d\.\d) points", findings(entry))
    assert found.verdict == "same" and said, findings(entry)
    bound = 100 * max(abs(row.delta_low), abs(row.delta_high))
    assert float(said[1]) + 1e-9 >= bound > float(said[1]) - 0.1


def test_undecided_is_neither_better_nor_worse():
    small = predictions(100, accuracy=0.8)
    flipped = small.probabilities.copy()
    wrong, right = np.flatnonzero(~small.correct)[:3], np.flatnonzero(small.correct)[:4]
    for row in right:
        flipped[row] = np.roll(flipped[row], 1)
    for row in wrong:
        flipped[row] = np.roll(flipped[row], small.labels[row] - flipped[row].argmax())
    entry = entry_of(Predictions(flipped, small.labels), base=small)
    assert axis_verdicts(entry)["accuracy"].verdict == "unknown"
    assert re.search(r"undecided: top-1 \(−1\.0 points \[−\d\.\d, \+\d\.\d\]\)", findings(entry)), findings(entry)


def test_becomes_overconfident_and_underconfident():
    calm = predictions(4000, accuracy=0.8)
    assert "becomes overconfident" in findings(entry_of(moved(calm, 1.0), base=calm))
    assert "becomes underconfident" in findings(entry_of(moved(calm, -1.0), base=calm))
    assert "confident" not in findings(entry_of(worse(calm, 0.001), base=calm))


def test_ood_is_said_once_where_both_are_the_same_and_apart_where_not():
    def ood(near, far, seed=0):
        return [spread("test", "near", "auroc.mcm", near, 0.001, seed=seed), spread("test", "far", "auroc.mcm", far, 0.001)]  # fmt: skip

    same = entry_of(BASE, base_extra=ood(0.8, 0.9), extra=ood(0.8, 0.9, seed=1))
    assert re.search(r"OOD detection unchanged within ±0\.6 points", findings(same))
    apart = findings(entry_of(BASE, base_extra=ood(0.8, 0.9), extra=ood(0.8, 0.85)))
    assert "far-OOD AUROC −5.0 points [−5.0, −5.0]" in apart and "near-OOD AUROC unchanged within" in apart


def test_the_gap_between_groups_grows_and_shrinks():
    base = [spread("test", "race", "group_gap.acc1", 0.1, 0.001)]
    for value, words in ((0.112, "grows by 1.2 points [1.2, 1.2]"), (0.09, "shrinks by 1.0 points [1.0, 1.0]")):
        entry = entry_of(BASE, base_extra=base, extra=[spread("test", "race", "group_gap.acc1", value, 0.001)])
        assert f"the gap between groups {words}" in findings(entry)


def test_of_several_views_the_worst_is_named_and_chance_is_not():
    views = {f"v{k}": predictions(800, accuracy=0.7, seed=k, labels_seed=k) for k in range(10)}
    changed = {name: worse(one, 0.2 if name == "v3" else 0.0, seed=4) for name, one in views.items()}
    entry = entry_of(None, views=changed, base_views=views)
    found = axis_verdicts(entry)["accuracy"]
    assert found.verdict == "worse" and [row.view for row in found.worse] == ["v3"] and found.text == "1 worse of 10"
    assert "top-1 worse in 1 of 10 (most: v3: top-1 −" in findings(entry)


def test_what_was_not_measured_is_unknown_and_not_in_the_sentence():
    entry = entry_of(BASE)
    assert axis_verdicts(entry)["retrieval"].verdict == "unknown"
    assert axis_verdicts(entry)["retrieval"].text == "not measured" and "retrieval" not in findings(entry)


def test_a_metric_without_a_value_is_unknown():
    nan = [exact("test", "near", "auroc.mcm", float("nan"))]
    entry = entry_of(BASE, base_extra=nan, extra=nan)
    assert axis_verdicts(entry)["near-ood"].verdict == "unknown"
    assert "near-OOD AUROC (not a number)" in findings(entry)


def test_simulated_engines_are_said_to_be_and_have_no_speed():
    text = findings(entry_of(worse(BASE, 0.05), recipe="simulated-w4a8"))
    assert text.startswith("simulated, so its size and speed say nothing; top-1 −") and "faster" not in text


def test_an_attack_is_judged_at_its_middle_strength():
    attack = AttackRecord(view="test", kind="transfer", method="pgd", epsilons=(1, 2, 4), n=100, options={}, digest="d")

    def robust(middle):
        return [spread("test", f"pgd/{e}", "robust_acc1", v, 0.001) for e, v in ((1, 0.9), (2, middle), (4, 0.1))]

    reference = record("fp32", {"test": BASE}, recipe="fp32", extra=robust(0.5))
    made = record("int4", {"test": BASE}, reference="fp32", base=reference[1], extra=robust(0.4))
    pair = [one[0].model_copy(update={"attacks": (attack,)}) for one in (reference, made)]
    entry = gather([(Path("r"), pair)]).candidates[0]
    found = axis_verdicts(entry)["adversarial"]
    assert "robust top-1 against a transferred attack −10.0 points" in findings(entry)
    assert found.verdict == "worse" and [row.group for row in found.rows] == ["pgd/2"]


def test_top1_under_corruptions_is_not_called_mce():
    """Occlusions are none of ImageNet-C's corruptions: there is no mCE, and a lower top-1 is a loss."""

    def under(value):
        return [spread("test-c", "", "corruption_acc1", value, 0.001)]

    entry = entry_of(BASE, base_extra=under(0.5), extra=under(0.4))
    assert "top-1 under corruptions −10.0 points" in findings(entry) and "mCE" not in findings(entry)
    assert axis_verdicts(entry)["corruptions"].verdict == "worse"


def test_faster_than_a_simulation_says_nothing():
    reference = record("w8", {"test": BASE}, recipe="simulated-w8a8", milliseconds=40.0)
    made = record("int8", {"test": BASE}, reference="w8", base=reference[1], milliseconds=2.0)
    (entry,) = gather([(Path("r"), [reference[0], made[0]])]).candidates
    assert findings(entry).startswith("the reference is simulated, so size and speed say nothing")


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"recipe": "int8-static"}, True),
        ({"recipe": "int8-static", "integer_share": 0.6}, False),
        ({"recipe": "int8-static", "towers": ("text",)}, False),
        ({"recipe": "int8-dynamic"}, True),
        ({"recipe": "modelopt-int8"}, True),
        ({"recipe": "tensorrt-int8"}, True),
        ({"recipe": "modelopt-fp8"}, False),
        ({"recipe": "int4-weight-only"}, False),
        ({"recipe": "fp16"}, False),
        ({"recipe": "simulated-w8a8"}, False),
    ],
)
def test_integers_are_a_promise(change, broken):
    made, _, _ = record("e", {"test": BASE}, milliseconds=2.0, **{"integer_share": 0.2, **change})
    (census,) = made.census
    assert breaks_promise(census, made.bundle, simulated=made.simulated) == broken
    assert not breaks_promise(census, made.bundle, simulated=True)
    assert not breaks_promise(census.model_copy(update={"verdict": "unknown"}), made.bundle, simulated=False)


def test_the_promise_is_in_the_scheme_and_not_in_the_name():
    made, _, _ = record("e", {"test": BASE}, recipe="fp16", milliseconds=2.0, integer_share=0.2)
    promising = made.bundle.scheme.model_copy(update={"arithmetic": "integer"})
    bundle = made.bundle.model_copy(update={"scheme": promising})
    assert breaks_promise(made.census[0], bundle, simulated=False)


def exchanged(base, part, rng):
    """No true difference: a right answer turns wrong as often, in expectation, as a wrong one turns right."""
    probabilities = base.probabilities.copy()
    rate = np.where(base.correct, part, part * 0.8 / 0.2)
    for row in np.flatnonzero(rng.random(len(base)) < rate):
        target = (base.labels[row] + rng.integers(1, 5)) % 5 if base.correct[row] else base.labels[row]
        probabilities[row] = np.roll(probabilities[row], target - probabilities[row].argmax())
    return Predictions(probabilities, base.labels)


@pytest.fixture(scope="module")
def alarms():
    """How many of 200 engines that truly are the same are called better or worse, by the number of views."""
    found = {1: 0, 5: 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        base = {f"v{k}": predictions(500, accuracy=0.8, seed=(seed, k), labels_seed=(seed, k)) for k in range(5)}
        same = {name: exchanged(one, 0.05, rng) for name, one in base.items()}
        entry = entry_of(None, views=same, base_views=base, metrics=("acc1",))
        for views in found:
            part = entry.record.model_copy(update={"views": entry.record.views[:views]})
            found[views] += axis_verdicts(replace(entry, record=part))["accuracy"].verdict in ("better", "worse")
    return found


@pytest.mark.parametrize("views", [1, 5])
def test_false_alarms_on_accuracy_are_at_the_stated_rate(views, alarms):
    """200 draws of engines that truly are the same: "better" or "worse" in 5 % of them, over several views too."""
    low, high = wilson(alarms[views], 200)
    assert low <= 0.05 and high >= 0.02, (alarms, low, high)
