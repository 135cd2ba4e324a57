"""Results as lines of text; the last line is the path of what was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from whence.report.demo import DemoReport
    from whence.runs import AgreeResult, AuditResult, EvaluateResult, GoldResult, ScoreResult, WeighResult
    from whence.task import GroupWeights

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


def show_weigh(result: WeighResult) -> Lines:
    """For each method its groups with their shares and weights, what was found on the way, and how to use it."""
    lines: Lines = []
    for method, weightings in result.weights.items():
        state = "weighed" if method in result.computed else "kept"
        path = (result.folder / "weights" / method / "learned.json").as_posix()
        lines += [
            *_table(_weight_rows(f"{method} ({state})", weightings)),
            *_weight_facts(weightings),
            f'To score with them: [score.options.{method}] weights = "{path}"',
            "",
        ]
    return [*lines, str(result.folder / "weights")]


def _weight_rows(title: str, weightings: Mapping[str, GroupWeights]) -> list[list[str]]:
    """Group, share of the parameters, share of the score energy on the learning queries, weights."""
    from whence.studies.weighing import energy_shares

    groups = weightings["rms"].groups
    n_params, energy = sum(groups.sizes), energy_shares(weightings["rms"]).tolist()
    rows = [[title, "parameters", "energy", *weightings]]
    for place, group in enumerate(groups.names):
        shares = [f"{100 * share:.1f} %" for share in (groups.sizes[place] / n_params, energy[place])]
        rows.append([group, *shares, *(f"{float(w.values[place]):.3f}" for w in weightings.values())])
    return rows


def _weight_facts(weightings: Mapping[str, GroupWeights]) -> Lines:
    """How the learned weights came about, a line for each fact."""
    facts, entropy = weightings["learned"].facts, weightings["learned"].entropy
    lines = [
        f"Made by {facts['solver']} in {facts['seconds']:.2g} s from contributions {facts['contributions']}; "
        f"entropy {entropy:.2f} (1 is uniform)."
    ]
    softened = "uniform_share" in facts or "unweighted_share" in facts
    when = (" of relative contributions" if facts.get("relative") else "") + (" as learned" if softened else "")
    for part, what in (("queries", "learning queries"), ("held_out", "held out")):
        if (facts.get(part) or {}).get("loss"):
            lines.append(_judged(facts, part, what + when))
    if "stability" in facts:
        alike = {name: facts["stability"].get(name) for name in ("cosine", "centered", "spearman")}
        lines.append(f"Likeness of two of {facts['stability']['folds']} folds: {_named(alike, digits=2)}.")
    if "guard" in facts:
        lines.append(
            f"Guard: {facts['guard']['chosen']} taken; held-out losses {_named(dict(facts['guard']['losses']))}."
        )
    if "uniform_share" in facts:
        lines.append(f"Entropy floor {facts['entropy_floor']:g}: {100 * facts['uniform_share']:.0f} % uniform weights.")
    if "unweighted_share" in facts:
        lines.append(f"Mixed with unweighted scores, {100 * facts['unweighted_share']:.0f} % of the spread.")
    if "note" in facts:
        lines.append(f"Note: {facts['note']}.")
    if "few_shot" in weightings:
        few = weightings["few_shot"].facts
        lines.append(
            f"Few-shot from {few['sets']} kept sets, ridge {few['ridge']:g}; variance explained: "
            f"{_named(few['explained'], digits=2).replace('weights', 'few_shot')}."
        )
    return lines


def _judged(facts: Mapping[str, Any], part: str, what: str) -> str:
    """The loss of weightings on some queries; with a teacher that is minus a correlation, which says more."""
    values, on = facts[part]["loss"], f"on {facts[part]['n']} {what}"
    if "teacher" in facts:
        values = {name: -value for name, value in values.items()}
        title = f"Correlation with {facts['teacher']} {on}"
    else:
        title = f"Loss {on}, lower is better"
    return f"{title}: {_named(values, digits=4).replace('weights', 'learned')}."


def _named(values: Mapping[str, float | None], digits: int = 4) -> str:
    return ", ".join(f"{name} {_figure(value, digits)}" for name, value in values.items())


def show_evaluate(result: EvaluateResult) -> Lines:
    """Linear datamodeling scores, their ceiling and differences, and how well wrong labels are found."""
    summary = result.summary
    lines = []
    if "lds" in summary:
        lines.append(
            f"Linear datamodeling score: {summary['n_kept_sets']} kept sets x {summary['n_seeds']} seeds, "
            f"{summary['n_query']} queries; {100 * summary['confidence']:g} % intervals."
        )
        rows = [[name, _interval(values)] for name, values in summary["lds"].items()]
        lines += [*_table([*rows, ["ceiling", _interval(summary["lds_ceiling"])]]), ""]
        if summary["lds_differences"]:
            rows = [[name, _interval(values)] for name, values in summary["lds_differences"].items()]
            lines += ["Paired differences.", *_table(rows), ""]
    if "mislabel_auc" in summary:
        rows = [[name, _interval(values)] for name, values in summary["mislabel_auc"].items()]
        lines += ["Wrong labels found (AUC).", *_table(rows), ""]
        if differences := summary.get("mislabel_auc_differences"):
            rows = [[name, _interval(values)] for name, values in differences.items()]
            lines += ["Paired differences.", *_table(rows), ""]
    lines += [f"Not judged: {part}, since {why}." for part, why in summary["skipped"].items()]
    return [*lines, str(result.summary_path)]


def show_audit(result: AuditResult) -> Lines:
    """The candidates, the verdict in words, and settings to go on with."""
    summary = result.summary
    rows = [[f"{summary['metric']} agreement", "choice", "verdict", "seconds", "MiB"]]
    rows += [
        [row["candidate"], *(_figure(row[name], digits) for name, digits in _AUDIT_COLUMNS)]
        for row in summary["candidates"]
    ]
    return [*_table(rows), "", *summary["summary"].splitlines(), str(result.config_path), str(result.summary_path)]


_AUDIT_COLUMNS = (("choice", 2), ("verdict", 2), ("seconds", 2), ("peak_mb", 0))


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_report(path: Path) -> Lines:
    """Where the page is."""
    return [str(path)]


def _interval(values: list[Any]) -> str:
    value, low, high = ("-" if v is None else f"{v:.2f}" for v in values)
    return value if (low, high) == ("-", "-") else f"{value} [{low}, {high}]"


def _table(rows: list[list[str]]) -> Lines:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
