"""The demo as a person meets it: a report, a summary file and a short table."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from whence.report.case import ReportCase
from whence.report.page import write_report
from whence.storage import make_dir, write_json
from whence.studies.demo import METRIC, SHOWN, Part, run_demo

TITLE = "Which training examples made these models do that?"


@dataclass(frozen=True)
class DemoReport:
    """What the demo left behind.

    Attributes:
        report: The page.
        summary: summary.json.
        lines: A short table for the terminal.
    """

    report: Path
    summary: Path
    lines: tuple[str, ...]


def demo(out: str | Path) -> DemoReport:
    """Run the demo and write `report.html` and `summary.json` into `out`.

    Cost:
        Under two minutes on two cores; seconds where `out` holds the further training of an earlier demo.
    """
    started = time.perf_counter()
    out = Path(out)
    make_dir(out)
    parts = run_demo(out)
    report = write_report(out / "report.html", [case_of(part) for part in parts.values()], title=TITLE)
    seconds = round(time.perf_counter() - started, 2)
    write_json(out / "summary.json", {"seconds": seconds} | {name: part.summary for name, part in parts.items()})
    return DemoReport(report, out / "summary.json", tuple(table_lines(parts.values())))


def case_of(part: Part) -> ReportCase:
    """One part of the demo as a part of the page."""
    plan = part.plan
    return ReportCase(
        title=plan.title,
        train=part.train,
        queries=part.queries,
        scores=part.scores,
        agreement=part.agreement,
        agreement_metric=METRIC,
        point_unit=plan.further.unit,
        ceiling=part.ceiling,
        notes=notes_of(part),
        facts=facts_of(part),
        suspects=suspects_of(part),
        weights=list(part.weighing.weights.values()),
        contributions=part.weighing.parts,
        group_lds=part.weighing.groups.to_dict(),
        lds=part.weighing.scores.to_dict(),
        lds_ceiling=part.weighing.ceiling,
        lds_differences={f"{part.weighing.method}, {k}": v for k, v in part.weighing.differences().items()},
        lds_note=lds_words(part),
        command="whence demo",
    )


def lds_words(part: Part) -> str:
    """What the linear datamodeling scores were computed from."""
    found = part.weighing.scores
    return f"{found.n_sets} kept sets of half the data x {found.n_seeds} seeds, {part.plan.n_queries} queries"


def notes_of(part: Part) -> list[str]:
    """What a reader should know before the numbers."""
    plan, summary = part.plan, part.summary
    last = str(plan.points[-1])
    value, low, high = summary["agreement"][SHOWN][last]
    notes = [
        f"The scores shown are those of {SHOWN} for {last} {plan.further.unit} of further training.",
        f"The gold standard left out {plan.left_out} train examples, one at a time, in {plan.seeds} orders of the data "
        f"each; with them {SHOWN} agrees by {value:.2f} (95 % interval {low:.2f} to {high:.2f}), and a perfect score "
        f"could reach about {summary['ceiling'][last]:.2f}.",
    ]
    notes.append(weights_note(part))
    if "mislabel_auc" in summary:
        auc = summary["mislabel_auc"]
        as_good = auc["loss"][0] >= auc["self_influence"][1]
        verdict = ": on this data the loss is as good a detector." if as_good else "."
        notes.append(
            f"Planted wrong labels are found by self-influence with AUC {auc['self_influence'][0]:.3f}, by the loss "
            f"alone with AUC {auc['loss'][0]:.3f}{verdict} With the learned weights self-influence has AUC "
            f"{auc['self_influence_learned'][0]:.3f}."
        )
    return notes


def weights_note(part: Part) -> str:
    """What the learned weights did, whatever the sign."""
    weighing = part.weighing
    value, low, high = weighing.differences()["learned - uniform"]
    verdict = "no clear change" if low <= 0 <= high else "a gain" if value > 0 else "a loss"
    return (
        f"Weights of {weighing.method} were learned on {weighing.n_learning} held-out queries in "
        f"{weighing.seconds:.1f} s. Against uniform weights the linear datamodeling score changes by {value:+.2f} "
        f"(95 % interval {low:+.2f} to {high:+.2f}): {verdict}."
    )


def facts_of(part: Part) -> dict[str, Any]:
    """Settings for the table at the end of a part."""
    plan = part.plan
    facts: dict[str, Any] = {
        "original training": _recipe_words(plan.original),
        "further training": _recipe_words(plan.further),
        "left-out examples": plan.left_out,
        "gold seeds": plan.seeds,
        "queries": plan.n_queries,
        "engine": part.summary["engine"]["engine"],
    }
    for key in ("accuracy", "explained_variance"):
        if key in part.summary:
            facts[f"{key.replace('_', ' ')} on test data"] = part.summary[key]
    return facts


def suspects_of(part: Part) -> pd.DataFrame | None:
    """The train examples with the largest self-influence, beside what is known of their labels."""
    if part.suspicion is None or part.clean is None:
        return None
    table = {
        "id": list(part.train.ids),
        "score": part.suspicion.tolist(),
        "given": part.train.all()[1].tolist(),
        "true": part.clean.tolist(),
    }
    return pd.DataFrame(table)


def table_lines(parts: Iterable[Part]) -> list[str]:
    """Agreement of every method at every point, as text."""
    lines = []
    for part in parts:
        points = part.plan.points
        lines.append(f"{part.plan.title}: {METRIC} with further training, after {part.plan.further.unit}")
        lines.append("  " + "method".ljust(18) + "".join(f"{p:>22}" for p in points))
        for method, values in part.agreement.items():
            cells = (f"{v:.2f} ({low:.2f} to {high:.2f})" for v, low, high in (values[p] for p in points))
            lines.append("  " + method.ljust(18) + "".join(f"{cell:>22}" for cell in cells))
        lines.append("  " + "ceiling".ljust(18) + "".join(f"{part.ceiling[p]:>22.2f}" for p in points))
        lines += lds_lines(part)
        if "mislabel_auc" in part.summary:
            auc = {name: values[0] for name, values in part.summary["mislabel_auc"].items()}
            lines.append(
                f"  wrong labels found: AUC self-influence {auc['self_influence']:.3f}, loss {auc['loss']:.3f}"
            )
    return lines


def lds_lines(part: Part) -> list[str]:
    """Linear datamodeling scores of all methods, as text."""
    rows = {**part.weighing.scores.to_dict(), "ceiling": list(part.weighing.ceiling)}
    lines = [f"  linear datamodeling score, {lds_words(part)}"]
    return lines + [
        f"  {name.ljust(18)}{f'{v:.2f} ({low:.2f} to {high:.2f})':>22}" for name, (v, low, high) in rows.items()
    ]


def _recipe_words(recipe: Any) -> str:
    momentum = f", momentum {recipe.momentum:g}" if recipe.momentum else ""
    return (
        f"{recipe.optimizer}, lr {recipe.lr:g}{momentum}, batches of {recipe.batch_size}, {recipe.amount} {recipe.unit}"
    )
