"""Writing the page: one HTML file with its pictures, charts and script, that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from whence.errors import InputError, StoreError
from whence.progress import stage
from whence.report.album import Album
from whence.report.blocks import embedded
from whence.report.case import ReportCase
from whence.report.views import VIEWS, make_section
from whence.report.wording import plain
from whence.storage import write_atomic

_SCRIPTS: Final = (
    "base",
    "parts",
    "queries",
    "tables",
    "blocks",
    "reranking",
    "labels",
    "export",
    "page",
)  # in this order
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
        About a second for the first chart. The pictures of a page share 5 MB: many photographs become small ones. Its
        texts share 3 MB: where they need more, the longest are cut, and say so. 200 queries with 2,000 train examples
        are a file below 10 MB that opens within three seconds.
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
    album, sections = Album(), []
    with stage("report", len(cases), "case") as cases_done:
        for case in cases:
            sections.append(make_section(case, album))
            cases_done.advance()
    script = "\n".join(_template(f"script/{name}.js") for name in _SCRIPTS)
    # Everything is escaped but what is marked here: our own style and script, the charts, whose texts Vega has
    # escaped, and the data, in which no character can end a script element.
    environment = Environment(
        loader=PackageLoader("whence.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=plain(title),
        views=list(VIEWS),
        style=Markup(_template("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        charts=[Markup(svg) for svg in album.charts],
        data=Markup(embedded({"cases": sections, "pictures": album.pictures(), "passages": album.passages()})),
        version=metadata.version("whence"),
    )


def _template(name: str) -> str:
    return resources.files("whence.report").joinpath("templates", name).read_text("utf-8")
