"""Regularities on results whose truth is known: found where there is one, at the stated rate where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from synthetic import predictions, record, scheme_of

from clipq.evaluate.metrics.statistics import wilson
from clipq.evaluate.results.folders import gather
from clipq.evaluate.results.record import Measurement
from clipq.evaluate.verdicts.regularities import find_regularities

BASE = record("fp32", {"test": predictions(100)}, recipe="fp32")[0]
RECIPES = (
    ("int8-static", {"ranges": "minmax"}), ("int8-static", {"ranges": "entropy"}), ("int8-static", {"ranges": "percentile"}),
    ("int8-dynamic", {}), ("int8-weight-only", {"algorithm": "rtn"}), ("int8-weight-only", {"algorithm": "hqq"}),
    ("int4-weight-only", {"algorithm": "rtn"}), ("int4-weight-only", {"algorithm": "hqq"}), ("int4-weight-only", {"algorithm": "gptq"}),
    ("int4-weight-only", {"algorithm": "awq"}), ("int2-weight-only", {"algorithm": "rtn"}), ("int2-weight-only", {"algorithm": "hqq"}),
)  # fmt: skip


def row_of(name, recipe, metric, z, *, error=0.01, reference="fp32"):
    """A measurement whose difference is ``z`` standard errors."""
    delta = z * error
    return Measurement(
        bundle=name, recipe=recipe, runtime="ort-cpu", simulated=False, view="test", metric=metric, unit="fraction", value=0.5, low=0.45, high=0.55,
        n=100, reference=reference, delta=delta, delta_low=delta - 1.96 * error, delta_high=delta + 1.96 * error, p_value=2 * norm.sf(abs(z)),
    )  # fmt: skip


def study(effects, *, gap=0.0):
    """One engine per recipe with these effects, in standard errors: {metric: [z, ...]}; ``gap`` is the reference's."""
    low, high = gap - 0.01, gap + 0.01
    overconfidence = replace(BASE.measurements[0], metric="confidence_gap", value=gap, low=low, high=high)  # fmt: skip
    reference = BASE.model_copy(update={"measurements": (overconfidence,)})
    records = [reference]
    for number, (recipe, options) in enumerate(RECIPES):
        name = f"{recipe}-{number}"
        rows = tuple(row_of(name, recipe, metric, z[number]) for metric, z in effects.items())
        made = {"name": name, "recipe": recipe, "scheme": scheme_of(recipe, options), "options": options}
        bundle = BASE.bundle.model_copy(update=made)
        records.append(BASE.model_copy(update={"bundle": bundle, "reference": "fp32", "measurements": rows}))
    return gather([(Path("r"), records)])


def test_what_most_int8_engines_share_is_found_with_its_counts():
    z = [-6.0, -5.0, -7.0, -5.5, -6.5, 0.3] + [0.0] * 6
    found, looked_at = find_regularities(study({"ece": z}))
    texts = [one.text for one in found]
    assert "among engines with 8-bit weights, confidence calibration improves in 5 of 6 engines" in texts
    assert not any("4-bit" in text or "2-bit" in text or "worsens" in text for text in texts)
    assert looked_at >= 6 and all(one.p_value < 0.05 / 6 for one in found)


def test_direction_follows_the_metric():
    z = [5.0] * len(RECIPES)
    assert all("worsens" in one.text for one in find_regularities(study({"ece": z}))[0])
    assert all("improves" in one.text for one in find_regularities(study({"acc1": z}))[0])


def test_overconfident_references_are_told_apart():
    texts = [one.text for one in find_regularities(study({"ece": [-6.0] * len(RECIPES)}, gap=0.1))[0]]
    assert "among all engines, confidence calibration improves in 12 of 12 engines" in texts
    under, _ = find_regularities(study({"ece": [0.0] * len(RECIPES)}, gap=0.1))
    assert under == []


def test_two_engines_are_no_family():
    found, looked_at = find_regularities(study({"ece": [9.0] * 10 + [-9.0] * 2}))
    assert looked_at and not any("2-bit" in one.text for one in found)


def test_families_are_read_off_the_scheme():
    found = study({"ece": [-6.0] * 6 + [0.0] * 6})
    for entry in found.candidates:
        bundle = entry.record.bundle
        if bundle.scheme.weight_bits == 8:
            odd = bundle.model_copy(update={"scheme": bundle.scheme.model_copy(update={"weight_bits": 3})})
            object.__setattr__(entry, "record", entry.record.model_copy(update={"bundle": odd}))
    texts = [one.text for one in find_regularities(found)[0]]
    assert "among engines with 3-bit weights, confidence calibration improves in 6 of 6 engines" in texts
    assert not any("8-bit" in text for text in texts)


def test_half_of_the_engines_is_needed():
    found, _ = find_regularities(study({"ece": [9.0] * 2 + [0.0] * 10}))
    assert found == []


@pytest.mark.parametrize("common", [0.0, 0.9], ids=["independent", "same photos"])
def test_false_alarms_are_at_the_stated_rate(common):
    """200 studies without any true difference: the share with a regularity is at most 5 %, however dependent."""
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        effects = {}
        for metric in ("acc1", "ece"):
            shared = rng.normal()
            effects[metric] = np.sqrt(common) * shared + np.sqrt(1 - common) * rng.normal(size=len(RECIPES))
        alarms += bool(find_regularities(study(effects))[0])
    assert wilson(alarms, 200)[0] <= 0.05, alarms
