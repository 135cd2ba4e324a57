"""How much of the absolute score the strongest examples carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from whence.report.charts.style import INK, to_svg

_WIDTH, _HEIGHT = 460, 230
_COLOR: Final = "var(--series-0)"


def concentration_svg(
    counts: Sequence[int], low: Sequence[float], middle: Sequence[float], high: Sequence[float]
) -> str:
    """Share of the strongest `counts` examples: median over queries, band from least to most, equal scores dashed.

    The last of `counts` is the number of train examples.
    """
    import altair as alt

    equal = [count / counts[-1] for count in counts]
    table = pd.DataFrame({"count": counts, "low": low, "middle": middle, "high": high, "equal": equal})
    x = alt.X(
        "count:Q",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(title="strongest train examples (logarithmic)", format="d", grid=False, labelOverlap=True),
    )
    y_title = "share of all absolute scores"
    y = alt.Y("middle:Q", title=y_title, axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart(table).encode(x=x)
    band = base.mark_area(color=_COLOR, opacity=0.18).encode(y=alt.Y("low:Q", title=y_title), y2="high:Q")
    line = base.mark_line(color=_COLOR, strokeWidth=2).encode(y=y)
    reference = base.mark_line(color=INK, strokeDash=[5, 4], strokeWidth=1.5).encode(y=alt.Y("equal:Q", title=y_title))
    return to_svg(alt.layer(band, reference, line).properties(width=_WIDTH, height=_HEIGHT))
