"""What the terminal shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from synthetic import many

from clipq.evaluate.report.terminal import _print_axes


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
