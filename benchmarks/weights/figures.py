"""A figure for each bench: all scores with intervals and the ceiling, and groups alone beside their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from benchmarks.weights.fixed import DISTILLED, FEW_SHOT, RELATIVE, WEIGHTINGS
from benchmarks.weights.section import figure_of

COLORS = ("#8a8f98", "#c9a227", "#c2571a", "#8e5bb5", "#1f6feb", "#d6336c", "#1a936f")  # in the order of `WEIGHTINGS`
INK = "#333"
PANEL, LINE = 420, 13  # pixels
SHOWN = ("learned", RELATIVE, DISTILLED, FEW_SHOT)  # weightings beside the groups


def write_figure(result: dict[str, Any], folder: Path) -> Path:
    """The figure that the section of the bench shows, in the folder of that page; its second row is about the first
    method."""
    first = next(iter(result["lds"]))
    alone = alt.hconcat(_groups(result, first), _weights(result, first)).resolve_scale(color="independent")
    chart = alt.vconcat(_scores(result), alone).resolve_scale(color="independent")
    path = folder / figure_of(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {"labelColor": INK, "titleColor": INK, "titleFontWeight": 400}
    chart.configure(background="white", font="sans-serif", axis=text, legend=text, title={"color": INK}).save(path)
    return path


def _scores(result: Mapping[str, Any]) -> alt.LayerChart:
    rows = [
        {"method": method, "weights": name, "value": cell[0], "low": cell[1], "high": cell[2]}
        for method, cells in result["lds"].items()
        for name, cell in cells.items()
        if cell[0] is not None
    ]
    color = alt.Color("weights:N", scale=alt.Scale(domain=list(WEIGHTINGS), range=list(COLORS)), title=None)
    y = alt.Y("method:N", sort=None, title=None)
    offset = alt.YOffset("weights:N", sort=list(WEIGHTINGS))
    base = alt.Chart(pd.DataFrame(rows)).encode(y=y, yOffset=offset, color=color)
    axis = "linear datamodeling score, 95 % interval; band: noise ceiling"
    bars = base.mark_rule(strokeWidth=3, opacity=0.5).encode(x=alt.X("low:Q", title=axis), x2="high:Q")
    dots = base.mark_point(filled=True, size=45, opacity=1).encode(x="value:Q")
    layers = alt.layer(*_ceiling(result["ceiling"]), bars, dots)
    height = LINE * len(WEIGHTINGS) * len(result["lds"])
    return layers.properties(width=2 * PANEL, height=height, title=result["bench"])


def _ceiling(limits: list[float]) -> tuple[alt.Chart, alt.Chart]:
    table = pd.DataFrame([limits], columns=["value", "low", "high"])
    band = alt.Chart(table).mark_rect(color=INK, opacity=0.12).encode(x="low:Q", x2="high:Q")
    return band, alt.Chart(table).mark_rule(color=INK, strokeDash=[5, 4]).encode(x="value:Q")


def _groups(result: Mapping[str, Any], method: str) -> alt.LayerChart:
    """LDS of each group alone."""
    rows = [
        {"group": group, "value": cell[0], "low": cell[1], "high": cell[2]}
        for group, cell in result["per_group"][method].items()
        if cell[0] is not None
    ]
    y = alt.Y("group:N", sort=list(result["per_group"][method]), title=None)
    base = alt.Chart(pd.DataFrame(rows)).encode(y=y)
    x = alt.X("value:Q", title=f"{method}: LDS of a group alone")
    bars = base.mark_bar(color=COLORS[0], opacity=0.6).encode(x=x)
    return alt.layer(bars, base.mark_rule(color=INK).encode(x="low:Q", x2="high:Q")).properties(width=PANEL)


def _weights(result: Mapping[str, Any], method: str) -> alt.Chart:
    """Learned weights of the same groups."""
    groups = list(result["per_group"][method])
    rows = [
        {"group": group, "weights": name, "value": result["weights"][method][name][group]}
        for name in SHOWN
        if name in result["weights"][method]
        for group in groups
    ]
    scale = alt.Scale(domain=list(SHOWN), range=[COLORS[WEIGHTINGS.index(name)] for name in SHOWN])
    encoded = alt.Chart(pd.DataFrame(rows)).mark_point(filled=True, size=45, opacity=0.9)
    return encoded.encode(
        y=alt.Y("group:N", sort=groups, title=None, axis=alt.Axis(labels=False, grid=True)),
        x=alt.X("value:Q", title="weight (mean 1)"),
        color=alt.Color("weights:N", scale=scale, title=None),
    ).properties(width=PANEL)
