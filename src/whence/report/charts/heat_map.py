"""Heat maps over parameter groups, in the model's own order: depth down and function across where names allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from whence.report.charts.style import INK, to_svg
from whence.report.wording import number, short, unique

_NARROWEST, _WIDEST = 22, 84  # of a cell, in pixels
_ROOM: Final = 480  # pixels that the cells of a row share as long as they are few
_PAGE: Final = 1300  # pixels that maps beside each other share
_LEAST_FULL: Final = 1 / 3  # share of the places of a grid that groups fill; below it a grid shows mostly nothing
_MOST_ACROSS: Final = 40
_WIDTH_OF_NUMBER: Final = 40


@dataclass(frozen=True)
class HeatMap:
    """A value per group, coloured by how far it is above or below `middle`."""

    name: str
    values: tuple[float, ...]  # NaN leaves a cell empty
    middle: float


@dataclass(frozen=True)
class Layout:
    """Where the groups stand.

    Attributes:
        rows: Depths, or modules.
        columns: Functions, or places within a module.
        at: (row, column) of each group.
        is_grid: Whether columns have a meaning of their own.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    at: tuple[tuple[int, int], ...]
    is_grid: bool


def layout_of(groups: Sequence[str]) -> Layout:
    """Depth down and function across where several depths have the same functions; else a strip for each module.

    >>> layout_of(["h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp"]).columns, layout_of(["stem.weight", "head"]).rows
    (('attn', 'mlp'), ('stem', 'head'))
    """
    pairs = [depth_and_function(name) for name in groups]
    depths, functions = (tuple(dict.fromkeys(side)) for side in zip(*pairs, strict=True))
    is_shared = len(set(pairs)) == len(pairs) > max(len(depths), len(functions)) or len(functions) == 1 < len(depths)
    if is_shared and len(functions) <= _MOST_ACROSS and len(pairs) >= _LEAST_FULL * len(depths) * len(functions):
        return Layout(depths, functions, tuple((depths.index(d), functions.index(f)) for d, f in pairs), True)
    return _strips(groups)


def depth_and_function(name: str) -> tuple[str, str]:
    """Name up to and including the first number, and the rest.

    >>> depth_and_function("h.3.attn.q.weight"), depth_and_function("up.1: attn.q"), depth_and_function("conv1[0:16]")
    (('h.3', 'attn.q.weight'), ('up.1', 'attn.q'), ('conv1', '[0:16]'))
    """
    if ": " in name:
        depth, _, function = name.partition(": ")
        return depth, function
    tensor, bracket, part = name.partition("[")
    words = tensor.split(".")
    first = next((k for k, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[: first + 1]), ".".join(words[first + 1 :]) + bracket + part


def _strips(groups: Sequence[str]) -> Layout:
    modules = [name.rpartition(".")[0] or name for name in groups]
    rows = tuple(dict.fromkeys(modules))
    seen = dict.fromkeys(rows, 0)
    at = []
    for module in modules:
        at.append((rows.index(module), seen[module]))
        seen[module] += 1
    return Layout(rows, tuple(str(k + 1) for k in range(max(seen.values()))), tuple(at), False)


def heat_maps_svg(groups: Sequence[str], maps: Sequence[HeatMap]) -> str:
    """One map beside the other. Blue above the middle of a map, orange below, stronger the further away."""
    import altair as alt

    layout = layout_of(groups)
    rows, columns = unique(map(short, layout.rows)), unique(map(short, layout.columns))
    width = min(_WIDEST, max(_NARROWEST, _ROOM // len(columns)))
    one = width * len(columns) + 8 * min(28, max(map(len, rows)))
    drawn = [_map(map_, layout, rows, columns, width) for map_ in maps]
    return to_svg(alt.concat(*drawn, columns=max(1, _PAGE // one), spacing=28))


def _map(drawn: HeatMap, layout: Layout, rows: list[str], columns: list[str], width: int) -> Any:
    import altair as alt

    cells = [
        cell | {"row": rows[row], "column": columns[column]}
        for cell, (row, column) in zip(_cells(drawn), layout.at, strict=True)
    ]
    height = 26 if len(rows) <= 30 else 18
    angle = 0 if max(map(len, columns)) * 8 < width else -50 if width > 40 else -90
    x_axis = alt.Axis(
        labelAngle=angle, labelLimit=190, ticks=False, domain=False, labelOverlap=False, labels=layout.is_grid
    )
    y_axis = alt.Axis(labelLimit=220, ticks=False, domain=False)
    x = alt.X("column:N", sort=columns, title=None, axis=x_axis)
    base = alt.Chart(pd.DataFrame(cells)).encode(x=x, y=alt.Y("row:N", sort=rows, title=None, axis=y_axis))
    tiles = base.mark_rect(stroke=INK, strokeOpacity=0.25, strokeWidth=0.5).encode(
        fill=alt.Fill("color:N", scale=None), fillOpacity=alt.FillOpacity("strength:Q", scale=None)
    )
    layers = [tiles]
    if width >= _WIDTH_OF_NUMBER:
        layers.append(base.mark_text(color=INK, fontSize=12).encode(text="text:N"))
    title = alt.TitleParams(short(drawn.name), color=INK, fontSize=12, fontWeight=600, anchor="start", frame="group")
    return alt.layer(*layers).properties(width=width * len(columns), height=height * len(rows), title=title)


def _cells(drawn: HeatMap) -> list[dict[str, object]]:
    away = [value - drawn.middle for value in drawn.values]
    furthest = max((abs(x) for x in away if math.isfinite(x)), default=0.0)
    return [
        {
            "color": "var(--supports)" if x >= 0 else "var(--opposes)",
            "strength": 0.75 * abs(x) / furthest if furthest and math.isfinite(x) else 0.0,
            "text": number(value, 2) if math.isfinite(value) else "",
        }
        for value, x in zip(drawn.values, away, strict=True)
    ]
