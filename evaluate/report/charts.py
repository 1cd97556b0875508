"""The report's charts as Vega-Lite specifications without data: the page gives each chart its rows when it is seen.

Vega-Lite by altair and vl-convert: 0.9 MB of script for tooltips, keyboard-readable SVG with labels, dark and light;
Plotly's is 4.5 MB, Bokeh's 1.2 MB without what the trade-off chart needs, and matplotlib's SVG has no interaction.
"""

from __future__ import annotations

from typing import Any

import altair as alt

# Okabe and Ito's palette: distinguishable with every common colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A600")

_ROWS = alt.NamedData(name="rows")


def templates() -> dict[str, dict[str, Any]]:
    """Every kind of chart by name; all but the histogram and the reliability diagram read one data set, ``rows``."""
    charts = {
        "trade_off": _trade_off(),
        "bits": _bits(),
        "reliability": _reliability(),
        "histogram": _histogram(),
        "severity": _severity(),
        "groups": _groups(),
    }
    specs = {}
    for name, chart in charts.items():
        spec: dict[str, Any] = chart.to_dict(validate=False)
        # The page chooses the theme (light or dark); altair's default config would override it.
        spec.pop("config", None)
        specs[name] = spec
    return specs


def _trade_off() -> Any:
    """Rows: engine, kind, runtime, cost with low and high, value with low and high, front, bundle."""
    source = alt.Chart(_ROWS)
    x = alt.X("cost:Q", title="COST", scale=alt.Scale(zero=False, nice=True))
    y = alt.Y("value:Q", title="VALUE", scale=alt.Scale(zero=False))
    colour = alt.Color("kind:N", scale=alt.Scale(range=list(PALETTE)), legend=_legend(3))
    tooltip = [alt.Tooltip(name) for name in ("engine:N", "recipe:N", "runtime:N", "metric:N", "costs:N", "Pareto:N")]
    front = (
        source.transform_filter("datum.front")
        .mark_line(color="#888888", strokeDash=[5, 3], interpolate="step-after")
        .encode(x=x, y=y, order="cost:Q")
    )
    bars = source.mark_rule(strokeWidth=2, opacity=0.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    wide = source.mark_rule(strokeWidth=2, opacity=0.5).encode(x=alt.X("cost_low:Q"), x2="cost_high:Q", y=y, color=colour)
    points = source.mark_point(size=110, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=alt.Shape("kind:N", legend=None),
        stroke=alt.condition("datum.front", alt.value("#888888"), alt.value(None)),
        strokeWidth=alt.value(3),
        tooltip=tooltip,
        description="label:N",
        href="link:N",
    )
    return alt.layer(front, bars, wide, points).properties(width="container", height=340)


def _bits() -> Any:
    """Rows: bits, value with low and high, method, towers, engine."""
    source = alt.Chart(_ROWS)
    x = alt.X("bits:O", title="bits of the weights", axis=alt.Axis(labelAngle=0))
    offset = alt.XOffset("method:N")
    colour = alt.Color("method:N", scale=alt.Scale(range=list(PALETTE)), legend=_legend(3))
    y = alt.Y("value:Q", title="VALUE", scale=alt.Scale(zero=False))
    bars = source.mark_rule(strokeWidth=2, opacity=0.5).encode(
        x=x, xOffset=offset, y=alt.Y("low:Q"), y2="high:Q", color=colour
    )
    points = source.mark_point(size=80, filled=True, opacity=1).encode(
        x=x, xOffset=offset, y=y, color=colour, shape=alt.Shape("towers:N", legend=_legend(3)),
        tooltip=["engine:N", "method:N", "widths:N", "towers:N", "metric:N"], description="label:N",
    )  # fmt: skip
    base = source.transform_filter("datum.base").mark_rule(strokeDash=[4, 4], color="#888888").encode(y=y)
    return alt.layer(base, bars, points).properties(width="container", height=300)


def _reliability() -> Any:
    """Rows: lower, upper, middle, n, confidence, accuracy, low, high, engine; ``line`` the reference's."""
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=5)
    tooltip = ["engine:N", "n:Q", alt.Tooltip("confidence:Q", format=".3f"), alt.Tooltip("accuracy:Q", format=".3f")]
    ideal = (
        alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(strokeDash=[4, 4], color="#888888")
        .encode(x=alt.X("x:Q", title="confidence"), y=alt.Y("y:Q", title="accuracy"))
    )
    bars = (
        alt.Chart(_ROWS)
        .mark_bar(color=PALETTE[0], opacity=0.75, stroke=PALETTE[0])
        .encode(
            x=alt.X("lower:Q", scale=scale, axis=axis, title="confidence"),
            x2="upper:Q",
            y=alt.Y("accuracy:Q", scale=scale, axis=axis, title="accuracy"),
            y2=alt.datum(0),
            tooltip=tooltip,
        )
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
            x=alt.X("score:Q", title="outlier score (mcm)", scale=alt.Scale(zero=False)),
            y=alt.Y("part:Q", title="part of the images", stack=None, axis=alt.Axis(format="%")),
            color=alt.Color("population:N", scale=alt.Scale(range=[PALETTE[0], PALETTE[5]]), legend=_legend(1)),
            tooltip=["population:N", alt.Tooltip("score:Q", format=".4f"), alt.Tooltip("part:Q", format=".1%")],
        )
        .properties(width=200, height=150)
    )


def _severity() -> Any:
    """Rows: engine, severity (0: clean), value."""
    return (
        alt.Chart(_ROWS)
        .mark_line(point=True)
        .encode(
            x=alt.X("severity:O", title="severity (0: clean)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title="top-1, mean over corruptions", axis=alt.Axis(format="%")),
            color=alt.Color("engine:N", scale=alt.Scale(range=list(PALETTE)), legend=_legend(3)),
            strokeDash=alt.StrokeDash("engine:N", legend=None),
            tooltip=["engine:N", "severity:O", alt.Tooltip("value:Q", format=".1%")],
        )
        .properties(width="container", height=280)
    )


def _groups() -> Any:
    """Rows: group, n, engine, value, low, high."""
    source = alt.Chart(_ROWS)
    x = alt.X("value:Q", title="top-1 accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False))
    y, offset = alt.Y("group:N", title=None, sort=None), alt.YOffset("engine:N", sort=None)
    colour = alt.Color("engine:N", scale=alt.Scale(range=list(PALETTE)), legend=_legend(3), sort=None)
    bars = source.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=y, yOffset=offset, color=colour)
    points = source.mark_point(filled=True, opacity=1, size=45).encode(
        x=x, y=y, yOffset=offset, color=colour,
        tooltip=["engine:N", "group:N", "n:Q", alt.Tooltip("value:Q", format=".1%"),
                 alt.Tooltip("low:Q", format=".1%"), alt.Tooltip("high:Q", format=".1%")],
    )  # fmt: skip
    return alt.layer(bars, points).properties(width="container", height=alt.Step(60))


def _legend(columns: int) -> Any:
    return alt.Legend(title=None, orient="bottom", columns=columns, symbolOpacity=1)
