"""The lists of a query under other weights, or by chosen groups alone: numbers from which the page ranks anew."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from whence.report.ranked import Feature, RankedQuery, Reranking, Weighting
from whence.report.views.shown import Shown
from whence.report.wording import isolated, plural, short, unique
from whence.scores import Id
from whence.task import GroupWeights
from whence.weights import Contributions

BUDGET: Final = 1_500_000  # characters that all this may take, with the pictures and texts of the examples
_FEW: Final = 12  # queries that should fit, even with shorter lists of single groups
_NUMBER: Final = 16 / 3  # characters of a number
_CELL: Final = 20  # characters of a feature of an example
_ENTRY: Final = 80  # characters of an example that no other view shows, without picture and text
_SHOWN_FEATURES: Final = 12


def reranking(shown: Shown, found: Contributions, weights: Sequence[GroupWeights]) -> Reranking | None:
    """As many queries as fit into the budget, with lists as long as the case asks for.

    Args:
        shown: The case.
        found: Contributions of its queries, or some of them, at least one that is shown.
        weights: Of the groups of `found`.
    Returns:
        The block; None where there are so many groups that not even one query fits.
    """
    case = shown.case
    known = set(found.query_ids if case.scores is None else case.shown_ids)
    positions = [q for q, id in enumerate(found.query_ids) if id in known]
    lists = [torch.ones(len(found.groups)), *(one.values for one in weights)]
    choose = partial(_chosen, found.values, torch.stack([w.to(found.values) for w in lists], 1), case.k)
    depth = _depth(shown, found, positions, choose)
    if depth is None:
        return None
    left, queries, sizes = float(BUDGET), [], []
    keys, kept = _keys(found.query_ids), _lists_in_words(case.k, depth, has_weights=bool(weights))
    for q in positions:
        examples = choose(q, depth)
        left -= _cost(shown, found, examples)
        if left < 0:
            break
        queries.append(_ranked(shown, found, q, keys[q], examples))
        sizes.append(len(examples))
    return Reranking(
        method=short(found.method),
        groups=tuple(unique(map(short, found.groups.names))),
        weightings=tuple(
            Weighting(name, tuple(one.values.tolist()))
            for name, one in zip(unique(short(one.name) for one in weights), weights, strict=True)
        ),
        k=case.k,
        queries=tuple(queries),
        summary=_summary(found, len(positions), sizes, kept),
    )


def _chosen(values: Tensor, weights: Tensor, k: int, q: int, depth: int) -> list[int]:
    """Positions of train examples at either end of a list: `k` by each column of `weights`, `depth` by each group."""
    rows = values[q]
    found = set()
    for scores, length in ((rows, depth), (rows @ weights, k)):
        for largest in (True, False):
            found.update(scores.topk(min(length, len(scores)), dim=0, largest=largest).indices.flatten().tolist())
    return sorted(found)


def _depth(
    shown: Shown, found: Contributions, positions: list[int], choose: Callable[[int, int], list[int]]
) -> int | None:
    """How long the lists of single groups may be so that a few queries fit, or else one."""
    few = min(_FEW, len(positions))
    lengths = [d for d in (shown.case.k, 5, 2, 1) if d <= shown.case.k]
    for depth in lengths:
        if few * _cost(shown, found, choose(positions[0], depth)) <= BUDGET:
            return depth
    return 1 if _cost(shown, found, choose(positions[0], 1)) <= BUDGET else None


def _cost(shown: Shown, found: Contributions, examples: list[int]) -> float:
    """About how many characters a query with these train examples adds to the page."""
    exhibits = shown.exhibits
    features = min(exhibits.n_features, _SHOWN_FEATURES) if exhibits.have_features else 0
    new = [found.train_ids[i] for i in examples if not shown.knows(found.train_ids[i])]
    return len(examples) * (len(found.groups) * _NUMBER + features * _CELL) + len(new) * _ENTRY + shown.size_of(new)


def _ranked(shown: Shown, found: Contributions, q: int, key: str, examples: list[int]) -> RankedQuery:
    id, rows = found.query_ids[q], found.values[q]
    others = torch.ones(len(rows), dtype=torch.bool)
    others[examples] = False
    rest = rows[others]
    infinite = rows.new_full((1, rows.shape[1]), torch.inf)
    query = shown.query(id)
    return RankedQuery(
        key=key,
        text=query.text,
        examples=tuple(shown.train(found.train_ids[i]) for i in examples),
        values=_packed(rows[examples]),
        above=_packed(torch.cat([rest, -infinite]).amax(0)),
        below=_packed(torch.cat([rest, infinite]).amin(0)),
        features=_features(shown, id, [found.train_ids[i] for i in examples]),
        whole=query.whole,
        label=query.label,
        picture=query.picture,
        passage=query.passage,
    )


def _features(shown: Shown, id: Id, train_ids: list[Id]) -> tuple[Feature, ...]:
    train, queries = shown.case.train, shown.case.queries
    if train is None or queries is None:
        return ()
    query, neighbors = queries.index_of(id), [train.index_of(i) for i in train_ids]
    names = shown.exhibits.shown_features(query, neighbors)
    return tuple(
        Feature(row.name, row.query, row.cells) for row in shown.exhibits.feature_rows(query, neighbors, names)
    )


def _packed(values: Tensor) -> str:
    return base64.b64encode(values.float().contiguous().numpy().astype("<f4").tobytes()).decode()


def _keys(ids: Sequence[Id]) -> list[str]:
    """Names in the address, those of the view of the queries."""
    texts = [short(id) for id in ids]
    return texts if len(set(texts)) == len(texts) else [f"#{k}" for k in range(1, len(texts) + 1)]


def _summary(found: Contributions, n_query: int, sizes: list[int], lists: str) -> str:
    """What is here, and what was left out to keep the page small."""
    which = plural(n_query, "query") if len(sizes) == n_query else f"The first {len(sizes)} of {n_query} queries"
    few, many = (f"{n:,}" for n in (min(sizes), max(sizes)))
    return (
        f"{which}, scored by {isolated(found.method)}. To keep the page small it holds for each of them "
        f"{few if few == many else f'{few} to {many}'} of {len(found.train_ids):,} train examples: {lists}."
    )


def _lists_in_words(k: int, depth: int, has_weights: bool) -> str:
    """Which lists are kept to their end."""
    whole = ["uniform weights", *(["the weights above"] if has_weights else [])]
    whole += ["each group alone"] if depth == k else []
    ends = f"those among the {k} strongest on either side by {' or by '.join(whole)}"
    return ends if depth == k else f"{ends}, or among the {depth} strongest by a group alone"
