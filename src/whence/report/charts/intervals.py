"""Values with their intervals, one a line, and the ceiling as a band across."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from whence.report.charts.style import INK, finite_or_nan, to_svg
from whence.report.wording import short, unique

Limits = tuple[float, float, float]

_WIDTH: Final = 460
_STEP: Final = 26  # height of a line


def intervals_svg(intervals: Mapping[str, Limits], ceiling: Limits | None, title: str) -> str:
    """A dot and its interval for each name, a rule at zero; empty where no value exists.

    Args:
        intervals: {name: (value, low, high)}, shown in this order.
        ceiling: A dashed rule at its value, a band over its interval.
        title: Name of the axis.
    """
    import altair as alt

    table = pd.DataFrame([finite_or_nan(limits) for limits in intervals.values()], columns=["value", "low", "high"])
    table.insert(0, "name", unique(map(short, intervals)))
    if not bool(table["value"].notna().any()):
        return ""
    color = "var(--series-0)"
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=220, ticks=False, domain=False))
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True, padding=8))
    zero = alt.Chart(pd.DataFrame({"value": [0.0]})).mark_rule(color=INK, opacity=0.5).encode(x=x)
    base = alt.Chart(table).encode(y=y)
    bars = base.mark_rule(color=color, strokeWidth=3, opacity=0.55).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    dots = base.mark_point(color=color, filled=True, size=70, opacity=1).encode(x=x)
    layers = [*_ceiling(ceiling, title), zero, bars, dots]
    return to_svg(alt.layer(*layers).properties(width=_WIDTH, height=_STEP * len(table)))


def _ceiling(ceiling: Limits | None, title: str) -> list[Any]:
    import altair as alt

    value, low, high = finite_or_nan(ceiling or (math.nan,) * 3)
    layers = []
    if not math.isnan(low + high):
        band = alt.Chart(pd.DataFrame({"low": [low], "high": [high]})).mark_rect(color=INK, opacity=0.1)
        layers.append(band.encode(x=alt.X("low:Q", title=title), x2="high:Q"))
    if not math.isnan(value):
        rule = alt.Chart(pd.DataFrame({"value": [value]})).mark_rule(color=INK, strokeDash=[5, 4])
        layers.append(rule.encode(x=alt.X("value:Q", title=title)))
    return layers
