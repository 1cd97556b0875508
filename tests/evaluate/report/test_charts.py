"""The charts and the libraries that ship are what ``tests/charts.py`` makes."""

from __future__ import annotations

import json

import vl_convert
from charts import REPORT, library, templates
from support import ROOT

AGAIN = "write it again: python tests/charts.py"


def test_charts_json_is_what_charts_makes():
    shipped = json.loads((REPORT / "charts.json").read_text("utf-8"))
    made = templates()
    for chart in (*shipped.values(), *made.values()):
        # Which version of Vega-Lite an altair was written for.
        chart.pop("$schema")
    assert shipped == made, AGAIN


def test_vega_js_is_what_charts_makes():
    # Compared apart from the assertion, which would show 0.9 MB.
    same = (REPORT / "vega.js").read_text("utf-8") == library()
    assert same, AGAIN
    holds = f"Vega {vl_convert.get_vega_version()}, Vega-Lite {vl_convert.get_vegalite_versions()[-1]}"
    assert holds in (ROOT / "LICENSE.vega").read_text("utf-8")
