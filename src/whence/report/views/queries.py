"""The queries, and whom the scores name for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from torch import Tensor

from whence.report.album import NO_PASSAGE, NO_PICTURE
from whence.report.exhibits import FeatureRow
from whence.report.views.shown import Shown
from whence.report.wording import isolated, number, percent, plural, signed
from whence.scores import Id, ScoreMatrix, Sign, TopK

_SIGNS: tuple[Sign, Sign] = ("supports", "opposes")
_NONE = pd.DataFrame({"rank": [], "train": [], "score": [], "share": []})


@dataclass(frozen=True)
class Entry:
    """One train example beside a query; `strength` is its score in percent of the strongest of the query."""

    train: int
    rank: int
    score: float
    score_text: str
    strength: int
    share: float
    share_text: str
    other_label: bool = False


@dataclass(frozen=True)
class Side:
    """The supporters, or the opposers, of a query; `features` hold a cell for each entry."""

    sign: Sign
    name: str
    share: str
    entries: tuple[Entry, ...]
    features: tuple[FeatureRow, ...] = ()


@dataclass(frozen=True)
class Query:
    """One query; `key` names it in the address, `strongest` is its largest absolute score."""

    key: str
    text: str
    measure: str
    strongest: float
    strongest_text: str
    sides: tuple[Side, ...]
    whole: Id | None = None
    label: str = ""
    picture: int = NO_PICTURE
    passage: int = NO_PASSAGE


@dataclass(frozen=True)
class Queries:
    """The view of the queries."""

    summary: str = ""
    hints: tuple[str, ...] = ()
    queries: tuple[Query, ...] = ()
    empty: str = ""
    missing: tuple[str, ...] = ()


def queries_view(shown: Shown) -> Queries:
    """The first `n_queries` rows of the scores, each with its strongest supporters and opposers."""
    case = shown.case
    scores = case.scores
    if scores is None:
        return Queries(
            empty=shown.needs(
                "scores", "There are no scores here. `whence score CONFIG.toml`, or `whence.attribute`, makes them."
            ),
            missing=shown.missing(("train", "queries")),
        )
    k = min(case.k, scores.k) if isinstance(scores, TopK) else case.k
    tables = {sign: dict(list(scores.top(k, sign=sign).groupby("query"))) for sign in _SIGNS}
    measures = _measures(scores)
    queries = tuple(
        _query(id, measure, {sign: tables[sign].get(id, _NONE) for sign in _SIGNS}, shown)
        for id, measure in zip(case.shown_ids, measures, strict=False)
    )
    return Queries(
        summary=_summary(shown, scores),
        hints=_hints(shown, queries),
        queries=_with_unique_keys(queries),
        missing=shown.missing(("train", "queries", "scores")),
    )


def _query(id: Id, measure: str, tables: Mapping[Sign, pd.DataFrame], shown: Shown) -> Query:
    query = shown.query(id)
    strongest = max((abs(score) for table in tables.values() for score in table["score"]), default=0.0)
    features = _features(id, tables, shown)
    sides = tuple(
        Side(
            sign=sign,
            name="Supporters" if sign == "supports" else "Opposers",
            share=percent(abs(float(table["share"].sum()))),
            entries=tuple(_entry(row, query.label, strongest, shown) for row in table.to_dict("records")),
            features=features[sign],
        )
        for sign, table in tables.items()
    )
    return Query(
        key=query.text,
        text=query.text,
        whole=query.whole,
        label=query.label,
        picture=query.picture,
        passage=query.passage,
        measure=measure,
        strongest=strongest,
        strongest_text=number(strongest),
        sides=sides,
    )


def _features(id: Id, tables: Mapping[Sign, pd.DataFrame], shown: Shown) -> dict[Sign, tuple[FeatureRow, ...]]:
    train, queries = shown.case.train, shown.case.queries
    if train is None or queries is None:
        return dict.fromkeys(tables, ())
    query = queries.index_of(id)
    neighbors = {sign: [train.index_of(i) for i in table["train"]] for sign, table in tables.items()}
    features = shown.exhibits.shown_features(query, [i for side in neighbors.values() for i in side])
    return {sign: shown.exhibits.feature_rows(query, side, features) for sign, side in neighbors.items()}


def _entry(row: Mapping[Any, Any], query_label: str, strongest: float, shown: Shown) -> Entry:
    train = shown.train(row["train"])
    label = shown.examples[train].label
    return Entry(
        train=train,
        rank=int(row["rank"]),
        score=float(row["score"]),
        score_text=signed(row["score"]),
        strength=round(100 * abs(row["score"]) / strongest),
        share=float(row["share"]),
        share_text=percent(row["share"]),
        other_label=shown.exhibits.has_classes and bool(label) and query_label not in ("", label),
    )


def _with_unique_keys(queries: tuple[Query, ...]) -> tuple[Query, ...]:
    """A key that another query has too (long ids may be cut alike) becomes the position of the query."""
    texts = [query.text for query in queries]
    if len(set(texts)) == len(texts):
        return queries
    return tuple(replace(query, key=f"#{k}") for k, query in enumerate(queries, start=1))


def _measures(scores: ScoreMatrix | TopK) -> list[str]:
    orientation = scores.orientation
    assert isinstance(orientation, Tensor)
    name = measure_of(scores)
    return [f"{name}, worse is {'higher' if sign > 0 else 'lower'}" for sign in orientation.tolist()]


def measure_of(scores: ScoreMatrix | TopK) -> str:
    """What was measured on a query, isolated."""
    return isolated(str(scores.unit or scores.provenance.get("measure") or "measure").replace("_", " "))


def worse_and_unit(scores: ScoreMatrix | TopK) -> str:
    """What the numbers mean, and what "worse" means."""
    orientation = scores.orientation
    assert isinstance(orientation, Tensor)
    signs = set(orientation.tolist())
    moves = {frozenset({1.0}): "a higher", frozenset({-1.0}): "a lower"}.get(frozenset(signs), "a higher or lower")
    worse = f"Worse means {moves} {measure_of(scores)} of the query."
    if scores.unit is None:
        return f"{worse} These scores only rank: compare them within one query, not with those of other methods."
    return f"{worse} A score is the predicted change of the {measure_of(scores)} when the example is left out."


def _summary(shown: Shown, scores: ScoreMatrix | TopK) -> str:
    n_query, n_shown = len(scores.query_ids), len(shown.case.shown_ids)
    which = plural(n_query, "query") if n_shown == n_query else f"The first {n_shown} of {n_query} queries"
    kept = ""
    if isinstance(scores, TopK) and scores.k < min(shown.case.k, len(scores.train_ids)):
        kept = f" Only the {scores.k} strongest on each side were kept."
    return f"{which}, scored with {plural(len(scores.train_ids), 'train example')} by {isolated(scores.method)}.{kept}"


def _hints(shown: Shown, queries: tuple[Query, ...]) -> tuple[str, ...]:
    exhibits = shown.exhibits
    hints = []
    if exhibits.has_classes:
        hints.append("≠ marks another label than the query's.")
    n_shown = max((len(side.features) for query in queries for side in query.sides), default=0)
    if n_shown:
        hints.append(
            "▲ and ▼ mark the three features in which an example lies furthest above or below the query, in standard "
            "deviations of the train set."
        )
    if 0 < n_shown < exhibits.n_features:
        hints.append(
            f"{n_shown} of {exhibits.n_features} features are shown: those in which the listed examples differ most."
        )
    if all(query.picture == NO_PICTURE for query in queries) and not exhibits.n_features:
        hints.append("The contents of the examples are not here: ids only.")
    return tuple(hints)
