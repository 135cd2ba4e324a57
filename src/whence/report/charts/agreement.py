"""Agreement against the amount of further training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import pandas as pd

from whence.report.charts.style import INK, SHAPES, finite_or_nan, series_color, to_svg
from whence.report.wording import short, unique

Curve = Mapping[int, tuple[float, float, float]]  # value, low, high by amount

_WIDTH, _HEIGHT = 460, 260
_CEILING: Final = "ceiling: perfect scores"


def agreement_svg(curves: Mapping[str, Curve], ceiling: Curve | None, metric: str, point_unit: str) -> str:
    """One line per method with its band, and the ceiling dashed; empty where no value exists.

    The amounts are on a logarithmic axis where they span more than a decade.
    """
    import altair as alt

    series = dict(zip(unique(map(short, curves)), curves.values(), strict=True))
    if ceiling:
        series[_CEILING] = ceiling
    table = _table(series)
    if not bool(table["value"].notna().any()):
        return ""
    names = list(series)
    colors = [INK if name == _CEILING else series_color(k) for k, name in enumerate(names)]
    dashes = [[5, 4] if name == _CEILING else [1, 0] for name in names]
    shapes = ["stroke" if name == _CEILING else SHAPES[k % len(SHAPES)] for k, name in enumerate(names)]
    legend = alt.Legend(orient="bottom", columns=2, labelLimit=_WIDTH // 2, symbolOpacity=1, title=None)
    color = alt.Color("series:N", scale=alt.Scale(domain=names, range=colors), legend=legend)
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=dashes), legend=legend)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=names, range=shapes), legend=legend)
    y_title = f"agreement ({short(metric)})"
    base = alt.Chart(table).encode(x=_x_axis(sorted(set(table["amount"])), point_unit), color=color)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title=y_title), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("value:Q", title=y_title), strokeDash=dash)
    dots = (
        base.transform_filter(alt.datum.series != _CEILING)
        .mark_point(filled=True, size=40, opacity=1)
        .encode(y=alt.Y("value:Q", title=y_title), shape=shape)
    )
    return to_svg(alt.layer(band, line, dots).properties(width=_WIDTH, height=_HEIGHT))


def _table(series: Mapping[str, Curve]) -> pd.DataFrame:
    """Long table; what is not a number becomes a gap, and a band needs both of its limits."""
    rows = []
    for name, curve in series.items():
        for amount, limits in curve.items():
            value, low, high = finite_or_nan(limits)
            if name == _CEILING or math.isnan(low + high):
                low = high = math.nan
            rows.append({"series": name, "amount": amount, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["series", "amount", "value", "low", "high"])


def _x_axis(amounts: list[int], point_unit: str) -> Any:
    import altair as alt

    is_wide = bool(amounts) and amounts[0] > 0 and amounts[-1] > 10 * amounts[0]
    kind: Literal["log", "linear"] = "log" if is_wide else "linear"
    title = f"amount of further training ({short(point_unit)}{', logarithmic' if is_wide else ''})"
    axis = alt.Axis(values=amounts, title=title, format="d", grid=False, labelOverlap=True)
    return alt.X("amount:Q", scale=alt.Scale(type=kind, nice=False, zero=False, padding=12), axis=axis)
