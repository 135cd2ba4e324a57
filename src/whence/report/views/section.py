"""One case as the page shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from whence.report.album import Album
from whence.report.case import ReportCase
from whence.report.views.concentration import concentration_view
from whence.report.views.groups import groups_view
from whence.report.views.labels import labels_view
from whence.report.views.queries import queries_view, worse_and_unit
from whence.report.views.run import run_view
from whence.report.views.shown import Example, Shown
from whence.report.views.trust import trust_view
from whence.report.wording import isolated, plain

# Names in the address and on the tabs, in their order; keys 1 to 6.
VIEWS: Final[dict[str, Callable[[Shown], Any]]] = {
    "queries": queries_view,
    "trust": trust_view,
    "groups": groups_view,
    "labels": labels_view,
    "concentration": concentration_view,
    "run": run_view,
}


@dataclass(frozen=True)
class Section:
    """One case: what every view says, the train examples they refer to, and the views by name."""

    title: str
    banner: str
    missing: tuple[str, ...]
    label_name: str
    smooth: bool  # pictures in color are enlarged smoothly
    views: dict[str, Any]
    examples: tuple[Example, ...]


def make_section(case: ReportCase, album: Album) -> Section:
    """Everything the page says about `case`; its pictures and charts go into `album`."""
    shown = Shown(case, album)
    views = {name: view(shown) for name, view in VIEWS.items()}
    return Section(
        title=plain(case.title),
        banner=_banner(case),
        missing=tuple(f"{isolated(part)}: {plain(text)}" for part, text in case.missing.items()),
        label_name="label" if shown.exhibits.has_classes else "target",
        smooth=shown.exhibits.are_photographs,
        views=views,
        examples=tuple(shown.examples),
    )


def _banner(case: ReportCase) -> str:
    if case.scores is None:
        return "No scores are shown here, so that no measure is known."
    return f"Scores of {isolated(case.scores.method)}. {worse_and_unit(case.scores)}"
