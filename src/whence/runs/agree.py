"""`whence agree`: the scores of a run against its gold standard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from whence.errors import DamagedShardError, StoreError
from whence.evaluation import Agreement, Reliability, agreement, reliability
from whence.progress import stage
from whence.runs.config import to_dict
from whence.runs.folder import RunFolder
from whence.runs.gold import gold_of
from whence.runs.machine import whence_version
from whence.runs.score_files import ScoreFiles
from whence.runs.start import Opened, Source, opened
from whence.scores import Outcomes
from whence.storage import ShardStore, fingerprint, read_json, write_atomic, write_json
from whence.storage.shards import MANIFEST as GOLD_MANIFEST


@dataclass(frozen=True, eq=False)
class AgreeResult:
    """Where the agreement is, and what it says.

    Attributes:
        folder: The run.
        table_path: Parquet: one row for each method, point and metric, as `Agreement.table`.
        summary_path: JSON, see `summarize`.
        summary: Its content.
        computed: Whether it was computed now; False where what was there still holds.
    """

    folder: Path
    table_path: Path
    summary_path: Path
    summary: dict[str, Any]
    computed: bool

    @property
    def table(self) -> pd.DataFrame:
        """The table, read from its file."""
        return pd.read_parquet(self.table_path)


def run_agree(source: Source, out: Source | None = None) -> AgreeResult:
    """Compare the scores of each method with what really happened.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.resolve`.
    Raises:
        StoreError: Gold standard or scores are not there yet; the message names the command.
        ConfigError, StoreMismatchError: See `opened` and `Opened.build`.
        DamagedShardError: A stored file is damaged.
    Cost:
        See `agreement`; nothing where gold standard and scores are the same as last time.
    """
    with opened(source, out) as folder:
        run = folder.run
        basis = computed_from(run, folder.arguments)
        found = _stored(run, basis)
        summary = _compare(folder, basis) if found is None else found
        if found is None:
            folder.record("agree")
    return AgreeResult(run.path, run.agreement_path(), run.summary_path(), summary, found is None)


def _compare(folder: Opened, basis: Mapping[str, Any]) -> dict[str, Any]:
    """Compute table and summary, and write them; the summary last."""
    run, config = folder.run, folder.run.config
    scores = {name: ScoreFiles(run.scores_dir(name)).read() for name in config.score.methods}
    try:
        outcomes = gold_of(folder.build()).outcomes(config.gold.adjustment)
    except DamagedShardError as error:
        error.add_note("For the gold standard that is `whence gold CONFIG --rebuild`.")
        raise
    settings = config.agree
    options = {"n_bootstrap": settings.n_bootstrap, "confidence": settings.confidence}
    with stage("comparing", total=len(scores) + len(settings.metrics)) as done:
        parts = []
        for one in scores.values():
            parts.append(agreement(one, outcomes, metrics=settings.metrics, **options))  # type: ignore[arg-type]
            done.advance()
        reliabilities = {}
        for metric in settings.metrics:
            reliabilities[metric] = reliability(outcomes, metric, **options)  # type: ignore[arg-type]
            done.advance()
    agreed = Agreement.concat(parts)
    table = pa.Table.from_pandas(agreed.table, preserve_index=False)
    summary = {
        "name": config.name,
        "whence": whence_version(),
        **summarize(agreed, reliabilities, outcomes),
        "computed_from": dict(basis),
    }
    run.summary_path().unlink(missing_ok=True)
    write_atomic(run.agreement_path(), lambda file: pq.write_table(table, file))
    write_json(run.summary_path(), summary)
    return summary


def summarize(agreed: Agreement, reliabilities: Mapping[str, Reliability], outcomes: Outcomes) -> dict[str, Any]:
    """The numbers as JSON; a number that does not exist is null.

    agreement: {metric: {method: {point: [value, low, high]}}}
    reliability, ceiling: {metric: {point: [value, low, high]}}
    """
    return {
        "n_seeds": agreed.n_seeds,
        "n_query": len(agreed.query_ids),
        "n_left_out_sets": len(outcomes.left_out),
        "points": list(agreed.points),
        "point_unit": agreed.point_unit,
        "adjustment": agreed.adjustment,
        "confidence": agreed.confidence,
        "agreement": {metric: _by_method(agreed, metric) for metric in reliabilities},
        "reliability": {
            metric: _by_point(found.table, ("reliability", "low", "high")) for metric, found in reliabilities.items()
        },
        "ceiling": {
            metric: _by_point(found.table, ("ceiling", "ceiling_low", "ceiling_high"))
            for metric, found in reliabilities.items()
        },
        "undefined": {str(point): list(ids) for point, ids in agreed.undefined.items()},
        "notes": list(agreed.notes),
    }


def _by_method(agreed: Agreement, metric: str) -> dict[str, dict[str, list[float | None]]]:
    found = agreed.to_dict(metric)
    return {name: {str(point): _finite(v) for point, v in points.items()} for name, points in found.items()}


def _by_point(table: pd.DataFrame, columns: tuple[str, ...]) -> dict[str, list[float | None]]:
    return {str(row["point"]): _finite(row[c] for c in columns) for row in table.to_dict("records")}


def _finite(values: Iterable[float]) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]


def computed_from(run: RunFolder, arguments: str) -> dict[str, Any]:
    """Fingerprints of everything the comparison reads.

    Raises:
        StoreError: Something is not there yet.
    """
    return {
        "gold": _gold_fingerprint(run, arguments),
        "adjustment": run.config.gold.adjustment,
        "scores": _score_fingerprints(run, arguments),
        "agree": to_dict(run.config.agree),
    }


def _gold_fingerprint(run: RunFolder, arguments: str) -> str:
    if not (run.gold_dir() / "plan.json").is_file():
        raise StoreError(f"{run.path} has no gold standard yet. Run `whence gold {arguments}` first.")
    store = ShardStore.existing(run.gold_dir())
    if not store.complete:
        raise StoreError(
            f"The gold standard in {run.gold_dir()} is not finished: {len(store.missing())} of "
            f"{len(store.shard_names)} shards are missing. Continue it with `whence gold {arguments}`."
        )
    return fingerprint(read_json(run.gold_dir() / GOLD_MANIFEST))


def _score_fingerprints(run: RunFolder, arguments: str) -> dict[str, str]:
    manifests = {name: ScoreFiles(run.scores_dir(name)).files.manifest() for name in run.config.score.methods}
    missing = [name for name, manifest in manifests.items() if manifest is None]
    if missing:
        raise StoreError(f"{run.path} has no scores of {', '.join(missing)} yet. Run `whence score {arguments}` first.")
    return {name: fingerprint(manifest) for name, manifest in manifests.items() if manifest is not None}


def _stored(run: RunFolder, basis: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of last time, where it was computed from the same."""
    if not (run.summary_path().is_file() and run.agreement_path().is_file()):
        return None
    found = read_json(run.summary_path())
    return found if isinstance(found, dict) and found.get("computed_from") == basis else None
