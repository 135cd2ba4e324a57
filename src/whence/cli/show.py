"""Results as lines of text; the last line is the path of what was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whence.report.demo import DemoReport
    from whence.runs import AgreeResult, GoldResult, ScoreResult

Lines = list[str]


def show_demo(result: DemoReport) -> Lines:
    """What was found, and the page that shows it."""
    return [*result.lines, str(result.summary), str(result.report)]


def show_gold(result: GoldResult) -> Lines:
    """What was measured, and where it is."""
    points = ", ".join(map(str, result.points))
    return [
        f"Gold standard: {result.n_seeds} seeds x {result.n_sets} left-out sets, {result.n_query} queries, "
        f"at {points} {result.point_unit} (engine {result.engine}).",
        str(result.store),
    ]


def show_score(result: ScoreResult) -> Lines:
    """Which methods were scored, and where."""
    state = {**dict.fromkeys(result.computed, "scored"), **dict.fromkeys(result.kept, "kept")}
    rows = [[name, state[name], str(store)] for name, store in result.stores.items()]
    return [*_table(rows), str(result.folder / "scores")]


def show_agree(result: AgreeResult) -> Lines:
    """One table a metric: methods by amounts, with the ceiling of the gold standard below."""
    summary = result.summary
    lines = [
        f"Agreement with the gold standard: mean over {summary['n_query']} queries, {summary['n_seeds']} seeds, "
        f"{summary['n_left_out_sets']} left-out sets; {100 * summary['confidence']:g} % intervals."
    ]
    for metric, by_method in summary["agreement"].items():
        points = [str(point) for point in summary["points"]]
        rows = [[f"{metric} at {summary['point_unit']}", *points]]
        rows += [[name, *(_interval(values[p]) for p in points)] for name, values in by_method.items()]
        rows.append(["ceiling", *(_interval(summary["ceiling"][metric][p]) for p in points)])
        lines += ["", *_table(rows)]
    notes = [f"Note: {note}." for note in summary["notes"]]
    return [*lines, "", *notes, str(result.table_path), str(result.summary_path)]


def _interval(values: list[Any]) -> str:
    value, low, high = ("-" if v is None else f"{v:.2f}" for v in values)
    return value if (low, high) == ("-", "-") else f"{value} [{low}, {high}]"


def _table(rows: list[list[str]]) -> Lines:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
