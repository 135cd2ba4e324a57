"""Writing the page: one HTML file that needs no network, no other file and no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from whence.errors import InputError, StoreError
from whence.progress import stage
from whence.report.case import ReportCase
from whence.report.views import make_section
from whence.report.wording import plain
from whence.storage import write_atomic

_TITLE = "Which training examples made the model do that?"


def write_report(
    path: str | Path, cases: ReportCase | Sequence[ReportCase], *, title: str = _TITLE, overwrite: bool = True
) -> Path:
    """Write a report that any browser opens from the disk. The same input gives the same bytes.

        case = whence.report.ReportCase("digits", train, queries, whence.attribute(task, train, queries, "grad_dot"))
        whence.write_report("report.html", case)

    Args:
        path: The HTML file; its folder must exist.
        cases: What to show, one section each.
        title: Heading of the page.
        overwrite: Whether a file that is there may be replaced.
    Returns:
        `path`.
    Raises:
        InputError: There is no case.
        StoreError: `path` exists and `overwrite` is False.
        StoreWriteError: The disk is full, read-only or missing; what was there before is still there.
    Cost:
        About a second for the first chart; a picture is at most 9 KiB, so that 16 queries stay below 2 MB.
    """
    path = Path(path)
    sections = [cases] if isinstance(cases, ReportCase) else list(cases)
    if not sections or not all(isinstance(case, ReportCase) for case in sections):
        found = ", ".join(type(case).__name__ for case in sections) or "none"
        raise InputError(f"`cases` must be one or more `ReportCase(title, train, queries, scores)`; got {found}.")
    if path.exists() and not overwrite:
        raise StoreError(f"{path} exists. Choose another name, or pass `overwrite=True`.")
    html = _render(sections, title)
    write_atomic(path, html.encode("utf-8", "replace"))
    return path


def _render(cases: Sequence[ReportCase], title: str) -> str:
    # Everything is escaped but what is marked here: the chart, whose texts Vega has escaped.
    environment = Environment(
        loader=PackageLoader("whence.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    sections = []
    with stage("report", len(cases), "case") as cases_done:
        for position, case in enumerate(cases, start=1):
            sections.append(make_section(case, position))
            cases_done.advance()
    return environment.get_template("page.html").render(
        title=plain(title), sections=sections, version=metadata.version("whence")
    )
