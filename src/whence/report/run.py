"""The report of a run folder: whatever is there is shown, whatever is missing or damaged is said."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from whence.checks import look_up
from whence.errors import StoreError, WhenceError
from whence.report.case import ReportCase
from whence.report.page import write_report
from whence.runs.agree import computed_from
from whence.runs.audit import AUDIT
from whence.runs.config import to_dict
from whence.runs.evaluate import SUMMARY, SUSPECTS, evaluation_files, evaluation_settings
from whence.runs.folder import RunFolder
from whence.runs.history import read_history
from whence.runs.score_files import ScoreFiles, last
from whence.runs.setup import Setup
from whence.runs.start import PROBLEM, Source, opened
from whence.runs.weigh import read_contributions, read_weights, weight_files
from whence.scores import ScoreMatrix
from whence.storage import differences, flatten, read_json
from whence.task import GroupWeights

T = TypeVar("T")
Json = dict[str, Any]
AUDIT_NUMBERS = ("choice", "verdict", "seconds", "peak_mb")  # null where there is none


def run_report(source: Source, out: Source | None = None, *, methods: Sequence[str] = ()) -> Path:
    """Write the report of a run from what its folder holds; nothing is computed.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.find`.
        methods: Methods to show, a section each; default the one that agrees best with the gold standard, or the
            first of the settings.
    Returns:
        The page, `report.html` in the run folder.
    Raises:
        StoreError: The run has not been started.
        UnknownNameError: A method is none of the run's.
        ConfigError: The settings cannot be read.
    Cost:
        Builds task and data once, to show the examples; see `write_report`.
    """
    run = RunFolder.find(source, out)
    for name in methods:
        look_up(dict.fromkeys(run.config.score.methods), name, "method of this run")
    found = _Found.of(run)
    cases = [_case(found, method) for method in methods or (_best_method(found),)]
    return write_report(run.report_path(), cases, title=run.config.name)


@dataclass(eq=False)
class _Reader:
    """Reads parts of a run, and remembers what is missing or damaged, and what to do about it."""

    missing: dict[str, str] = field(default_factory=dict)

    def read(self, part: str, reader: Callable[[], T]) -> T | None:
        """What `reader` gives; None, and a word in `missing`, where it fails."""
        try:
            return reader()
        except WhenceError as error:
            self.missing[part] = str(error)
        except Exception as error:  # a damaged file can break any reader, and a report is where one looks to find out
            self.missing[part] = f"It could not be read ({type(error).__name__}: {error})."
        return None


@dataclass(frozen=True, eq=False)
class _Found:
    """What a run holds, but for the scores and weights of single methods."""

    run: RunFolder
    setup: Setup | None
    agreed: Json | None
    evaluation: Json | None
    audited: Json | None
    suspects: pd.DataFrame | None
    history: list[Json] | None
    missing: Mapping[str, str]

    @classmethod
    def of(cls, run: RunFolder) -> _Found:
        reader = _Reader()
        setup = reader.read("train", lambda: _built(run))
        evaluation = reader.read("lds", lambda: _evaluation(run))
        agreed = reader.read("agreement", lambda: _agreement(run))
        audited = reader.read("audit", lambda: _audited(run))
        suspects = None if evaluation is None else reader.read("suspects", lambda: _suspects(run))
        history = reader.read("resources", lambda: read_history(run))
        return cls(run, setup, agreed, evaluation, audited, suspects, history, reader.missing)


def _case(found: _Found, method: str) -> ReportCase:
    run, setup = found.run, found.setup
    reader = _Reader(dict(found.missing))
    weights = reader.read("weights", lambda: _weights(run, method))
    return ReportCase(
        title=f"{run.config.name}: {method}",
        train=None if setup is None else setup.train,
        queries=None if setup is None else setup.queries,
        scores=reader.read("scores", lambda: _scores(run, method)),
        weights=weights or (),
        contributions=reader.read("contributions", lambda: read_contributions(run, method)) if weights else None,
        **_agreement_fields(found.agreed),
        **_evaluation_fields(found.evaluation, method),
        **_audit_fields(found.audited),
        suspects=found.suspects,
        notes=_notes(found.agreed),
        facts=_facts(run),
        missing=reader.missing,
        command=_commands(run),
        resources=_resources(found.history),
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def _built(run: RunFolder) -> Setup:
    try:
        with opened(run.path, None) as folder:
            return folder.build().setup
    except WhenceError as error:
        raise StoreError(f"Examples are shown by their ids only: {error}") from error


def _scores(run: RunFolder, method: str) -> ScoreMatrix:
    return last(ScoreFiles(run.scores_dir(method)).read())


def _agreement(run: RunFolder) -> Json:
    path = run.summary_path()
    if not path.is_file():
        raise StoreError(f"{run.path} has no agreement yet. Run `whence gold` and `whence agree` first.")
    found = read_json(path)
    if not isinstance(found, dict) or "agreement" not in found:
        raise StoreError(f"{path} is damaged. Remove it and run `whence agree {run.path}` again.")
    if found.get("computed_from") != computed_from(run, str(run.path)):
        raise StoreError(
            f"Scores or gold standard have changed since the agreement. Run `whence agree {run.path}` again."
        )
    return found


def _evaluation(run: RunFolder) -> Json:
    files = evaluation_files(run)
    files.checked()
    manifest = files.manifest()
    assert manifest is not None  # `checked` has raised otherwise
    lines = differences(manifest["settings"], manifest["settings"] | evaluation_settings(run), prefix="")
    if lines:
        raise StoreError(
            f"Scores or weights have changed since the evaluation. Run `whence evaluate {run.path}` again."
        )
    return dict(read_json(files.dir / SUMMARY))


def _audited(run: RunFolder) -> Json | None:
    path = run.audit_dir() / AUDIT
    if not path.is_file():
        return None  # an extra: a run without one lacks nothing
    found = read_json(path)
    if not isinstance(found, dict) or "candidates" not in found:
        raise StoreError(f"{path} is damaged. Remove it and run `whence audit {run.path}` again.")
    return found


def _suspects(run: RunFolder) -> pd.DataFrame | None:
    table = pd.read_parquet(run.evaluation_dir() / SUSPECTS)
    return table if "given" in table.columns else None  # without classes no label can look wrong


def _weights(run: RunFolder, method: str) -> list[GroupWeights]:
    if weight_files(run, method).manifest() is None:
        raise StoreError(f"{method} has no weights of parameter groups. Add it to [weigh], and run `whence weigh`.")
    return list(read_weights(run, method).values())


# --- what the page shows ----------------------------------------------------------------------------------------------


def _best_method(found: _Found) -> str:
    """The method of highest agreement at the largest amount of training; without agreement, the first."""
    methods = found.run.config.score.methods
    if found.agreed is None:
        return methods[0]
    curves = _agreement_fields(found.agreed)["agreement"]
    at_end = {name: curves[name][max(curves[name])][0] for name in methods if curves.get(name)}
    defined = {name: value for name, value in at_end.items() if math.isfinite(value)}
    return max(defined, key=lambda name: defined[name], default=methods[0])


def _agreement_fields(agreed: Json | None) -> Json:
    if agreed is None:
        return {}
    metric = next(iter(agreed["agreement"]))
    curves = {name: _curve(points) for name, points in agreed["agreement"][metric].items()}
    return {
        "agreement": curves,
        "agreement_metric": metric,
        "point_unit": agreed["point_unit"],
        "ceiling": _curve(agreed["ceiling"][metric]),
    }


def _evaluation_fields(evaluation: Json | None, method: str) -> Json:
    if evaluation is None or "lds" not in evaluation:
        return {}
    note = (
        f"{evaluation['n_kept_sets']} kept sets of {evaluation['share']:g} of the data x {evaluation['n_seeds']} "
        f"seeds, {evaluation['n_query']} queries"
    )
    return {
        "lds": _intervals(evaluation["lds"]),
        "lds_ceiling": _interval(evaluation["lds_ceiling"]),
        "lds_differences": _intervals(evaluation["lds_differences"]),
        "group_lds": _intervals(evaluation["group_lds"].get(method, {})),
        "lds_note": note,
    }


def _audit_fields(audited: Json | None) -> Json:
    if audited is None:
        return {}
    table = pd.DataFrame(audited["candidates"]).astype(dict.fromkeys(AUDIT_NUMBERS, float))
    return {"audit": table, "audit_summary": audited["summary"].splitlines()}


def _notes(agreed: Json | None) -> list[str]:
    return [] if agreed is None else [f"{note}." for note in agreed["notes"]]


def _facts(run: RunFolder) -> Json:
    """Settings and fingerprints."""
    facts: Json = {"run folder": str(run.path)}
    reader = _Reader()
    facts |= reader.read("problem", lambda: dict(read_json(run.path / PROBLEM))) or {}
    return facts | flatten(to_dict(run.config))


def _commands(run: RunFolder) -> str:
    config = shlex.quote(str(run.config_path()))
    steps = [step for step, is_there in _steps(run) if is_there]
    return " && ".join(f"whence {step} {config} --out NEW_FOLDER" for step in (*steps, "report"))


def _steps(run: RunFolder) -> list[tuple[str, bool]]:
    """Commands in their order, and whether the run has their results."""
    return [
        ("gold", run.gold_dir().is_dir()),
        ("score", bool(run.scored_methods())),
        ("agree", run.summary_path().is_file()),
        ("weigh", (run.path / "weights").is_dir()),
        ("evaluate", run.evaluation_dir().is_dir()),
        ("audit", (run.audit_dir() / AUDIT).is_file()),
    ]


def _resources(history: Sequence[Json] | None) -> pd.DataFrame | None:
    """Seconds of each step, over all its runs, and the largest memory of one."""
    if not history:
        return None
    table = pd.DataFrame(history)[["step", "seconds", "peak_mb"]]
    return table.groupby("step", sort=False).agg({"seconds": "sum", "peak_mb": "max"}).reset_index()


def _curve(points: Mapping[str, Sequence[float | None]]) -> dict[int, list[float]]:
    return {int(point): _interval(values) for point, values in points.items()}


def _intervals(found: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    return {name: _interval(values) for name, values in found.items()}


def _interval(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else v for v in values]
