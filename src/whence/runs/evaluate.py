"""`whence evaluate`: scores, with and without weights, against training anew on parts of the data.

retraining/                   what happened to the queries, stored run by run
evaluation/evaluation.json    linear datamodeling scores, their ceiling and paired differences; mislabel AUC
evaluation/suspects.parquet   self-influence of every train example, its label, and the true one where it is known
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from whence.data import Examples, random_kept_sets
from whence.errors import DamagedShardError, StoreMismatchError
from whence.evaluation import Lds, MislabelAucs, lds, mislabel_aucs, reliability
from whence.gold import reinitialized, retrain
from whence.methods import self_influence
from whence.progress import stage
from whence.runs.config import to_dict
from whence.runs.folder import RunFolder
from whence.runs.machine import whence_version
from whence.runs.result_files import ResultFiles
from whence.runs.score_files import ScoreFiles, last
from whence.runs.start import Source, Start, opened
from whence.runs.weigh import WEIGHTINGS, read_contributions, read_weighted_scores, read_weights, weight_files
from whence.scores import Outcomes, ScoreMatrix
from whence.storage import fingerprint, read_json, write_atomic, write_json
from whence.task import CrossEntropy, GroupWeights, Task

SUMMARY, SUSPECTS = "evaluation.json", "suspects.parquet"


@dataclass(frozen=True, eq=False)
class EvaluateResult:
    """Where the evaluation is, and what it says.

    Attributes:
        folder: The run.
        summary_path: JSON, see `evaluate`.
        summary: Its content.
        computed: Whether it was computed now.
    """

    folder: Path
    summary_path: Path
    summary: dict[str, Any]
    computed: bool


def run_evaluate(source: Source, out: Source | None = None, *, rebuild: bool = False) -> EvaluateResult:
    """Judge the scores of a run: linear datamodeling scores by retraining, and the finding of wrong labels.

    What cannot be judged is left out, and `skipped` in the summary says why: without `[evaluate.recipe]` nothing is
    retrained, without true labels no area under the curve is taken.

    Args:
        source: A TOML file, a run folder, or its `config.toml`.
        out: Folder of the run; see `RunFolder.resolve`.
        rebuild: Compute damaged parts again.
    Raises:
        StoreError: Scores are not there yet; the message names the command.
        ConfigError, StoreMismatchError, DamagedShardError: As for the other commands.
    Cost:
        kept_sets x seeds trainings, stored and continued like the gold standard; see `lds`. Nothing where scores and
        weights are the same as last time.
    """
    with opened(source, out) as folder:
        run = folder.run
        scores = {name: last(ScoreFiles(run.scores_dir(name)).read()) for name in run.config.score.methods}
        begun = folder.build()
        files = evaluation_files(run)
        settings = _settings(begun)
        computed = not _are_current(files, settings)
        if computed:
            summary, suspects = evaluate(begun, scores, rebuild=rebuild)
            files.write(settings, lambda dir: _write(dir, summary, suspects))
            folder.record("evaluate")
    return EvaluateResult(run.path, files.dir / SUMMARY, read_json(files.dir / SUMMARY), computed)


def _are_current(files: ResultFiles, settings: Mapping[str, Any]) -> bool:
    """Whether they are there, whole, for these scores and weights; others are judged anew, as `agree` does it."""
    try:
        return files.have(settings, rebuild=True)
    except StoreMismatchError:
        return False


def evaluation_files(run: RunFolder) -> ResultFiles:
    """The folder of the evaluation."""
    return ResultFiles(run.evaluation_dir(), "evaluation", "whence evaluate", "The evaluation and the report")


def evaluate(
    begun: Start, scores: Mapping[str, ScoreMatrix], *, rebuild: bool = False
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The numbers as JSON (null where one does not exist), and the table of suspects.

    lds: {label: [value, low, high]}, a label being "method" or "method, weights"; lds_differences likewise,
    "method: learned - uniform"; lds_ceiling: [value, low, high]; group_lds: {method: {group: [value, low, high]}};
    mislabel_auc: {label: [value, low, high]}; mislabel_auc_differences likewise, "self_influence: learned - uniform";
    skipped: {part: why}.
    """
    config = begun.run.config
    summary: dict[str, Any] = {"name": config.name, "whence": whence_version(), "skipped": {}}
    weighed = _weighed(begun.run)
    if config.evaluate.recipe is None:
        summary["skipped"]["lds"] = "no original training is given: add [evaluate.recipe] to the settings"
    else:
        summary |= _lds(begun, scores, weighed, retrained_outcomes(begun, rebuild=rebuild))
    suspects, areas = _suspects(begun, weighed)
    if areas is not None:
        summary["mislabel_auc"] = _finite_intervals(areas.to_dict())
        summary["mislabel_auc_differences"] = _finite_intervals(_suspect_differences(areas))
    else:
        summary["skipped"]["mislabel_auc"] = "true labels are not known: let the factory return Setup(..., clean=...)"
    return summary, suspects


def retrained_outcomes(begun: Start, *, rebuild: bool = False) -> Outcomes:
    """What happens to the queries when the model is trained on random parts of the data; computed where not stored."""
    chosen = begun.run.config.evaluate
    assert chosen.recipe is not None
    try:
        return retrain(
            begun.task,
            begun.train,
            begun.queries,
            chosen.recipe,
            kept=random_kept_sets(len(begun.train), chosen.kept_sets, share=chosen.share, seed=chosen.first_seed),
            seeds=range(chosen.first_seed, chosen.first_seed + chosen.seeds),
            initialize=begun.setup.initialize or reinitialized(begun.task),
            engine=chosen.engine,
            store_dir=begun.run.retraining_dir(),
            rebuild=rebuild,
        ).outcomes()
    except DamagedShardError as error:
        error.add_note("For the retraining that is `whence evaluate CONFIG --rebuild`.")
        raise


def _weighed(run: RunFolder) -> dict[str, dict[str, GroupWeights]]:
    """Weightings by method, of the methods that have any."""
    methods = [name for name in run.config.score.methods if weight_files(run, name).manifest() is not None]
    return {name: read_weights(run, name) for name in methods}


def _lds(
    begun: Start,
    scores: Mapping[str, ScoreMatrix],
    weighed: Mapping[str, Mapping[str, GroupWeights]],
    outcomes: Outcomes,
) -> dict[str, Any]:
    chosen = begun.run.config.evaluate
    options = {"n_bootstrap": chosen.n_bootstrap, "confidence": chosen.confidence}
    named, groups = dict(scores), {}
    with stage("linear datamodeling scores"):
        for method, weightings in weighed.items():
            weighted = read_weighted_scores(begun.run, method)
            named |= {f"{method}, {name}": weighted[name] for name in weightings}
            parts = read_contributions(begun.run, method)
            if len(parts.query_ids) < len(outcomes.query_ids):
                continue  # not all were kept
            alone = {g: parts.scores(GroupWeights.only(parts.groups, g)) for g in parts.groups.names}
            groups[method] = _finite_intervals(lds(alone, outcomes, **options).to_dict())  # type: ignore[arg-type]
        found = lds(named, outcomes, **options)  # type: ignore[arg-type]
        trust = reliability(outcomes, "spearman", **options).table.iloc[-1]  # type: ignore[arg-type]
    return {
        "n_kept_sets": found.n_sets,
        "share": chosen.share,
        "n_seeds": found.n_seeds,
        "n_query": len(outcomes.query_ids),
        "confidence": found.confidence,
        "lds": _finite_intervals(found.to_dict()),
        "lds_differences": _finite_intervals(_differences(found, weighed)),
        "lds_reliability": _finite([trust["reliability"], trust["low"], trust["high"]]),
        "lds_ceiling": _finite([trust["ceiling"], trust["ceiling_low"], trust["ceiling_high"]]),
        "lds_note": str(trust["note"]),
        "group_lds": groups,
    }


def _differences(found: Lds, weighed: Iterable[str]) -> dict[str, list[float]]:
    """Learned against uniform and RMS weights, on the same queries and kept sets."""
    out = {}
    for method in weighed:
        out[f"{method}: learned - uniform"] = found.difference(f"{method}, learned", method)
        out[f"{method}: learned - rms"] = found.difference(f"{method}, learned", f"{method}, rms")
        out[f"{method}: rms - uniform"] = found.difference(f"{method}, rms", method)
    return out


def _suspects(
    begun: Start, weighed: Mapping[str, Mapping[str, GroupWeights]]
) -> tuple[pd.DataFrame, MislabelAucs | None]:
    """Self-influence (squared gradient norms) of all train examples, and how well it finds wrong labels."""
    plain = self_influence(begun.task, begun.train)
    table = pd.DataFrame({"id": list(begun.train.ids), "score": plain.tolist()})
    given = labels_of(begun.task, begun.train)
    if given is not None:
        table["given"] = given.tolist()
    values = {"self_influence": plain}
    # Only Grad-Dot's weights are made for the contributions that squared gradient norms consist of.
    for name in WEIGHTINGS if "grad_dot" in weighed else ():
        values[f"self_influence, {name}"] = self_influence(begun.task, begun.train, weights=weighed["grad_dot"][name])
    for name in list(values)[1:]:
        table[name] = values[name].tolist()
    if begun.setup.clean is None or given is None:
        return table, None
    table["true"] = begun.setup.clean.tolist()
    flipped = given != begun.setup.clean.to(given)
    if bool(flipped.all()) or not bool(flipped.any()):
        return table, None
    chosen = begun.run.config.evaluate
    return table, mislabel_aucs(values, flipped, confidence=chosen.confidence, n_bootstrap=chosen.n_bootstrap)


def _suspect_differences(found: MislabelAucs) -> dict[str, list[float]]:
    """Weighted against unweighted, on the same flipped and clean examples."""
    plain, *weighted = found.replicates
    return {f"{plain}: {name.removeprefix(f'{plain}, ')} - uniform": found.difference(name, plain) for name in weighted}


def labels_of(task: Task, train: Examples) -> Tensor | None:
    """(n_train,) labels that a classifier was trained on; None where the loss has no classes."""
    return task.loss.target(train.all()).cpu() if isinstance(task.loss, CrossEntropy) else None


def _settings(begun: Start) -> dict[str, Any]:
    """What decides the numbers, as JSON."""
    clean = begun.setup.clean
    labels = None if clean is None else fingerprint({"labels": clean.tolist()})
    return {**begun.facts, **evaluation_settings(begun.run), "clean": labels}


def evaluation_settings(run: RunFolder) -> dict[str, Any]:
    """What of that the folder alone tells: settings, and fingerprints of what is judged."""
    methods = run.config.score.methods
    results = {name: ScoreFiles(run.scores_dir(name)).files.manifest() for name in methods}
    weights = {name: weight_files(run, name).manifest() for name in methods}
    return {
        "evaluate": to_dict(run.config.evaluate),
        "scores": {name: fingerprint(found) for name, found in results.items() if found is not None},
        "weights": {name: fingerprint(found) for name, found in weights.items() if found is not None},
    }


def _write(dir: Path, summary: dict[str, Any], suspects: pd.DataFrame) -> list[Path]:
    table = pa.Table.from_pandas(suspects, preserve_index=False)
    write_atomic(dir / SUSPECTS, lambda file: pq.write_table(table, file))
    write_json(dir / SUMMARY, summary)
    return [dir / SUSPECTS, dir / SUMMARY]


def _finite_intervals(found: Mapping[str, Iterable[float]]) -> dict[str, list[float | None]]:
    return {name: _finite(values) for name, values in found.items()}


def _finite(values: Iterable[float]) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]
