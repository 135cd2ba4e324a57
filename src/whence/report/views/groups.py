"""Parameter groups: which parts of the model are believed, and how well each does alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from whence.report.blocks import Block, Cell, Chart, Column, Heading, Table, Text, interval_cell, number_cell, text_cell
from whence.report.case import Limits
from whence.report.charts import HeatRow, heat_map_svg
from whence.report.views.shown import Shown, View
from whence.report.wording import plain, plural, short, unique
from whence.storage import flatten
from whence.task import GroupWeights

_EMPTY = (
    "There are no weights of parameter groups here. `whence weigh CONFIG.toml`, or `whence.learn_weights`, learns "
    "which parts of the model to believe."
)
_CAPTION = (
    "Blue is believed more than with uniform weights (1), orange less; the stronger the colour, the further from 1, "
    "within each row. "
)
_ALONE = "The row of scores starts at 0: blue is better than chance, orange worse."


def groups_view(shown: Shown) -> View:
    """A heat map and a table for every way in which the model is cut into groups, then how the weights were made."""
    case = shown.case
    missing = shown.missing(("weights", "group_lds"))
    if not case.weights and not case.group_lds:
        return View(empty=shown.needs("weights", _EMPTY), missing=missing)
    blocks: list[Block] = []
    for names, weights in _by_groups(case.weights, case.group_lds).items():
        alone = {name: limits for name, limits in case.group_lds.items() if name in names}
        blocks += _one_cut(shown, names, weights, cast("dict[str, Limits]", alone))
    if not case.weights:
        blocks.append(Text(shown.needs("weights", _EMPTY)))
    else:
        blocks += [Heading("How the weights were made"), _facts(case.weights)]
    return View(tuple(blocks), missing=missing)


def _by_groups(
    weights: Sequence[GroupWeights], group_lds: Mapping[str, Any]
) -> dict[tuple[str, ...], list[GroupWeights]]:
    cuts: dict[tuple[str, ...], list[GroupWeights]] = {}
    for one in weights:
        cuts.setdefault(tuple(one.groups.names), []).append(one)
    return cuts or {tuple(group_lds): []}


def _one_cut(
    shown: Shown, names: tuple[str, ...], weights: list[GroupWeights], alone: dict[str, Limits]
) -> list[Block]:
    labels = weight_names(weights)
    rows = [HeatRow(label, tuple(one.values.tolist()), 1.0) for label, one in zip(labels, weights, strict=True)]
    if alone:
        rows.append(HeatRow("LDS alone", tuple(alone.get(name, (math.nan,))[0] for name in names), 0.0))
    svg = heat_map_svg(names, rows)
    caption = (_CAPTION if weights else "") + (_ALONE if alone else "")
    return [
        Heading(plural(len(names), "parameter group")),
        Text("Groups in the model's own order. Weights have mean 1: uniform weights change nothing."),
        Chart(shown.album.chart(svg), "Heat map of the numbers in the table below", caption.strip(), wide=True),
        _table(names, labels, weights, alone),
    ]


def weight_names(weights: Sequence[GroupWeights]) -> list[str]:
    """A name for each, with the method it was made for where there is one."""
    return unique(short(one.name if one.method is None else f"{one.method}, {one.name}") for one in weights)


def _table(names: tuple[str, ...], labels: list[str], weights: list[GroupWeights], alone: dict[str, Limits]) -> Table:
    sizes = weights[0].groups.sizes if weights else ()
    columns = [Column("group")]
    columns += [Column("parameters", "number")] if weights else []
    columns += [Column(label, "number") for label in labels]
    columns += [Column("LDS alone", "interval")] if alone else []
    rows = []
    for k, name in enumerate(names):
        row = [text_cell(name), *(number_cell(float(size), f"{size:,}") for size in sizes[k : k + 1])]
        row += [number_cell(float(one.values[k])) for one in weights]
        row += [interval_cell(alone.get(name))] if alone else []
        rows.append(tuple(row))
    return Table("groups", "Weights of parameter groups", tuple(columns), tuple(rows))


def _facts(weights: Sequence[GroupWeights]) -> Table:
    """One column for each weights object, one row for each thing known of any."""
    known = [_facts_of(one) for one in weights]
    keys = dict.fromkeys(key for facts in known for key in facts)
    columns = (Column("fact"), *(Column(label) for label in weight_names(weights)))
    rows = tuple((text_cell(key), *(facts.get(key, Cell("")) for facts in known)) for key in keys)
    return Table("weights", "How the weights were made", columns, rows)


def _facts_of(weights: GroupWeights) -> dict[str, Cell]:
    facts = {
        "method": text_cell(weights.method or "any"),
        "max / min": number_cell(weights.ratio),
        "entropy (1 = uniform)": number_cell(weights.entropy),
    }
    return facts | {key: _fact(value) for key, value in flatten(weights.facts, "").items()}


def _fact(value: Any) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_cell(float(value), plain(value))
    return text_cell(json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value)
