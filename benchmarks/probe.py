"""Is the engine that the probe picks the fastest one when all three are timed at length?

python -m benchmarks.probe --threads 2 --out R.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.networks import Transformer
from benchmarks.published import SETTINGS, data_of, untrained
from whence import Examples, LeftOutSets, Recipe, Task, load
from whence.runs.machine import machine
from whence.training import Execution, Problem, WorkerPool, limited_threads, probe, training_twin
from whence.training.processes import INLINE

SECONDS = 3.0
SWEEP = 10**7  # runs times steps of the sweep the probe is told about: long enough to be worth starting workers


def energy_mlp() -> tuple[Problem, int]:
    """The published network on UCI Energy, 100 runs."""
    setting = SETTINGS["energy"]
    train, queries, _ = data_of(setting)
    return _problem(untrained(setting, 0), train, queries, setting.sgd), 100


def picture_cnn() -> tuple[Problem, int]:
    """A CNN on 28 x 28 pictures, 16 runs."""
    split = load("fashion_mnist", n_train=1024, n_test=64)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    ).eval()
    recipe = Recipe(lr=0.01, batch_size=64, epochs=100)
    return _problem(Task.classification(model), split.train, split.test, recipe), 16


def small_transformer() -> tuple[Problem, int]:
    """Random tokens: only the time of a step matters here. 16 runs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 200, (1024, 32), generator=generator)
    y = torch.randint(0, 2, (1024,), generator=generator)
    torch.manual_seed(0)
    task = Task.classification(Transformer().eval())
    recipe = Recipe(lr=1e-3, optimizer="adamw", batch_size=32, epochs=100)
    return _problem(task, Examples((x[:960], y[:960])), Examples((x[960:], y[960:])), recipe), 16


def _problem(task: Task, train: Examples, queries: Examples, recipe: Recipe) -> Problem:
    few = queries.subset(range(min(16, len(queries))))
    return Problem(training_twin(task, dropout=True), train, few, recipe)


MODELS: dict[str, Callable[[], tuple[Problem, int]]] = {
    "energy_mlp": energy_mlp,
    "cnn_28x28": picture_cnn,
    "transformer": small_transformer,
}


def retimed(problem: Problem, execution: Execution, sets: tuple[tuple[int, ...], ...]) -> float:
    """Seconds per run and step over at least `SECONDS`."""
    if execution.engine == "processes":
        return _retimed_processes(problem, execution, sets)
    runs = sets[: execution.chunk] if execution.inner == "stacked" else sets[:1]
    with limited_threads(execution.threads):
        return _at_length(lambda steps: INLINE[execution.inner](problem.job(0, runs, (steps,)))) / len(runs)


def _retimed_processes(problem: Problem, execution: Execution, sets: tuple[tuple[int, ...], ...]) -> float:
    runs = sets[: execution.chunk] if execution.inner == "stacked" else sets[:1]
    with WorkerPool(problem, execution.workers) as pool:

        def everywhere(steps: int) -> None:
            for future in [pool.submit(execution.inner, 0, runs, (steps,)) for _ in range(execution.workers)]:
                future.result()

        everywhere(1)
        return _at_length(everywhere) / len(runs) / execution.workers


def _at_length(run: Callable[[int], object]) -> float:
    steps, elapsed = 2, 0.0
    run(2)
    while elapsed < SECONDS:
        start = time.perf_counter()
        run(steps)
        elapsed = time.perf_counter() - start
        rate = elapsed / steps
        steps = max(steps + 1, math.ceil(1.2 * SECONDS / rate))
    return rate


def check(name: str, threads: int) -> dict[str, Any]:
    """The probe's choice beside all engines timed at length."""
    torch.set_num_threads(threads)
    problem, n_runs = MODELS[name]()
    sets = tuple(tuple(s) for s in LeftOutSets.evenly_spaced(len(problem.train), n_runs))
    start = time.perf_counter()
    timings = probe(problem, sets, SWEEP)
    probed_s = time.perf_counter() - start
    best: dict[str, Execution] = {}
    for timing in timings:  # fastest first: of each engine its best variant
        best.setdefault(timing.execution.engine, timing.execution)
    seconds = {engine: retimed(problem, execution, sets) for engine, execution in best.items()}
    chosen = timings[0].execution
    return {
        "chosen": chosen.to_dict(),
        "chosen_over_fastest": seconds[chosen.engine] / min(seconds.values()),
        "us_per_run_and_step": {engine: 1e6 * s for engine, s in seconds.items()},
        "variants": {engine: e.to_dict() for engine, e in best.items()},
        "probed_us": [[t.execution.engine, t.execution.chunk, t.execution.threads, 1e6 * t.seconds] for t in timings],
        "probe_seconds": probed_s,
    }


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {name: check(name, args.threads) for name in MODELS}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"threads": args.threads, **result, "machine": machine()}, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
