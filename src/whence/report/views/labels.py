"""Labels that look wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from whence.report.blocks import Cell, Column, Table, number_cell
from whence.report.views.shown import Shown
from whence.report.wording import number, plural

_EMPTY = (
    "No labels were checked here. `whence evaluate CONFIG.toml` lists the most suspicious ones; in Python, pass "
    "`suspects` to `whence.ReportCase`."
)
_VERDICTS = {True: "wrong", False: "right", None: "unknown"}


@dataclass(frozen=True)
class Labels:
    """The view of the labels. `wrong` says for each row whether its label is known to be wrong, None where unknown."""

    table: Table | None = None
    wrong: tuple[bool | None, ...] = ()
    scores: tuple[str, ...] = ()
    knows_truth: bool = False
    start: int = 0
    summary: str = ""
    empty: str = ""
    missing: tuple[str, ...] = ()


def labels_view(shown: Shown) -> Labels:
    """All suspects, most suspicious first, with what is known of their labels."""
    suspects = shown.case.suspects
    missing = shown.missing(("suspects", "train"))
    if suspects is None or not len(suspects):
        return Labels(empty=shown.needs("suspects", _EMPTY), missing=missing)
    table = suspects.sort_values("score", ascending=False, kind="stable")
    knows_truth = "true" in table.columns
    truths = table["true"].tolist() if knows_truth else [None] * len(table)
    wrong = tuple(_is_wrong(given, true) for given, true in zip(table["given"].tolist(), truths, strict=True))
    n_wrong = sum(w is True for w in wrong)
    return Labels(
        table=_table(shown, table, truths, wrong, knows_truth),
        wrong=wrong,
        scores=tuple(number(float(score)) for score in table["score"]),
        knows_truth=any(w is not None for w in wrong),
        start=n_wrong or max(1, len(table) // 10),
        summary=_summary(len(table), n_wrong, wrong),
        missing=missing,
    )


def _summary(n_listed: int, n_wrong: int, wrong: tuple[bool | None, ...]) -> str:
    listed = f"{plural(n_listed, 'label')} listed, most suspicious first: higher scores are more suspicious."
    n_unknown = sum(w is None for w in wrong)
    if n_unknown == n_listed:
        return f"{listed} Which of them are wrong is not known."
    unknown = f"; of {n_unknown} the truth is not known" if n_unknown else ""
    return f"{listed} {n_wrong} of them are known to be wrong{unknown}."


def _table(
    shown: Shown, table: pd.DataFrame, truths: list[object], wrong: tuple[bool | None, ...], knows_truth: bool
) -> Table:
    ids = table["id"].tolist()
    features = _key_features(shown, ids)
    columns = [Column("rank", "number"), Column("example", "example"), Column("score", "number"), Column("given")]
    columns += [Column("true"), Column("label is")] if knows_truth else []
    columns += [Column("furthest from the mean")] if features else []
    rows = []
    for k, (id, score, given) in enumerate(zip(ids, table["score"], table["given"].tolist(), strict=True)):
        row = [number_cell(k + 1), Cell(value=shown.train(id)), number_cell(float(score)), _label(shown, given)]
        if knows_truth:
            row += [_label(shown, truths[k]), Cell(_VERDICTS[wrong[k]], strong=bool(wrong[k]))]
        row += [Cell(features[k])] if features else []
        rows.append(tuple(row))
    return Table("labels", "Labels that look wrong", tuple(columns), tuple(rows))


def _key_features(shown: Shown, ids: list[int | str]) -> list[str]:
    train = shown.case.train
    if train is None or not shown.exhibits.have_features:
        return []
    return shown.exhibits.key_features([train.index_of(id) for id in ids])


def _label(shown: Shown, value: object) -> Cell:
    return Cell("unknown") if pd.isna(value) else Cell(shown.exhibits.label_text(value))  # type: ignore[call-overload]


def _is_wrong(given: object, true: object) -> bool | None:
    return None if pd.isna(true) else bool(given != true)  # type: ignore[call-overload]
