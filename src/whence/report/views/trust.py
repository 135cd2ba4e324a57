"""How far the scores can be trusted: agreement with further training, linear datamodeling score, audit."""

from __future__ import annotations

from typing import cast

from whence.report.blocks import (
    Block,
    Cell,
    Chart,
    Column,
    ColumnKind,
    Heading,
    Notes,
    Table,
    Text,
    interval_cell,
    number_cell,
    text_cell,
)
from whence.report.case import Limits
from whence.report.charts import agreement_svg, intervals_svg
from whence.report.views.shown import Shown, View
from whence.report.wording import fixed, isolated, plain, short

_Curves = dict[str, dict[int, Limits]]

_NO_AGREEMENT = (
    "Not computed for this case: nothing here says how far these scores can be trusted. `whence agree CONFIG.toml` "
    "does it; in Python `whence.further_train` leaves examples out of further training, and `whence.agreement` "
    "compares the scores with what then happened."
)
_NO_LDS = (
    "Not computed for this case. `whence evaluate CONFIG.toml` retrains on parts of the data and asks how well sums of "
    "scores rank the results."
)


_NO_AUDIT = (
    "Not computed for this case. `whence audit CONFIG.toml` compares all methods on a small gold standard of this "
    "model, and says which one to trust."
)


def trust_view(shown: Shown) -> View:
    """Agreement, linear datamodeling score and the caller's notes."""
    notes = tuple(plain(note) for note in shown.case.notes)
    blocks: list[Block] = [Heading("In short"), Notes(notes)] if notes else []
    blocks += [Heading("Agreement with further training"), *_agreement(shown)]
    blocks += [Heading("Linear datamodeling score"), *_lds(shown)]
    blocks += [Heading("Audit of the methods"), *_audit(shown)]
    return View(tuple(blocks), missing=shown.missing(("agreement", "ceiling", "lds", "audit")))


def _audit(shown: Shown) -> list[Block]:
    table = shown.case.audit
    if table is None:
        return [Text(shown.needs("audit", _NO_AUDIT))]
    columns = ("candidate", "by choice half", "by verdict half", "seconds", "MiB", "note")
    kinds: tuple[ColumnKind, ...] = ("text", "number", "number", "number", "number", "text")
    rows = tuple(
        (
            Cell(short(row["candidate"])),
            *(number_cell(float(row[name]), fixed(float(row[name]))) for name in ("choice", "verdict")),
            *(number_cell(float(row[name])) for name in ("seconds", "peak_mb")),
            text_cell(row["note"]),
        )
        for row in table.to_dict("records")
    )
    return [
        Notes(tuple(plain(line) for line in shown.case.audit_summary)),
        Text(
            "The method is chosen on one half of a small gold standard and judged on the other, which shares neither "
            "left-out examples nor seeds with it: the second figure is the one to believe."
        ),
        Table("audit", "Candidates of the audit", tuple(map(Column, columns, kinds)), rows),
    ]


def _agreement(shown: Shown) -> list[Block]:
    case = shown.case
    if not case.agreement:
        return [Text(shown.needs("agreement", _NO_AGREEMENT))]
    curves = cast(_Curves, dict(case.agreement))  # `ReportCase` has brought both into this form
    ceiling = cast("dict[int, Limits] | None", case.ceiling)
    intro = Text(
        f"How well the scores predict what leaving examples out of further training really does: "
        f"{isolated(case.agreement_metric)}, mean over queries, with its interval. 1 would be perfect, 0 is chance."
    )
    svg = agreement_svg(curves, ceiling, case.agreement_metric, case.point_unit)
    caption = (
        "Bands are the intervals of the table. What lies above the dashed ceiling, where there is one, is luck: "
        "perfect scores would not do better against outcomes this noisy."
    )
    chart = (
        Chart(shown.album.chart(svg), "Line chart of the numbers in the table below", caption)
        if svg
        else Text("No value is defined, so there is no chart.")
    )
    return [intro, chart, _agreement_table(curves, ceiling, case.point_unit)]


def _agreement_table(curves: _Curves, ceiling: dict[int, Limits] | None, point_unit: str) -> Table:
    rows = dict(curves) | ({"ceiling (perfect scores)": ceiling} if ceiling else {})
    amounts = sorted({amount for curve in rows.values() for amount in curve})
    unit = short(point_unit)
    return Table(
        name="agreement",
        caption="Agreement by method and amount of further training",
        columns=(Column("method"), *(Column(_amount(amount, unit), "interval") for amount in amounts)),
        rows=tuple(
            (Cell(short(name)), *(interval_cell(curve.get(amount)) for amount in amounts))
            for name, curve in rows.items()
        ),
    )


def _amount(amount: int, unit: str) -> str:
    return f"1 {unit.removesuffix('s')}" if amount == 1 else f"{amount} {unit}"


def _lds(shown: Shown) -> list[Block]:
    case = shown.case
    lds = cast("dict[str, Limits]", case.lds)
    ceiling = cast("Limits | None", case.lds_ceiling)
    if not lds:
        return [Text(shown.needs("lds", _NO_LDS))]
    note = f" Computed from {isolated(case.lds_note)}." if case.lds_note else ""
    blocks: list[Block] = [
        Text(
            "How well sums of scores rank the models trained on parts of the data: rank correlation, mean over "
            f"queries, with its interval. 1 would be perfect, 0 is chance.{note}"
        ),
        *_interval_chart(shown, lds, shown.ceiling, "linear datamodeling score", "The dashed rule is the ceiling."),
    ]
    rows = lds | ({"ceiling (perfect scores)": ceiling} if ceiling else {})
    blocks.append(_interval_table("lds", "Linear datamodeling score by method and weights", "score", rows))
    differences = cast("dict[str, Limits]", case.lds_differences)
    if differences:
        blocks += [
            Text(
                "Paired differences: both were compared with the same retrained models. An interval that holds 0 says "
                "nothing about which is better."
            ),
            *_interval_chart(shown, differences, None, "difference of the linear datamodeling scores", ""),
            _interval_table("lds-differences", "Differences of linear datamodeling scores", "difference", differences),
        ]
    return blocks


def _interval_chart(
    shown: Shown, values: dict[str, Limits], ceiling: Limits | None, title: str, about_ceiling: str
) -> list[Block]:
    svg = intervals_svg(values, ceiling, title)
    if not svg:
        return [Text("No value is defined, so there is no chart.")]
    caption = about_ceiling if ceiling else ""
    return [Chart(shown.album.chart(svg), "Dots and intervals of the numbers in the table below", caption)]


def _interval_table(name: str, caption: str, column: str, values: dict[str, Limits]) -> Table:
    rows = tuple((Cell(short(label)), interval_cell(limits)) for label, limits in values.items())
    return Table(name, caption, (Column("name"), Column(column, "interval")), rows)
