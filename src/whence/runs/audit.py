"""`whence audit`: which method to trust on the model of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.runs.config import RunConfig, ScoreConfig, WeighConfig, dump_toml, to_dict
from whence.runs.machine import whence_version
from whence.runs.start import Source, Start, opened
from whence.storage import make_dir, read_json, write_atomic, write_json
from whence.studies.audit import audit

AUDIT = "audit.json"  # in the audit's folder


@dataclass(frozen=True, eq=False)
class AuditResult:
    """Where the audit is, and what it says.

    Attributes:
        folder: The run.
        config_path: Settings that score with the winner.
        summary_path: JSON, as `Audit.to_dict`.
        summary: Its content.
        computed: Whether it was computed now; False where what was there still holds.
    """

    folder: Path
    config_path: Path
    summary_path: Path
    summary: dict[str, Any]
    computed: bool


def run_audit(source: Source, out: Source | None = None) -> AuditResult:
    """Compare methods on a pilot gold standard, and write the settings of the best one.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.resolve`.
    Raises:
        ConfigError, StoreMismatchError: See `opened` and `Opened.build`.
        InputError: See `audit`.
    Cost:
        About the seconds of the table [audit]; an interrupted one keeps its further trainings.
    """
    with opened(source, out) as folder:
        run, config = folder.run, folder.run.config
        begun = folder.build()
        basis = {"model and data": begun.facts, **_learned_from(begun), **_settings(config)}
        place = run.audit_dir()
        summary_path, config_path = place / AUDIT, place / "winner.toml"
        stored = read_json(summary_path) if summary_path.is_file() and config_path.is_file() else {}
        known = isinstance(stored, dict) and stored.get("computed_from") == basis
        summary = stored if known else {**_audited(begun), "computed_from": basis, "whence": whence_version()}
        if not known:
            make_dir(place)
            winner = _winner_config(config, summary["winner"])
            write_atomic(config_path, dump_toml(winner).encode())
            write_json(summary_path, summary)  # last: it says that all is there
            folder.record("audit")
    return AuditResult(run.path, config_path, summary_path, summary, not known)


def _audited(begun: Start) -> dict[str, Any]:
    config = begun.run.config
    found = audit(
        begun.task,
        begun.train,
        begun.queries,
        config.recipe,
        points=config.gold.points or None,
        seconds=config.audit.seconds,
        metric=config.audit.metric,
        confidence=config.audit.confidence,
        seed=config.audit.seed,
        learning=begun.setup.learning_queries,
        store_dir=begun.run.audit_dir() / "pilot",
    )
    return found.to_dict()


def _settings(config: RunConfig) -> dict[str, Any]:
    return {
        "audit": to_dict(config.audit),
        "recipe": to_dict(config.recipe),
        "points": list(config.gold.points),
    }


def _learned_from(begun: Start) -> dict[str, str]:
    learning = begun.setup.learning_queries
    return {} if learning is None else {"learning queries": learning.fingerprint}


def _winner_config(config: RunConfig, winner: dict[str, Any]) -> RunConfig:
    """The settings of the run with the winner as its only method, under a name of their own.

    [weigh] is as the audit learned: its defaults, whatever the run has.
    """
    score, weigh = winner["score"], winner["weigh"] or {"methods": []}
    chosen = ScoreConfig(methods=tuple(score["methods"]), options=score.get("options", {}), top=config.score.top)
    return dataclasses.replace(
        config, name=f"{config.name}, audited", score=chosen, weigh=WeighConfig(methods=tuple(weigh["methods"]))
    )
