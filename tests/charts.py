"""The report's charts as Vega-Lite specifications without data: the page gives each chart its rows when it is seen.

``python tests/charts.py`` writes what the page holds of them: ``charts.json``, and ``vega.js``, the libraries that draw
them. A test compares. Another version of vl-convert brings other libraries: see to LICENSE.vega, then.

Vega-Lite: 0.9 MB of script for tooltips, keyboard-readable SVG with labels, dark and light; Plotly's is 4.5 MB, Bokeh's
1.2 MB without what the trade-off chart needs, and matplotlib's SVG has no interaction.

Words in capitals (COST, VALUE, FORMAT, DOMAIN) are places that the page fills in.
"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import vl_convert
from support import ROOT

REPORT = ROOT / "evaluate" / "report"

# Okabe and Ito's palette: distinguishable with every common colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A600")
GREY = "#888888"
# One fewer than colours, so that colour and shape together tell 56 engines apart.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left")

_ROWS = alt.NamedData(name="rows")


def templates() -> dict[str, dict[str, Any]]:
    """Every kind of chart by name; each reads a data set ``rows``, the reliability diagram also ``line``."""
    charts = {
        "trade_off": _trade_off(),
        "bits": _bits(),
        "reliability": _reliability(),
        "histogram": _histogram(),
        "severity": _severity(),
        "dots": _dots(),
    }
    specs = {}
    for name, chart in charts.items():
        spec: dict[str, Any] = chart.to_dict(validate=False)
        # The page chooses the theme (light or dark); altair's default config would override it.
        spec.pop("config", None)
        specs[name] = spec
    return specs


def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    # The stub calls the snippet mandatory; without one the bundle is the three libraries themselves.
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return script


def _trade_off() -> Any:
    """Rows: engine, kind, runtime, cost and value with low and high, front, href, text (for readers of the screen)."""
    source = alt.Chart(_ROWS)
    x = alt.X("cost:Q", title="COST", scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=10))
    y = alt.Y("value:Q", title="VALUE", scale=alt.Scale(zero=False), axis=alt.Axis(format="FORMAT"))
    colour = alt.Color("kind:N", scale=alt.Scale(range=list(PALETTE)), legend=_legend(4))
    front = (
        source.transform_filter("datum.front")
        .mark_line(color=GREY, strokeDash=[5, 3], interpolate="step-after")
        .encode(x=x, y=y, order="cost:Q", detail="runtime:N")
    )
    upright = source.mark_rule(strokeWidth=2, opacity=0.5).encode(x=x, y="low:Q", y2="high:Q", color=colour)
    level = source.mark_rule(strokeWidth=2, opacity=0.5).encode(x="cost_low:Q", x2="cost_high:Q", y=y, color=colour)
    points = source.mark_point(size=150, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=alt.Shape("runtime:N", legend=_legend(4)),
        stroke=alt.condition("datum.front", alt.value(GREY), alt.value(None)),
        strokeWidth=alt.value(2.5),
        href="href:N",
        tooltip=_tooltip("engine", "recipe", "runtime", "kind", "metric", "costs", "Pareto"),
        description="text:N",
    )
    # Of neighbours one name stands above and one below.
    names = [
        source.transform_filter(where)
        .mark_text(align="left", dx=9, dy=dy, fontSize=11, color=GREY)
        .encode(x=x, y=y, text="name:N")
        for where, dy in (("datum.above", -8), ("!datum.above", 13))
    ]
    return alt.layer(front, upright, level, *names, points).properties(width="container", height=340)


def _bits() -> Any:
    """Rows: bits, value with low and high, method, towers, engine, text; ``base`` marks a row for the reference."""
    source = alt.Chart(_ROWS)
    x = alt.X("bits:O", title="bits of the weights", axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title="VALUE", scale=alt.Scale(zero=False), axis=alt.Axis(format="FORMAT"))
    colour = alt.Color("method:N", scale=alt.Scale(range=list(PALETTE)), legend=_legend(4))
    engines = source.transform_filter("!datum.base").encode(x=x, xOffset="method:N", color=colour)
    bars = engines.mark_rule(strokeWidth=2, opacity=0.5).encode(y="low:Q", y2="high:Q")
    points = engines.mark_point(size=80, filled=True, opacity=1).encode(
        y=y,
        shape=alt.Shape("towers:N", legend=_legend(3)),
        tooltip=_tooltip("engine", "method", "widths", "towers", "metric"),
        description="text:N",
    )
    base = source.transform_filter("datum.base").mark_rule(strokeDash=[4, 4], color=GREY).encode(y=y)
    return alt.layer(base, bars, points).properties(width="container", height=300)


def _reliability() -> Any:
    """Rows: lower, upper, middle, n, confidence, accuracy, low, high, engine; ``line`` the reference's."""
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=5)
    tooltip = ["engine:N", "n:Q", alt.Tooltip("confidence:Q", format=".3f"), alt.Tooltip("accuracy:Q", format=".3f")]
    x = alt.X("lower:Q", scale=scale, axis=axis, title="confidence")
    y = alt.Y("accuracy:Q", scale=scale, axis=axis, title="accuracy")
    ideal = (
        alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(strokeDash=[4, 4], color=GREY)
        .encode(x=alt.X("x:Q", title="confidence"), y=alt.Y("y:Q", title="accuracy"))
    )
    bars = (
        alt.Chart(_ROWS)
        .mark_bar(color=PALETTE[0], opacity=0.75, stroke=PALETTE[0])
        .encode(x=x, x2="upper:Q", y=y, y2=alt.datum(0), tooltip=tooltip)
    )
    errors = alt.Chart(_ROWS).mark_rule(color="#555555").encode(x="middle:Q", y="low:Q", y2="high:Q")
    line = (
        alt.Chart(alt.NamedData(name="line"))
        .mark_line(point=alt.OverlayMarkDef(color=PALETTE[5], filled=True, size=30), color=PALETTE[5])
        .encode(x="confidence:Q", y="accuracy:Q", tooltip=tooltip)
    )
    return alt.layer(ideal, bars, errors, line).properties(width=190, height=190)


def _histogram() -> Any:
    """Rows: score, part, population."""
    return (
        alt.Chart(_ROWS)
        .mark_area(interpolate="step-after", opacity=0.45, line=True)
        .encode(
            x=alt.X("score:Q", title="VALUE", scale=alt.Scale(zero=False)),
            y=alt.Y("part:Q", title="part of the images", stack=None, axis=alt.Axis(format="%")),
            color=alt.Color("population:N", scale=alt.Scale(range=[PALETTE[0], PALETTE[5]]), legend=_legend(1)),
            tooltip=["population:N", alt.Tooltip("score:Q", format=".4f"), alt.Tooltip("part:Q", format=".1%")],
        )
        .properties(width=200, height=150)
    )


def _severity() -> Any:
    """Rows: engine, severity (0: clean), value. A click in the legend picks engines out."""
    picked = alt.selection_point(name="picked", fields=["engine"], bind="legend")
    return (
        alt.Chart(_ROWS)
        .mark_line(point=True)
        .encode(
            x=alt.X("severity:O", title="severity (0: clean)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title="VALUE", axis=alt.Axis(format="FORMAT")),
            color=alt.Color("engine:N", scale=alt.Scale(range=list(PALETTE)), legend=_legend(3), sort=None),
            strokeDash=alt.StrokeDash("engine:N", legend=_legend(3), sort=None),
            opacity=alt.condition(picked, alt.value(1), alt.value(0.12)),
            tooltip=["engine:N", "severity:O", alt.Tooltip("value:Q", format="FORMAT")],
        )
        .add_params(picked)
        .properties(width="container", height=280)
    )


def _dots() -> Any:
    """Rows: label, n, engine, value, low, high: a dot with its interval for each engine; the page sets the height."""
    picked = alt.selection_point(name="picked", fields=["engine"], bind="legend")
    source = alt.Chart(_ROWS).encode(
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=260)),
        yOffset=alt.YOffset("engine:N", sort=None),
        color=alt.Color("engine:N", scale=_engines(PALETTE), legend=_legend(3)),
        opacity=alt.condition(picked, alt.value(1), alt.value(0.12)),
    )
    x = alt.X("value:Q", title="VALUE", axis=alt.Axis(format="FORMAT"), scale=alt.Scale(zero=False))
    bars = source.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    numbers = [alt.Tooltip(f"{name}:Q", format="FORMAT") for name in ("value", "low", "high")]
    points = source.mark_point(filled=True, size=50).encode(
        x=x,
        shape=alt.Shape("engine:N", scale=_engines(SHAPES), legend=_legend(3)),
        tooltip=["engine:N", "label:N", "n:Q", *numbers],
    )
    return alt.layer(bars, points.add_params(picked)).properties(width="container")


def _engines(symbols: tuple[str, ...]) -> Any:
    # One domain in so many words, by the page: only then are the legends of colours and shapes drawn as one.
    return alt.Scale(domain=["DOMAIN"], range=list(symbols))


def _legend(columns: int) -> Any:
    return alt.Legend(title=None, orient="bottom", columns=columns, symbolOpacity=1, labelLimit=320)


def _tooltip(*names: str) -> list[Any]:
    return [alt.Tooltip(f"{name}:N") for name in names]


if __name__ == "__main__":
    (REPORT / "charts.json").write_text(json.dumps(templates(), indent=1) + "\n", encoding="utf-8")
    (REPORT / "vega.js").write_text(library(), encoding="utf-8")
