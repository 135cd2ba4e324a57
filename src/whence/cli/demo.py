"""The demo's numbers as a report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from whence.report import ReportCase, write_report
from whence.studies.demo import METRIC, Part, run_demo

N_SUSPECTS = 20  # rows shown


def report_demo(out: Path) -> Path:
    """Run the demo in `out` and write its report there; the path of the report."""
    found = run_demo(out)
    return write_report(out / "report.html", [part_case(part) for part in found.parts])


def part_case(part: Part) -> ReportCase:
    """One section: the scores shown, their agreement, and the most suspicious labels where some were planted wrong."""
    return ReportCase(
        title=part.plan.title,
        train=part.train,
        queries=part.queries,
        scores=part.scores,
        agreement=part.agreement,
        agreement_metric=METRIC,
        point_unit=part.plan.further.unit,
        ceiling=part.ceiling,
        suspects=_suspects(part),
    )


def _suspects(part: Part) -> pd.DataFrame | None:
    if part.suspicion is None or part.clean is None:
        return None
    given = part.train.all()[1]
    assert isinstance(given, Tensor)
    order = torch.argsort(part.suspicion, descending=True, stable=True)[:N_SUSPECTS].tolist()
    return pd.DataFrame(
        {
            "id": [part.train.ids[k] for k in order],
            "score": part.suspicion[order].tolist(),
            "given": given[order].tolist(),
            "true": part.clean[order].tolist(),
        }
    )
