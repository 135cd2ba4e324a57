"""From a case to what the page shows: texts, pictures and colours, decided here and only placed by the template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from torch import Tensor

from whence.data import Examples
from whence.report.case import ReportCase
from whence.report.chart import agreement_svg
from whence.report.exhibits import Exhibits, FeatureRow
from whence.report.wording import fixed, number, percent, plain, plural, short, signed
from whence.scores import Id, Sign, TopK
from whence.storage import flatten

TRAIN, QUERY = 0, 1  # the two sides of `Exhibits`
_SUSPECTS_SHOWN: Final = 20


@dataclass(frozen=True, eq=False)
class Entry:
    """One train example beside a query; `strength` is its score in percent of the strongest of the query."""

    rank: int
    id: str
    label: str
    other_label: bool
    score: str
    strength: int
    share: str
    picture: str


@dataclass(frozen=True, eq=False)
class Side:
    """The supporters, or the opposers, of a query."""

    sign: Sign
    name: str
    entries: tuple[Entry, ...]
    features: tuple[FeatureRow, ...]
    share: str


@dataclass(frozen=True, eq=False)
class Card:
    """One query."""

    anchor: str
    id: str
    label: str
    picture: str
    sides: tuple[Side, ...]


@dataclass(frozen=True, eq=False)
class Curves:
    """Agreement with further training: a chart, and the same numbers as (method, cells) rows."""

    chart: str
    metric: str
    amounts: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # (value, interval) per amount


@dataclass(frozen=True, eq=False)
class Suspect:
    """A train example whose label looks wrong."""

    rank: int
    id: str
    picture: str
    score: str
    given: str
    true: str
    verdict: str


@dataclass(frozen=True, eq=False)
class Suspects:
    """The most suspicious labels, and how many of them are known to be wrong."""

    summary: str
    knows_truth: bool
    entries: tuple[Suspect, ...]


@dataclass(frozen=True, eq=False)
class Section:
    """One case."""

    anchor: str
    title: str
    method: str
    unit: str
    shown: str
    label_name: str
    cards: tuple[Card, ...]
    omitted_features: str
    curves: Curves | None
    point_unit: str
    suspects: Suspects | None
    notes: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def make_section(case: ReportCase, position: int) -> Section:
    """Everything the page says about `case`, the one at `position` (from 1)."""
    exhibits = Exhibits(case.train, case.queries, case.class_names)
    anchor = f"case-{position}"
    cards = _cards(case, exhibits, anchor)
    n_shown = len(cards[0].sides[0].features or cards[0].sides[1].features)
    return Section(
        anchor=anchor,
        title=plain(case.title),
        method=short(case.scores.method),
        unit=_unit(case),
        shown=_shown(case),
        label_name="label" if exhibits.has_classes else "target",
        cards=cards,
        omitted_features=_omitted_features(exhibits, n_shown),
        curves=_curves(case),
        point_unit=short(case.point_unit),
        suspects=_suspects(case, exhibits),
        notes=tuple(plain(note) for note in case.notes),
        facts=_facts(case),
    )


# --- queries ----------------------------------------------------------------------------------------------------------


def _cards(case: ReportCase, exhibits: Exhibits, anchor: str) -> tuple[Card, ...]:
    k = min(case.k, case.scores.k) if isinstance(case.scores, TopK) else case.k
    signs: tuple[Sign, Sign] = ("supports", "opposes")
    tables = {sign: dict(list(case.scores.top(k, sign=sign).groupby("query"))) for sign in signs}
    none = pd.DataFrame({"rank": [], "train": [], "score": [], "share": []})
    return tuple(
        _card(id, {sign: tables[sign].get(id, none) for sign in signs}, case, exhibits, f"{anchor}-query-{position}")
        for position, id in enumerate(case.shown_ids, start=1)
    )


def _card(id: Id, tables: Mapping[Sign, pd.DataFrame], case: ReportCase, exhibits: Exhibits, anchor: str) -> Card:
    query = case.queries.index_of(id)
    neighbors = {sign: [case.train.index_of(train) for train in table["train"]] for sign, table in tables.items()}
    features = exhibits.shown_features(query, [i for side in neighbors.values() for i in side])
    strongest = max((abs(score) for table in tables.values() for score in table["score"]), default=0.0)
    label = exhibits.label(QUERY, query)
    sides = tuple(
        Side(
            sign=sign,
            name="Supporters" if sign == "supports" else "Opposers",
            entries=tuple(
                _entry(row, i, label, strongest, exhibits)
                for row, i in zip(table.to_dict("records"), neighbors[sign], strict=True)
            ),
            features=exhibits.feature_rows(query, neighbors[sign], features),
            share=percent(abs(float(table["share"].sum()))),
        )
        for sign, table in tables.items()
    )
    return Card(anchor, short(id), label, exhibits.picture(QUERY, query), sides)


def _entry(row: Mapping[Any, Any], index: int, query_label: str, strongest: float, exhibits: Exhibits) -> Entry:
    label = exhibits.label(TRAIN, index)
    return Entry(
        rank=int(row["rank"]),
        id=short(row["train"]),
        label=label,
        other_label=exhibits.has_classes and query_label not in ("", label),
        score=signed(row["score"]),
        strength=round(100 * abs(row["score"]) / strongest),
        share=percent(row["share"]),
        picture=exhibits.picture(TRAIN, index),
    )


def _omitted_features(exhibits: Exhibits, n_shown: int) -> str:
    if exhibits.are_pictures or n_shown in (0, exhibits.n_features):
        return ""
    return f"{n_shown} of {exhibits.n_features} features are shown: those in which the listed examples differ most."


def _unit(case: ReportCase) -> str:
    """What the numbers mean, and what "worse" means."""
    orientation = case.scores.orientation
    assert isinstance(orientation, Tensor)
    signs = set(orientation.tolist())
    measure = short(case.scores.unit or case.scores.provenance.get("measure") or "measure").replace("_", " ")
    moves = {frozenset({1.0}): "a higher", frozenset({-1.0}): "a lower"}.get(frozenset(signs), "a higher or lower")
    worse = f"Worse means {moves} {measure} of the query."
    if case.scores.unit is None:
        return f"{worse} These scores only rank: compare them within one query, not with those of other methods."
    return f"{worse} A score is the predicted change of the {measure} when the example is left out."


def _shown(case: ReportCase) -> str:
    n_query, n_shown = len(case.scores.query_ids), len(case.shown_ids)
    which = plural(n_query, "query") if n_shown == n_query else f"The first {n_shown} of {n_query} queries"
    kept = ""
    if isinstance(case.scores, TopK) and case.scores.k < min(case.k, len(case.scores.train_ids)):
        kept = f" Only the {case.scores.k} strongest on each side were kept."
    return f"{which}, scored with {plural(len(case.scores.train_ids), 'train example')}.{kept}"


# --- agreement --------------------------------------------------------------------------------------------------------


def _curves(case: ReportCase) -> Curves | None:
    if not case.agreement:
        return None
    # `ReportCase` has brought both into this form.
    curves: dict[str, dict[int, tuple[float, float, float]]] = dict(case.agreement)  # type: ignore[arg-type]
    ceiling: dict[int, tuple[float, float, float]] | None = case.ceiling  # type: ignore[assignment]
    rows = {short(name): curve for name, curve in curves.items()}
    if ceiling:
        rows["ceiling (perfect scores)"] = ceiling
    amounts = sorted({amount for curve in rows.values() for amount in curve})
    return Curves(
        chart=agreement_svg(curves, ceiling, case.agreement_metric, case.point_unit),
        metric=short(case.agreement_metric),
        amounts=tuple(plain(amount) for amount in amounts),
        rows=tuple((name, tuple(_cell(curve.get(amount)) for amount in amounts)) for name, curve in rows.items()),
    )


def _cell(limits: tuple[float, float, float] | None) -> tuple[str, str]:
    """A value and its interval."""
    if limits is None:
        return "not computed", ""
    value, low, high = limits
    return fixed(value), "" if pd.isna(low) or pd.isna(high) else f"{fixed(low)} to {fixed(high)}"


# --- suspects ---------------------------------------------------------------------------------------------------------


def _suspects(case: ReportCase, exhibits: Exhibits) -> Suspects | None:
    if case.suspects is None:
        return None
    table = case.suspects.sort_values("score", ascending=False, kind="stable")
    knows_truth = "true" in table.columns
    truths = table["true"].tolist() if knows_truth else [None] * len(table)
    verdicts = [_verdict(given, true) for given, true in zip(table["given"].tolist(), truths, strict=True)]
    entries = tuple(
        Suspect(
            rank=rank,
            id=short(id),
            picture=exhibits.picture(TRAIN, case.train.index_of(id)),
            score=number(float(score)),
            given=exhibits.label_text(given),
            true="unknown" if pd.isna(true) else exhibits.label_text(true),
            verdict=verdict,
        )
        for rank, (id, score, given, true, verdict) in enumerate(
            zip(table["id"].tolist(), table["score"], table["given"].tolist(), truths, verdicts, strict=True), start=1
        )
        if rank <= _SUSPECTS_SHOWN
    )
    summary = f"The {len(entries)} most suspicious of {plural(len(table), 'listed label')}."
    if knows_truth:
        found = sum(entry.verdict == "wrong" for entry in entries)
        summary += f" Of those shown {found} are known to be wrong; in the whole list {verdicts.count('wrong')}."
    return Suspects(summary, knows_truth, entries)


def _verdict(given: object, true: object) -> str:
    if pd.isna(true):  # type: ignore[call-overload]
        return "unknown"
    return "right" if given == true else "wrong"


# --- settings ---------------------------------------------------------------------------------------------------------


def _facts(case: ReportCase) -> tuple[tuple[str, str], ...]:
    """The settings table: what was scored, what the caller adds, and what the scores carry with them."""
    known = {
        "method": case.scores.method,
        "unit": case.scores.unit or "none, the scores only rank",
        "train set": _examples(case.train, len(case.scores.train_ids)),
        "query set": _examples(case.queries, len(case.scores.query_ids)),
    }
    rows = {**known, **case.facts, **flatten(case.scores.provenance, "scores")}
    return tuple((plain(name), plain(_jsonish(value))) for name, value in rows.items())


def _examples(examples: Examples, n_scored: int) -> str:
    name = examples.name or "unnamed"
    return f"{name}, {n_scored} of {plural(len(examples), 'example')} scored"


def _jsonish(value: Any) -> Any:
    if value is None:
        return "none"
    is_list = isinstance(value, (Sequence, Mapping)) and not isinstance(value, str)
    return json.dumps(value, ensure_ascii=False, default=str) if is_list else value
