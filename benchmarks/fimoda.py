"""The published further-training benchmark with our methods: who follows the gold standard, at which amount?

python -m benchmarks.fimoda --dataset energy --seeds 3 --points 1,5,20,100,500 --final-models 3 --out R.json

Interrupted, the same command continues: gold standards are stored run by run under `--work`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.published import LEFT_OUT, SETTINGS, Setting, data_of, final_model, mean_loss
from benchmarks.speed import compare
from whence import Gold, Inputs, ScoreMatrix, Task, agreement, attribute_with, further_train, reliability
from whence.runs.machine import machine
from whence.task import fingerprint

Scores = ScoreMatrix | dict[int, ScoreMatrix]
TRAJECTORIES = (1000, 1001)  # seeds of the runs that `unrolled` follows; none of the gold standard's


def methods_of(setting: Setting, points: tuple[int, ...]) -> dict[str, Callable[[Inputs], Scores]]:
    """Name in the results -> scores. The published damping is no choice of ours."""
    trained = {"recipe": setting.further, "at": points}
    return {
        "grad_dot": lambda i: attribute_with(i, "grad_dot"),
        "grad_cos": lambda i: attribute_with(i, "grad_cos"),
        "influence_gn": lambda i: attribute_with(i, "influence_gn", damping=setting.damping),
        "horizon": lambda i: attribute_with(i, "horizon", **trained),
        "horizon_ahead": lambda i: attribute_with(i, "horizon_ahead", **trained),
        "horizon_ahead_both_shifts": lambda i: attribute_with(i, "horizon_ahead", look_ahead="both_shifts", **trained),
        "unrolled": lambda i: attribute_with(i, "unrolled", seeds=TRAJECTORIES, **trained),
        "embedding_cosine": lambda i: attribute_with(i, "embedding_cosine"),
        "random": lambda i: attribute_with(i, "random"),
    }


def one_model(setting: Setting, seeds: int, points: tuple[int, ...], seed: int, work: Path) -> dict[str, Any]:
    """Train, score, run the gold standard, compare."""
    train, queries, test = data_of(setting)
    clock = Clock()
    task = clock.time("original_training", lambda: trained_task(setting, seed, work))
    gold = clock.time("gold", lambda: gold_of(setting, task, seeds, points, work / f"gold-model-{seed}-seeds-{seeds}"))
    inputs = Inputs(task, train, queries)
    outcomes = gold.outcomes("mean")
    result: dict[str, Any] = {"init_seed": seed, "cosine": {}, "pearson": {}, "spearman": {}, "sem": {}}
    for name, compute in methods_of(setting, points).items():
        table = agreement(clock.time(name, lambda c=compute: c(inputs)), outcomes, n_bootstrap=200).table  # type: ignore[misc]
        for metric in ("cosine", "pearson", "spearman"):
            rows = table[table.metric == metric].sort_values("point")
            result[metric][name] = rows["value"].tolist()
            if metric == "cosine":
                result["sem"][name] = rows["sem"].tolist()
                result["n_undefined"] = rows["n_undefined"].tolist()
    trust = reliability(outcomes, n_bootstrap=200).table.sort_values("point")
    return result | {
        "reliability": trust["reliability"].tolist() if seeds > 1 else None,
        "train_loss": mean_loss(task, train),
        "test_loss": mean_loss(task, test),
        "engine": gold.execution.to_dict(),
        "seconds": clock.seconds,
    }


def trained_task(setting: Setting, seed: int, work: Path) -> Task:
    """The final model of initialisation `seed`; kept, because another run of the same seed on this machine is equal."""
    train, _, _ = data_of(setting)
    path = work / f"model-{seed}.pt"
    if path.is_file():
        from benchmarks.published import untrained

        task = untrained(setting, train, seed)
        task.model.load_state_dict(torch.load(path, weights_only=True))
        return task
    task = final_model(setting, train, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(task.model.state_dict(), path)
    return task


def gold_of(setting: Setting, task: Task, seeds: int, points: tuple[int, ...], store: Path) -> Gold:
    """Further training without each of 100 evenly spaced examples, seeds 0, 1, ..."""
    train, queries, _ = data_of(setting)
    name = f"{store.name}-{fingerprint(task.model)[:8]}-{'-'.join(map(str, points))}"
    return further_train(
        task,
        train,
        queries,
        setting.further,
        left_out=LEFT_OUT,
        seeds=seeds,
        points=points,
        store_dir=store.with_name(name),
    )


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


def summary(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over final models."""

    def mean(key: str, name: str) -> list[float]:
        return [statistics.fmean(column) for column in zip(*(m[key][name] for m in models), strict=True)]

    keys = ("cosine", "pearson", "spearman", "sem")
    means: dict[str, Any] = {key: {name: mean(key, name) for name in models[0][key]} for key in keys}
    for key in ("train_loss", "test_loss"):
        means[key] = statistics.fmean(m[key] for m in models)
    trust = [m["reliability"] for m in models]
    means["reliability"] = None if trust[0] is None else [statistics.fmean(c) for c in zip(*trust, strict=True)]
    means["seconds"] = {k: sum(m["seconds"][k] for m in models) for k in models[0]["seconds"]}
    return means


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SETTINGS, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="gold seeds 0, 1, ...")
    parser.add_argument("--points", default=None, help="epochs of further training, comma-separated")
    parser.add_argument("--final-models", type=int, default=1, help="initialisation seeds 0, 1, ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=None, help="folder for what a rerun continues from")
    parser.add_argument("--compare-loop", action="store_true", help="time our trainer against sequential loops")
    args = parser.parse_args()
    setting = SETTINGS[args.dataset]
    default = [p for p in (1, 5, 20, 100, 500) if p <= setting.further_epochs]
    points = tuple(int(p) for p in args.points.split(",")) if args.points else tuple(default)
    result: dict[str, Any] = {"dataset": args.dataset, "seeds": args.seeds, "points": list(points)}
    if args.compare_loop:
        result |= compare(setting)
    else:
        work = args.work or Path("runs/benchmarks") / args.dataset
        models = [one_model(setting, args.seeds, points, seed, work) for seed in range(args.final_models)]
        result |= summary(models)
        if args.final_models > 1:
            result["models"] = models
    result["machine"] = machine()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
