"""The charts that ship are those of the module they are made by."""

from __future__ import annotations

import json

from charts import templates
from support import ROOT


def test_charts_json_is_what_charts_makes():
    shipped = json.loads((ROOT / "evaluate" / "report" / "charts.json").read_text("utf-8"))
    made = templates()
    for chart in (*shipped.values(), *made.values()):
        # Which version of Vega-Lite an altair was written for.
        chart.pop("$schema")
    assert shipped == made, "write it again: python tests/charts.py"
