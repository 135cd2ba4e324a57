"""How few examples carry the influence, and whether they are the same few for all queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from whence.report.blocks import Block, Cell, Chart, Column, Heading, Table, Text, number_cell
from whence.report.charts import concentration_svg
from whence.report.views.shown import Shown, View
from whence.report.wording import number, percent, plural
from whence.scores import ScoreMatrix, Sign, TopK

_EMPTY = "There are no scores here to be counted. `whence score CONFIG.toml`, or `whence.attribute`, makes them."
_ONLY_TOP = (
    "Only the strongest scores of each query were kept, so that the share of the others is not known. Keep all, as "
    " `whence.attribute` does where `k` is not given, to see how concentrated they are."
)
_SHARES: Final = (0.5, 0.9)
_POINTS: Final = 60  # of the curve
_TOP: Final = 10  # length of the lists in which the same few may be
_LISTED: Final = 50  # train examples of the table
_CHUNK: Final = 2**22  # scores sorted at a time


def concentration_view(shown: Shown) -> View:
    """Shares of the absolute scores, and the train examples that are in most lists."""
    scores = shown.case.scores
    missing = shown.missing(("scores",))
    if scores is None:
        return View(empty=shown.needs("scores", _EMPTY), missing=missing)
    blocks: list[Block] = [Heading("How many examples carry the scores")]
    blocks += _shares(shown, scores) if isinstance(scores, ScoreMatrix) else [Text(_ONLY_TOP)]
    blocks += [Heading("The same few everywhere?"), *_same_few(shown, scores)]
    return View(tuple(blocks), missing=missing)


# --- shares -----------------------------------------------------------------------------------------------------------


def _shares(shown: Shown, scores: ScoreMatrix) -> list[Block]:
    n_train = len(scores.train_ids)
    ranks = np.unique(np.geomspace(1, n_train, _POINTS).round().astype(int))
    needed, curves = carried(scores.values, ranks)
    some = ~np.isnan(curves[:, 0])  # a query whose scores are all zero has no shares
    if not some.any():
        return [Text("All scores are zero: nothing is carried by anyone.")]
    halves = " ".join(
        f"{percent(share)} of the sum of absolute scores of a query {_spread(needed[some, j], n_train)}"
        for j, share in enumerate(_SHARES)
    )
    zero = f" {plural(int((~some).sum()), 'query')} with only zero scores left out." if not some.all() else ""
    svg = concentration_svg(ranks.tolist(), *(np.quantile(curves[some], q, axis=0).tolist() for q in (0.0, 0.5, 1.0)))
    caption = "Line: median over queries; band: from the least to the most concentrated one; dashed: equal scores."
    return [
        Text(halves + zero),
        Chart(shown.album.chart(svg), "Share of the absolute scores against the number of strongest examples", caption),
        _query_table(shown, needed),
    ]


def carried(values: Tensor, ranks: NDArray[np.int_]) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Concentration of absolute scores.

    Args:
        values: (n_query, n_train).
        ranks: (r,) from 1, ascending.
    Returns:
        (n_query, 2): how many of the strongest examples carry half, and nine tenths, of the sum of absolute scores.
        (n_query, r): share of the strongest `ranks`; NaN where all scores of a query are zero.
    Cost:
        A sort of each row; memory for some rows at a time.
    """
    needed, curves = [], []
    at = torch.as_tensor(ranks) - 1
    for rows in torch.split(values, max(1, _CHUNK // values.shape[1])):
        total = rows.double().abs().sort(dim=1, descending=True).values.cumsum(1)
        shares = total / total[:, -1:]
        needed.append(torch.stack([(shares < share - 1e-12).sum(1) + 1 for share in _SHARES], dim=1))
        curves.append(shares[:, at])
    return torch.cat(needed).numpy(), torch.cat(curves).numpy()


def _spread(counts: NDArray[np.int_], n_train: int) -> str:
    middle, low, high = float(np.median(counts)), int(counts.min()), int(counts.max())
    return f"is carried by {number(middle)} of {n_train} train examples (median over queries; from {low} to {high})."


def _query_table(shown: Shown, needed: NDArray[np.int_]) -> Table:
    columns = (Column("query", "query"), *(Column(f"examples for {percent(share)}", "number") for share in _SHARES))
    rows = tuple(
        (Cell(value=k), *(number_cell(int(count)) for count in needed[k])) for k in range(len(shown.case.shown_ids))
    )
    return Table("concentration", "How many examples carry half and nine tenths of each query", columns, rows)


# --- the same few -----------------------------------------------------------------------------------------------------


def _same_few(shown: Shown, scores: ScoreMatrix | TopK) -> list[Block]:
    n_query, n_train = len(scores.query_ids), len(scores.train_ids)
    k = min(_TOP, scores.k) if isinstance(scores, TopK) else _TOP
    k = min(k, n_train)
    counts: dict[Sign, dict[int | str, int]] = {sign: _listings(scores, k, sign) for sign in ("supports", "opposes")}
    ids = sorted(
        set(counts["supports"]) | set(counts["opposes"]),
        key=lambda id: -max(counts[sign].get(id, 0) for sign in counts),
    )[:_LISTED]
    text = (
        f"Were the lists of the {k} strongest drawn at random, a train example would be in "
        f"{number(n_query * k / n_train, 2)} of {plural(n_query, 'list')} on average, and the one that is in most of "
        f"them in about {_most_by_chance(n_query, n_train, k)}. Examples far above that are strong for every query: "
        "often outliers with large gradients, which say little about the query at hand."
    )
    columns = (
        Column("example", "example"),
        Column("label"),
        Column(f"among the top {k} supporters", "number"),
        Column(f"among the top {k} opposers", "number"),
    )
    rows = tuple(_listing_row(shown, id, [counts["supports"].get(id, 0), counts["opposes"].get(id, 0)]) for id in ids)
    return [Text(text), Table("same-few", "Train examples by the number of queries that list them", columns, rows)]


def _listings(scores: ScoreMatrix | TopK, k: int, sign: Sign) -> dict[int | str, int]:
    """In how many queries' lists each train example is; equal counts in order of the train set."""
    counts = scores.top(k, sign=sign)["train"].value_counts().to_dict()
    return {id: int(counts[id]) for id in scores.train_ids if id in counts}


def _most_by_chance(n_query: int, n_train: int, k: int) -> int:
    """Median of the largest of `n_train` counts, each of `n_query` lists that hold `k` of `n_train`."""
    return int(binom.ppf(0.5 ** (1 / n_train), n_query, k / n_train))


def _listing_row(shown: Shown, id: int | str, counts: Sequence[int]) -> tuple[Cell, ...]:
    train = shown.train(id)
    return Cell(value=train), Cell(shown.examples[train].label), *(number_cell(count) for count in counts)
