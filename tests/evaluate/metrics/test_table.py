"""The table of metrics: ranges, forms, titles."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from clipq.evaluate.metrics.statistics import Draws
from clipq.evaluate.metrics.table import METRICS, Metric, Section, metric_of, title_of
from clipq.evaluate.results.estimates import Engine, Estimate, measurements
from clipq.evaluate.results.key import Key, attack_group, batch_group, condition_group, part_group, tower_view

ENGINE = Engine("int8", "int8-static", "ort-cpu", False)


def measured(metric, value, spread=0.01):
    draws = Draws(value, value + np.linspace(-spread, spread, 200), 100)
    (row,) = measurements(ENGINE, [Estimate("test", "", metric, draws, "fraction")], None, [])
    return row


def test_an_interval_holds_its_value_also_of_a_fraction_that_can_be_negative(monkeypatch):
    monkeypatch.setitem(METRICS, "gain", Metric("gain", "gain", "fraction", True, "classification", low=-1.0, high=1.0))
    row = measured("gain", -0.05)
    assert row.low < row.value < row.high and row.low == pytest.approx(-0.0595, abs=1e-3)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_a_range_that_its_intervals_keep(name):
    metric = METRICS[name]
    for value in (metric.low, metric.high, 0.5):
        if value is not None:
            row = measured(name + (metric.forms or ("",))[0], value)
            assert metric.within(row.low, row.high) == (row.low, row.high)
            assert row.low <= row.value <= row.high


def test_what_the_table_lacks_is_its_own_title_and_judged_by_nobody():
    unknown = metric_of("of_tomorrow.p50")
    assert (unknown.title, unknown.higher_is_better, unknown.within(-9, 9)) == ("of_tomorrow", None, (-9, 9))


def test_every_section_is_one_of_those_that_are_read():
    assert {metric.section for metric in METRICS.values()} == {*get_args(Section)} - {""}


def test_titles():
    assert [title_of(name) for name in ("acc1", "auroc.mcm", "group_gap.acc1", "text_retrieval_recall@10")] == [
        "top-1 accuracy", "AUROC, mcm", "gap (max − min)", "image → text R@10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (Key("test", "", "acc1"), {}),
        (Key("test", part_group("race", "Latino/Hispanic"), "acc1"), {"part": "race=Latino/Hispanic"}),
        (Key("test", "race*gender", "group_gap.acc1"), {"column": "race*gender"}),
        (Key("textures", "far", "auroc.mcm"), {"distance": "far"}),
        (Key("test-c", condition_group("gaussian_noise", 3), "corruption_acc1"), {"condition": ("gaussian_noise", 3)}),
        (Key("pgd", attack_group("pgd", 2), "robust_acc1"), {"attack": ("pgd", 2)}),
        (Key("pgd", attack_group("pgd", 2), "clean_acc1"), {"attack": ("pgd", 2)}),
        (Key("test-c", "", "clean_acc1"), {}),
        (Key(tower_view("image"), batch_group(8), "latency_ms.p50"), {"tower": "image", "batch": 8}),
        (Key(tower_view("text"), "", "file_bytes"), {"tower": "text"}),
    ],
)
def test_what_a_key_says_of_view_and_group_is_what_it_was_made_of(key, said):
    nothing = {"tower": "", "batch": None, "part": "", "column": "", "distance": "", "condition": None, "attack": None}
    assert {name: getattr(key, name) for name in nothing} == nothing | said
    assert key == tuple(key) and not math.isnan(hash(key))
