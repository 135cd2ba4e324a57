"""Parameter groups: which parts of the model are believed, how well each does alone, and whom each names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from whence.report.blocks import Block, Cell, Chart, Column, Heading, Table, Text, interval_cell, number_cell, text_cell
from whence.report.case import Limits
from whence.report.charts import HeatMap, heat_maps_svg, intervals_svg
from whence.report.ranked import Reranking
from whence.report.views.reranking import reranking
from whence.report.views.shown import Shown, View
from whence.report.wording import isolated, number, percent, plain, plural, short, unique
from whence.storage import flatten
from whence.studies.weighing import energy_shares
from whence.task import GroupWeights

_EMPTY = (
    "There are no weights of parameter groups here. `whence weigh CONFIG.toml`, or `whence.learn_weights`, learns "
    "which parts of the model to believe."
)
_CAPTION = (
    "Blue is believed more than with uniform weights (1), orange less; the stronger the colour, the further from 1, "
    "within each map. "
)
_ALONE = "The map of scores starts at 0: blue is better than chance, orange worse."
_NO_CONTRIBUTIONS = (
    "What each group contributes to the scores was not given, so that nothing can be ranked anew here. `whence weigh "
    "CONFIG.toml` keeps it; in Python pass `contributions` of the queries to `whence.ReportCase`."
)
_OTHER_QUERIES = "None of the queries shown is among those whose contributions were given."
_TOO_MANY = "There are so many groups that not even the numbers of one query fit into a page of a reasonable size."
_LISTED = 40  # groups in the chart of intervals


def groups_view(shown: Shown) -> View:
    """For every way in which the model is cut: heat maps, a table and scores alone; then whom the groups name."""
    case = shown.case
    missing = shown.missing(("weights", "group_lds", "contributions"))
    if not case.weights and not case.group_lds and case.contributions is None:
        return View(empty=shown.needs("weights", _EMPTY), missing=missing)
    blocks: list[Block | Reranking] = []
    for names, weights in _by_groups(case.weights, case.group_lds).items():
        alone = {name: limits for name, limits in case.group_lds.items() if name in names}
        blocks += _one_cut(shown, names, weights, cast("dict[str, Limits]", alone))
    blocks += [Heading("Whom the groups name"), *_whom(shown)]
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
    return cuts or ({tuple(group_lds): []} if group_lds else {})


def _one_cut(
    shown: Shown, names: tuple[str, ...], weights: list[GroupWeights], alone: dict[str, Limits]
) -> list[Block]:
    labels = weight_names(weights)
    maps = [HeatMap(label, tuple(one.values.tolist()), 1.0) for label, one in zip(labels, weights, strict=True)]
    if alone:
        maps.append(HeatMap("LDS alone", tuple(alone.get(name, (math.nan,))[0] for name in names), 0.0))
    svg = heat_maps_svg(names, maps)
    caption = (_CAPTION if weights else "") + (_ALONE if alone else "")
    blocks: list[Block] = [
        Heading(plural(len(names), "parameter group")),
        Text("Groups in the model's own order. Weights have mean 1: uniform weights change nothing."),
        *(Text(_in_words(label, one)) for label, one in zip(labels, weights, strict=True)),
        Chart(shown.album.chart(svg), "Heat maps of the numbers in the table below", caption.strip(), wide=True),
        _table(names, labels, weights, alone),
    ]
    return blocks + (_alone_chart(shown, names, alone) if alone else [])


def weight_names(weights: Sequence[GroupWeights]) -> list[str]:
    """A name for each, with the method it was made for where there is one."""
    return unique(short(one.name if one.method is None else f"{one.method}, {one.name}") for one in weights)


def _in_words(label: str, weights: GroupWeights) -> str:
    """Entropy, the group that is believed most, the teacher, stability over folds and the guard's choice."""
    most = weights.groups.names[int(weights.values.argmax())]
    words = (
        f"{isolated(label)}: entropy {number(weights.entropy, 2)} (1 is uniform, 0 a single group), largest weight "
        f"{number(float(weights.values.max()), 2)} on {isolated(most)}"
    )
    folds, guard = weights.facts.get("stability"), weights.facts.get("guard")
    if folds:
        alike = ", ".join(f"{name} {number(folds[name], 2)}" for name in _LIKENESS if name in folds)
        words += f"; weights of two of {folds['folds']} folds of the learning queries are alike by {alike}"
    if "teacher" in weights.facts:
        words += f"; {_followed(weights.facts)}"
    if guard:
        words += f"; the guard took {isolated(guard['chosen'])} weights"
    return f"{words}."


def _followed(facts: Mapping[str, Any]) -> str:
    """How well the scores agree with those of the method that was followed."""
    part = "held_out" if "held_out" in facts else "queries"
    losses, where = facts[part]["loss"], "held-out" if part == "held_out" else "learning"
    return (
        f"they follow {isolated(facts['teacher'])}, with which scores correlate by {number(-losses['weights'], 2)} as "
        f"learned and by {number(-losses['uniform'], 2)} unweighted, on {facts[part]['n']} {where} queries"
    )


_LIKENESS = ("cosine", "centered", "spearman")


def _table(names: tuple[str, ...], labels: list[str], weights: list[GroupWeights], alone: dict[str, Limits]) -> Table:
    sizes = weights[0].groups.sizes if weights else ()
    energies = [energy_shares(one) for one in weights if one.name == "rms"]
    columns = [Column("group")]
    columns += [Column("parameters", "number")] if weights else []
    columns += [Column("share of score energy", "number")] if energies else []
    columns += [
        Column(label, "interval" if _folds(one) else "number") for label, one in zip(labels, weights, strict=True)
    ]
    columns += [Column("LDS alone", "interval")] if alone else []
    rows = []
    for k, name in enumerate(names):
        row = [text_cell(name), *(number_cell(float(size), f"{size:,}") for size in sizes[k : k + 1])]
        row += [number_cell(float(energy[k]), percent(float(energy[k]))) for energy in energies[:1]]
        row += [_weight_cell(one, k) for one in weights]
        row += [interval_cell(alone.get(name))] if alone else []
        rows.append(tuple(row))
    any_folds = any(map(_folds, weights))
    caption = "Weights of parameter groups" + ("; beside a weight its range over the folds" if any_folds else "")
    return Table("groups", caption, tuple(columns), tuple(rows))


def _folds(weights: GroupWeights) -> bool:
    """Whether the range of each weight over folds of the learning queries is known."""
    known = weights.facts.get("stability") or {}
    return len(known.get("low", ())) == len(known.get("high", ())) == len(weights.groups)


def _weight_cell(weights: GroupWeights, k: int) -> Cell:
    value = float(weights.values[k])
    if not _folds(weights):
        return number_cell(value)
    low, high = (float(weights.facts["stability"][end][k]) for end in ("low", "high"))
    return Cell(number(value), value=(value, low, high), quiet=f"{number(low, 2)} to {number(high, 2)}")


def _alone_chart(shown: Shown, names: tuple[str, ...], alone: dict[str, Limits]) -> list[Block]:
    """Scores of each group alone beside the ceiling; the highest ones where there are many."""
    ceiling = shown.ceiling
    best = sorted(alone, key=lambda name: -alone[name][0] if math.isfinite(alone[name][0]) else math.inf)[:_LISTED]
    svg = intervals_svg({name: alone[name] for name in names if name in best}, ceiling, "LDS of each group alone")
    blocks: list[Block] = [Heading("How well each group does alone")]
    if not svg:
        return [*blocks, Text("No value is defined, so there is no chart.")]
    caption = "The dashed rule is the ceiling: the score of perfect scores. " if ceiling else ""
    caption += f"The {_LISTED} best of {len(alone)} groups; the table has all." if len(alone) > _LISTED else ""
    text = "Linear datamodeling score of the scores that one group alone gives, with its interval."
    chart = Chart(shown.album.chart(svg), "Dots and intervals of the last column of the table above", caption.strip())
    return [*blocks, Text(text), chart]


def _whom(shown: Shown) -> list[Block | Reranking]:
    found = shown.case.contributions
    if found is None:
        return [Text(shown.needs("contributions", _NO_CONTRIBUTIONS))]
    ours = [one for one in shown.case.weights if one.groups == found.groups and one.method in (None, found.method)]
    if shown.case.scores is not None and not set(found.query_ids) & set(shown.case.shown_ids):
        return [Text(_OTHER_QUERIES)]
    block = reranking(shown, found, ours)
    return [Text(_TOO_MANY)] if block is None else [block]


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
    given = flatten(weights.facts, "")
    elsewhere = ("stability.low", "stability.high")  # in the table of the groups
    return facts | {key: _fact(value) for key, value in given.items() if key not in elsewhere}


def _fact(value: Any) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_cell(float(value), plain(value))
    return text_cell(json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value)
