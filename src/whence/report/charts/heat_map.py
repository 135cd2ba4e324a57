"""A heat map over parameter groups, in the model's own order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from whence.report.charts.style import INK, to_svg
from whence.report.wording import number, short, unique

_ROW_HEIGHT: Final = 34
_NARROWEST, _WIDEST = 18, 110  # of a column, in pixels
_ROOM: Final = 640  # pixels that the columns share as long as they are few
_MOST_WITH_NUMBERS: Final = 12  # columns wide enough for a number in each cell


@dataclass(frozen=True)
class HeatRow:
    """One line: a value per group, coloured by how far it is above or below `middle`."""

    name: str
    values: tuple[float, ...]  # NaN leaves a cell empty
    middle: float


def heat_map_svg(groups: Sequence[str], rows: Sequence[HeatRow]) -> str:
    """Blue above the middle of a row, orange below, stronger the further away; grows to the right with the groups."""
    import altair as alt

    columns, names = unique(map(short, groups)), unique(short(row.name) for row in rows)
    cells = [
        cell | {"row": name, "group": group}
        for name, row in zip(names, rows, strict=True)
        for group, cell in zip(columns, _cells(row), strict=True)
    ]
    step = min(_WIDEST, max(_NARROWEST, _ROOM // len(groups)))
    angle = 0 if max(map(len, columns)) * 8 < step else -50 if step > 40 else -90
    x_axis = alt.Axis(labelAngle=angle, labelLimit=190, ticks=False, domain=False, labelOverlap=False)
    y_axis = alt.Axis(labelLimit=220, ticks=False, domain=False)
    x = alt.X("group:N", sort=columns, title=None, axis=x_axis)
    base = alt.Chart(pd.DataFrame(cells)).encode(x=x, y=alt.Y("row:N", sort=names, title=None, axis=y_axis))
    tiles = base.mark_rect(stroke=INK, strokeOpacity=0.25, strokeWidth=0.5).encode(
        fill=alt.Fill("color:N", scale=None), fillOpacity=alt.FillOpacity("strength:Q", scale=None)
    )
    layers = [tiles]
    if len(groups) <= _MOST_WITH_NUMBERS:
        layers.append(base.mark_text(color=INK, fontSize=12).encode(text="text:N"))
    size = {"width": step * len(groups), "height": _ROW_HEIGHT * len(rows)}
    return to_svg(alt.layer(*layers).properties(**size))


def _cells(row: HeatRow) -> list[dict[str, object]]:
    away = [value - row.middle for value in row.values]
    furthest = max((abs(x) for x in away if math.isfinite(x)), default=0.0)
    return [
        {
            "color": "var(--supports)" if x >= 0 else "var(--opposes)",
            "strength": 0.75 * abs(x) / furthest if furthest and math.isfinite(x) else 0.0,
            "text": number(value, 2) if math.isfinite(value) else "",
        }
        for value, x in zip(row.values, away, strict=True)
    ]
