"""The run: settings, fingerprints, time and memory, and the command that repeats it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd

from whence.data import Examples
from whence.report.blocks import Block, Cell, Column, Command, Heading, Table, Text, number_cell, text_cell
from whence.report.views.shown import Shown, View
from whence.report.wording import plain, plural
from whence.storage import flatten

_FINGERPRINT = re.compile(r"[0-9a-f]{32,}")
_NO_COMMAND = "No command line was recorded: these scores come from Python. `whence score CONFIG.toml` records one."
_NO_RESOURCES = "Time and memory were not recorded. `whence score CONFIG.toml` records them."


def run_view(shown: Shown) -> View:
    """Everything needed to know what was run, and to run it again."""
    case = shown.case
    facts = _facts(shown)
    prints = {name: value for name, value in facts.items() if _FINGERPRINT.fullmatch(str(value))}
    settings = {name: value for name, value in facts.items() if name not in prints}
    blocks: list[Block] = [Heading("Run it again"), Command(plain(case.command)) if case.command else Text(_NO_COMMAND)]
    blocks += [Heading("Settings"), _fact_table("settings", "Settings", settings)]
    if prints:
        blocks += [
            Heading("Fingerprints"),
            Text("SHA-256 of contents: the same model and the same examples have the same ones on every machine."),
            _fact_table("fingerprints", "Fingerprints", prints),
        ]
    blocks += [Heading("Time and memory"), *_resources(shown)]
    return View(tuple(blocks), missing=shown.missing(("resources",)))


def _facts(shown: Shown) -> dict[str, Any]:
    """What was scored, what the caller adds, and what the scores carry with them."""
    case = shown.case
    scores = case.scores
    if scores is None:
        return {"scores": "none", **case.facts}
    coverage = scores.provenance.get("coverage_percent")
    known = {
        "method": scores.method,
        "unit": scores.unit or "none, the scores only rank",
        "train set": _examples(case.train, len(scores.train_ids)),
        "query set": _examples(case.queries, len(scores.query_ids)),
    }
    if isinstance(coverage, (int, float)):
        known["coverage"] = f"{plain(float(coverage))} % of the parameters"
    return {**known, **case.facts, **flatten(scores.provenance, "scores")}


def _examples(examples: Examples | None, n_scored: int) -> str:
    if examples is None:
        return f"contents not loaded, {plural(n_scored, 'example')} scored"
    return f"{examples.name or 'unnamed'}, {n_scored} of {plural(len(examples), 'example')} scored"


def _fact_table(name: str, caption: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((text_cell(key), text_cell(_jsonish(value))) for key, value in facts.items())
    return Table(name, caption, (Column("name"), Column("value")), rows)


def _jsonish(value: Any) -> Any:
    if value is None:
        return "none"
    is_list = isinstance(value, (Sequence, Mapping)) and not isinstance(value, str)
    return json.dumps(value, ensure_ascii=False, default=str) if is_list else value


def _resources(shown: Shown) -> list[Block]:
    table = shown.case.resources
    if table is None or not len(table):
        return [Text(shown.needs("resources", _NO_RESOURCES))]
    rows = [
        (text_cell(step), _measured(seconds), _measured(peak))
        for step, seconds, peak in zip(table["step"], table["seconds"], table["peak_mb"], strict=True)
    ]
    seconds, peaks = (cast("pd.Series[float]", table[name]) for name in ("seconds", "peak_mb"))
    if len(rows) > 1:
        rows.append((Cell("all steps", strong=True), _measured(seconds.sum(min_count=1)), _measured(peaks.max())))
    columns = (Column("step"), Column("seconds", "number"), Column("peak memory, MB", "number"))
    return [Table("resources", "Time and peak memory of each step", columns, tuple(rows))]


def _measured(value: float) -> Cell:
    value = float(value)
    return Cell("not measured", value=value) if pd.isna(value) else number_cell(value)
