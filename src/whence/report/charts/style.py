"""What all charts share: colours that are variables of the page, and the way to SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any, Final

INK: Final = "currentColor"
SHAPES: Final = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-left",
    "triangle-right",
)
_N_COLORS: Final = 8  # `--series-0` to `--series-7` of the style sheet


def series_color(k: int) -> str:
    """The colour of series `k`."""
    return f"var(--series-{k % _N_COLORS})"


def to_svg(chart: Any) -> str:
    """An altair chart as SVG; Vega escapes its texts.

    Cost:
        About a second for the first chart of a process, a twentieth for each further one.
    """
    svg = io.StringIO()
    chart.properties(background="transparent").configure(**_settings()).save(svg, format="svg")
    return svg.getvalue()


def finite_or_nan(values: Iterable[float]) -> list[float]:
    """Infinity as NaN: a chart shows both as a gap."""
    return [float(x) if math.isfinite(x) else math.nan for x in values]


def _settings() -> dict[str, Any]:
    """Vega's settings; its own names."""
    text = {"labelFontSize": 12, "titleFontSize": 12, "labelColor": INK, "titleColor": INK, "titleFontWeight": 400}
    lines = {"gridColor": INK, "gridOpacity": 0.15, "domainColor": INK, "tickColor": INK, "titlePadding": 8}
    return {"font": "sans-serif", "aria": False, "axis": text | lines, "legend": text, "view": {"stroke": None}}
