"""The published further-training benchmark with all methods: who follows the gold standard, at which amount?

python -m benchmarks.fimoda --dataset energy --seeds 3 --points 1,5,20,100,500 --final-models 3 --out R.json

Interrupted, the same command continues: gold standards are stored run by run and scores method by method under
`--work`, and R.json is written after every method. A method that R.json has already, for the same benchmark and final
model, is not computed again, so that one that is added later costs only itself; to compute it again, delete it there
and under `--work`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.published import (
    SETTINGS,
    Compute,
    Optimizer,
    Scores,
    Setting,
    data_of,
    final_model,
    mean_loss,
    methods_of,
    untrained,
)
from benchmarks.speed import compare
from whence import (
    Examples,
    Gold,
    Inputs,
    LeftOutSets,
    Outcomes,
    ScoreMatrix,
    Task,
    agreement,
    further_train,
    reliability,
    retrain,
    seeds_curve,
)
from whence.errors import NumericalError, UnsupportedError
from whence.evaluation.correlation import cosine
from whence.runs.machine import machine
from whence.task import fingerprint

METRICS = ("cosine", "pearson", "spearman")
POINTS = (1, 5, 20, 100, 500)


@dataclass(frozen=True)
class Case:
    """What is compared with what.

    Attributes:
        setting: Data set, original and further training.
        optimizer: Of further training.
        seeds: Gold seeds 0, 1, ...
        points: Epochs of further training, or of training from scratch with `retrain`.
        retrain: Compare with training from scratch (one seed, the original order) instead of further training.
        n_queries: Only the first so many queries; None for all.
        work: Folder for what a rerun continues from.
    """

    setting: Setting
    optimizer: Optimizer
    seeds: int
    points: tuple[int, ...]
    retrain: bool
    n_queries: int | None
    work: Path

    def header(self) -> dict[str, Any]:
        """What makes two results comparable."""
        return {
            "dataset": self.setting.dataset,
            "truth": "training from scratch" if self.retrain else "further training",
            "optimizer": self.optimizer,
            "seeds": self.seeds,
            "points": list(self.points),
            "queries": self.n_queries,
        }

    @property
    def amounts(self) -> tuple[int, ...]:
        """Of further training that scores are made for; training from scratch is compared with the whole amount."""
        return (self.setting.sgd.amount,) if self.retrain else self.points

    def scores_folder(self, task: Task) -> Path:
        """Where scores at a final model are kept."""
        return self.work / f"scores-{fingerprint(task.model)[:8]}-{self.optimizer}"

    def methods(self, init_seed: int = 0) -> dict[str, Compute]:
        """All methods, told of the further training, for the final model of an initialisation."""
        return methods_of(self.setting, self.setting.further(self.optimizer), self.amounts, init_seed)


@dataclass(frozen=True, eq=False)
class Truth:
    """What really happened, adjusted in both published ways (training from scratch in one), and how it was computed."""

    outcomes: Outcomes
    against_full: Outcomes | None
    engine: dict[str, Any]


class Clock:
    """Seconds of named pieces of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work and note its wall seconds."""
        start = time.perf_counter()
        value = work()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)
        return value


# --- one final model --------------------------------------------------------------------------------------------------


def one_model(
    case: Case, seed: int, names: list[str], known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train, run the gold standard, score, compare; `keep` the results so far after every method.

    Args:
        case: What is compared with what.
        seed: Of the initialisation.
        names: Methods.
        known: Results of an earlier run; those of another final model are dropped.
        keep: Told of the results so far.
    """
    train, queries, test = data_of(case.setting)
    clock = Clock()
    task = clock.time("original_training", lambda: trained_task(case.setting, seed, case.work))
    truth = clock.time("gold", lambda: (retrained if case.retrain else trained_further)(case, task, seed))
    about = {
        "init_seed": seed,
        "model": fingerprint(task.model)[:8],
        "train_loss": mean_loss(task, train),
        "test_loss": mean_loss(task, test),
        "reliability": reliability_of(truth.outcomes),
        "engine": truth.engine,
    }
    known = known if known.get("model") == about["model"] else {}
    inputs = Inputs(task, train, queries.subset(range(case.n_queries or len(queries))))
    methods = case.methods(seed)
    found = known | about
    for name in names:
        if name in found.get("cosine", {}) or name in found.get("refused", {}):
            continue
        found = with_method(found, list(methods), name, outcome_of(case, name, methods[name], inputs, truth, clock))
        found |= {"seconds": clock.seconds | known.get("seconds", {})} | likeness(case, inputs)
        keep(found)
    return found


def outcome_of(
    case: Case, name: str, compute: Compute, inputs: Inputs, truth: Truth, clock: Clock
) -> dict[str, Any] | str:
    """What a method's scores agree with, or why there are none."""
    try:
        scores = scored(case, name, compute, inputs, clock)
    except (NumericalError, UnsupportedError) as error:
        print(f"{name}: {error}", flush=True)
        return str(error)
    return compared(scores, truth, case)


def with_method(found: dict[str, Any], order: list[str], name: str, outcome: dict[str, Any] | str) -> dict[str, Any]:
    """Results with one more method, kind by kind, methods in their usual order."""
    added = {"refused": outcome} if isinstance(outcome, str) else outcome
    merged = {kind: found.get(kind, {}) | {name: values} for kind, values in added.items()}
    return found | {kind: {n: rows[n] for n in order if n in rows} for kind, rows in merged.items()}


def likeness(case: Case, inputs: Inputs) -> dict[str, float]:
    """Mean cosine of the scores of DataInf and Grad-Dot over the left-out examples, once both are there."""
    folder = case.scores_folder(inputs.task)
    first, second = (kept_scores(folder, name, case.amounts, inputs.queries) for name in ("datainf", "grad_dot"))
    if not isinstance(first, ScoreMatrix) or not isinstance(second, ScoreMatrix):
        return {}
    return {"datainf_like_grad_dot": float(cosine(first.values, second.values).mean())}


def trained_task(setting: Setting, seed: int, work: Path) -> Task:
    """The final model of initialisation `seed`; kept, because another run of the same seed on this machine is equal."""
    train, _, _ = data_of(setting)
    path = work / f"model-{seed}.pt"
    if path.is_file():
        task = untrained(setting, seed)
        task.model.load_state_dict(torch.load(path, weights_only=True))
        return task
    task = final_model(setting, train, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(task.model.state_dict(), path)
    return task


def trained_further(case: Case, task: Task, seed: int) -> Truth:
    """Further training without each of some evenly spaced examples."""
    gold = gold_of(case, task, seed)
    adjusted = [first_queries(gold.outcomes(way), case.n_queries) for way in ("mean", "full")]
    return Truth(adjusted[0], adjusted[1], gold.execution.to_dict())


def gold_of(case: Case, task: Task, seed: int) -> Gold:
    """The gold standard for all queries, kept under `work`."""
    train, queries, _ = data_of(case.setting)
    kind = "gold" if case.optimizer == "sgd" else f"gold-{case.optimizer}"
    points = "-".join(map(str, case.points))
    name = f"{kind}-model-{seed}-seeds-{case.seeds}-{fingerprint(task.model)[:8]}-{points}"
    recipe = case.setting.further(case.optimizer)
    return further_train(
        task,
        train,
        queries,
        recipe,
        left_out=case.setting.left_out,
        seeds=case.seeds,
        points=case.points,
        store_dir=case.work / name,
    )


def retrained(case: Case, task: Task, seed: int) -> Truth:
    """The original training again, from the same initialisation and in the same order, without each of these."""
    train, queries, _ = data_of(case.setting)
    everything = range(len(train))
    sets = LeftOutSets.evenly_spaced(len(train), case.setting.left_out)
    runs = retrain(
        untrained(case.setting, seed),
        train,
        queries,
        case.setting.original,
        kept=[[i for i in everything if i not in set(lacks)] for lacks in sets],
        points=case.points,
        store_dir=case.work / f"retrained-model-{seed}-{'-'.join(map(str, case.points))}",
    )
    return Truth(first_queries(runs.outcomes(), case.n_queries), None, runs.execution.to_dict())


def first_queries(outcomes: Outcomes, n: int | None) -> Outcomes:
    """The outcomes of the first `n` queries, or of all."""
    some = slice(n)
    return replace(
        outcomes,
        effects=outcomes.effects[:, :, some],
        level=outcomes.level[:, some],
        query_ids=outcomes.query_ids[some],
    )


def reliability_of(outcomes: Outcomes) -> list[float] | None:
    """Of the gold standard at each point; one seed has none."""
    if outcomes.n_seeds == 1:
        return None
    found: list[float] = reliability(outcomes, n_bootstrap=1).table.sort_values("point")["reliability"].tolist()
    return found


# --- one method -------------------------------------------------------------------------------------------------------


def scored(case: Case, name: str, compute: Compute, inputs: Inputs, clock: Clock) -> Scores:
    """Scores of the left-out examples by one method, read from `work` where they are there for all queries."""
    folder = case.scores_folder(inputs.task)
    kept = kept_scores(folder, name, case.amounts, inputs.queries)
    if kept is not None:
        return kept
    scores: Scores = clock.time(name, lambda: compute(inputs))
    left_out = [i for s in LeftOutSets.evenly_spaced(inputs.n_train, case.setting.left_out) for i in s]
    ids = [inputs.train.ids[i] for i in left_out]
    folder.mkdir(parents=True, exist_ok=True)
    for stem, matrix in named(name, scores).items():
        matrix.columns(ids).save(folder / f"{stem}.safetensors", overwrite=True)
    return scores


def named(name: str, scores: Scores) -> dict[str, ScoreMatrix]:
    """File stem -> matrix."""
    if isinstance(scores, ScoreMatrix):
        return {name: scores}
    return {f"{name}-{amount}": matrix for amount, matrix in scores.items()}


def kept_scores(folder: Path, name: str, amounts: tuple[int, ...], queries: Examples) -> Scores | None:
    """What an earlier run left, if it has these amounts and queries."""
    whole = folder / f"{name}.safetensors"
    by_amount = {amount: folder / f"{name}-{amount}.safetensors" for amount in amounts}
    if whole.is_file():
        found: Scores = ScoreMatrix.load(whole)
    elif all(path.is_file() for path in by_amount.values()):
        found = {amount: ScoreMatrix.load(path) for amount, path in by_amount.items()}
    else:
        return None
    covered = all(set(queries.ids) <= set(matrix.query_ids) for matrix in named(name, found).values())
    return found if covered else None


def compared(scores: Scores, truth: Truth, case: Case) -> dict[str, Any]:
    """Agreement at each point under both adjustments, its standard error, and how it grows with the seeds."""
    if case.retrain and isinstance(scores, dict):
        scores = scores[case.amounts[-1]]
    table = agreement(scores, truth.outcomes, metrics=METRICS, n_bootstrap=1).table.sort_values("point")
    by_metric = {metric: table[table.metric == metric] for metric in METRICS}
    found: dict[str, Any] = {metric: rows["value"].tolist() for metric, rows in by_metric.items()}
    found |= {"sem": by_metric["cosine"]["sem"].tolist(), "n_undefined": by_metric["cosine"]["n_undefined"].tolist()}
    if truth.against_full is not None:
        full = agreement(scores, truth.against_full, metrics=("cosine",), n_bootstrap=1).table.sort_values("point")
        found["cosine_full"] = full["value"].tolist()
    if truth.outcomes.n_seeds > 1:
        curve = seeds_curve(scores, truth.outcomes)
        found["seeds_curve"] = {str(k): v for k, v in zip(curve["seeds"], curve["value"], strict=True)}
    return found


# --- several final models ---------------------------------------------------------------------------------------------


def summary(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over final models of what they all have; a single model is its own summary."""
    if len(models) == 1:
        return models[0]
    means: dict[str, Any] = {"models": models}
    for key in ("cosine", "pearson", "spearman", "sem", "cosine_full"):
        names = [name for name in models[0].get(key, {}) if all(name in m.get(key, {}) for m in models)]
        means[key] = {name: mean_of([m[key][name] for m in models]) for name in names}
    for key in ("train_loss", "test_loss"):
        means[key] = statistics.fmean(m[key] for m in models)
    trust = [m["reliability"] for m in models]
    return means | {"reliability": None if None in trust else mean_of(trust)}


def mean_of(rows: list[list[float]]) -> list[float]:
    """Column by column."""
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


def known_models(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of earlier runs of the same benchmark, one for each final model."""
    if not path.is_file():
        return []
    result = json.loads(path.read_text())
    if any(result.get(key) != value for key, value in header.items()):
        return []
    models: list[dict[str, Any]] = result.get("models", [{k: v for k, v in result.items() if k not in header}])
    return models


def run_case(case: Case, n_models: int, names: list[str], out: Path) -> None:
    """All final models, all methods; `out` is written after each."""
    known = known_models(out, case.header())
    done: list[dict[str, Any]] = []

    def keep(found: dict[str, Any]) -> None:
        write(out, case.header() | summary([*done, found]))

    for seed in range(n_models):
        found = one_model(case, seed, names, known[seed] if seed < len(known) else {}, keep)
        done.append(found)


def write(path: Path, result: dict[str, Any]) -> None:
    """As JSON, with the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SETTINGS, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="gold seeds 0, 1, ...")
    parser.add_argument("--points", default=None, help="epochs of further training, comma-separated")
    parser.add_argument("--final-models", type=int, default=1, help="initialisation seeds 0, 1, ...")
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd", help="of further training")
    parser.add_argument("--retrain", action="store_true", help="compare with training from scratch, one seed")
    parser.add_argument("--queries", type=int, default=None, help="only the first so many queries")
    parser.add_argument("--methods", default=None, help="comma-separated; default all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=None, help="folder for what a rerun continues from")
    parser.add_argument("--compare-loop", action="store_true", help="time our trainer against sequential loops")
    args = parser.parse_args()
    setting = SETTINGS[args.dataset]
    if args.compare_loop:
        write(args.out, {"dataset": args.dataset} | compare(setting))
        return
    end = setting.original.amount if args.retrain else setting.sgd.amount
    points = [p for p in POINTS if p <= end] if args.points is None else map(int, args.points.split(","))
    work = args.work or Path("runs/benchmarks") / args.dataset
    seeds = 1 if args.retrain else args.seeds
    case = Case(setting, args.optimizer, seeds, tuple(points), args.retrain, args.queries, work)
    names = list(case.methods()) if args.methods is None else args.methods.split(",")
    run_case(case, args.final_models, names, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
