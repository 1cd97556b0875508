"""What the terminal shows."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from support import DEMO_BUNDLE
from synthetic import many, predictions, record

from clipq.bundle import open_bundle
from clipq.evaluate.report.terminal import _print_axes, print_census, print_summary
from clipq.evaluate.results.record import CensusRecord, KernelRecord


@pytest.mark.parametrize("width", [80, 100, 150])
def test_no_engine_is_cut_away(width):
    records = []
    for one in many(20, 2):
        bundle = one.bundle.model_copy(update={"name": f"{one.bundle.name}-weight-only-rtn"})
        records.append(one.model_copy(update={"bundle": bundle}))
    console = Console(width=width, record=True, file=io.StringIO())
    _print_axes(console, records)
    lines = console.export_text().splitlines()
    heads = [line for line in lines if line.startswith("┃")]
    assert all(any(f" {record.name} " in line for line in heads) for record in records)
    # A line that is cut ends in no border.
    assert all(line.rstrip()[-1] in "┃│┓┩┘" for line in lines if line[:1] in "┃│┏┡└")


def test_a_ratio_is_to_the_reference_of_its_own_turns(capsys):
    """A kept time may be from another run than the reference's, at another size; it was printed over the latter's."""
    base = predictions(50)
    records = []
    for name, batch, value, delta in (("fp32", 8, 10.0, None), ("mine", 8, 6.0, -6.0), ("kept", 1, 1.0, -1.0)):
        one = record(name, {"v": base}, reference="fp32", milliseconds=value)[0]
        where = {"view": "tower:image", "group": f"batch={batch}", "metric": "latency_ms.p50"}
        row = replace(
            one.measurements[-1], **where, unit="ms", value=value, delta=delta, reference="fp32" if delta else ""
        )
        latency = (one.latency[0].model_copy(update={"batch": batch}),)
        records.append(one.model_copy(update={"latency": latency, "measurements": (*one.measurements[:3], row)}))
    for order in (records, [records[0].model_copy(update={"latency": ()}), *records[1:]]):
        print_summary(order)
        shown = capsys.readouterr().out.partition("engines: batch 8")[2]
        found = {line.split()[1]: line.replace("│", " ").split() for line in shown.splitlines() if line[:1] == "│"}
        assert found["mine"][2:4] == ["6.00", "0.50"] and "1.00" not in found["kept"][1:], shown
        assert order is not records or found["fp32"][2:4] == ["10.00", "1.00"]


def test_every_tower_is_under_the_bundles_name(capsys):
    """A GPU's census names kernels, which CPUs' do not: the second tower's table bore the last of them as its name."""
    kernels = (
        KernelRecord(op="kernel", arithmetic="float", count=1, macs=0, milliseconds=1.0, kernels=("nvjet_sm90_hsh",)),
    )
    rows = [
        CensusRecord(
            tower=tower, recipe="fp16", verdict="float", integer_share=0, integer_time_share=0, matmul_time_share=1,
            kernels=kernels, other_milliseconds={}, evidence="kernels that ran",
        )
        for tower in ("image", "text")
    ]  # fmt: skip
    print_census("mine", open_bundle(DEMO_BUNDLE).manifest, rows, simulated=False)
    shown = capsys.readouterr().out
    assert re.findall(r"(\S+), (\w+) tower", shown) == [("mine", "image"), ("mine", "text")], shown


def test_a_view_that_one_engine_was_not_asked_is_shown_of_the_others(capsys, monkeypatch):
    """An engine that ran elsewhere brings back what it was asked there, perhaps of one view alone."""
    # Wide enough for a cell to stand in one line.
    monkeypatch.setenv("COLUMNS", "200")
    whole = record("fp32", {"first": predictions(60), "second": predictions(70)}, recipe="fp32")[0]
    part, second = (record("phone", {name: predictions(60)}, reference="fp32")[0] for name in ("first", "second"))
    unasked = second.views[0].model_copy(update={"n": 0})
    phone = part.model_copy(update={"views": (*part.views, unasked), "unanswered": {"second (labelled)": "not asked"}})
    print_summary([phone, whole])
    said = " ".join(capsys.readouterr().out.split())
    assert "second: 70 images" in said
    assert "not measured" in said
