"""One bench from its final model to its results."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.weights.benches import Bench, Trained
from benchmarks.weights.fixed import FIXED, PAIRS, PUBLISHED, Size
from benchmarks.weights.judged import Judge, per_group
from benchmarks.weights.learned import Weighed, teacher_of, weigh
from benchmarks.weights.truth import Plan, Trainer, Truth, truth_of
from whence.errors import NumericalError, UnsupportedError
from whence.runs.machine import machine
from whence.studies.demo import accuracy
from whence.training import EngineName

ENGINE: EngineName = "loop"  # on one core no other was faster for any bench by more than the noise of the timing


def run_bench(bench: Bench, size: Size, work: Path, engine: EngineName = ENGINE) -> dict[str, Any]:
    """Train, retrain on kept sets, learn weights of every method, judge them.

    Args:
        bench: What is trained and asked.
        size: How much.
        work: Keeps finished trainings: interrupted, the same call continues.
        engine: Of the trainings.
    Returns:
        JSON values, None in the place of NaN.
    """
    bench = bench.sized(size)
    clock = Clock()
    trained, foreign = Trained.of(bench, size), bench.on_other_data()
    elsewhere = None if foreign is None else Trained.of(foreign, size)
    clock.lap("final models")
    inputs = trained.inputs
    trainer = Trainer(bench, inputs.train, inputs.queries, trained.learning, engine, work)
    truth = truth_of(trainer, Plan.draw(inputs.n_train, size), size)
    clock.lap("trainings on kept sets")
    methods, refused = weigh_all(trained, elsewhere, truth, size, clock)
    judge = Judge.of(methods, truth.evaluation)
    groups = per_group(methods, truth.evaluation)
    clock.lap("judging")
    result = {
        "bench": bench.name,
        "remark": bench.remark,
        "lds": judge.lds(),
        "differences": judge.differences(),
        "ceiling": truth.ceiling,
        "seeds": truth.seeds,
        "per_group": groups,
        "weights": {one.method: {name: w.by_name() for name, w in one.weights.items()} for one in methods},
        "learn_seconds": {one.method: one.seconds for one in methods},
        "objective": {one.method: one.objective for one in methods},
        "room": judge.room(),
        "guard": judge.guard(),
        "transfer": judge.transfer(),
        "elsewhere": judge.elsewhere(),
        "overfits": judge.overfits(),
        "facts": {one.method: {name: dict(w.facts) for name, w in one.weights.items()} for one in methods},
        "refused": {**refused, **{one.method: one.refused for one in methods if one.refused}},
        "settings": settings_of(trained, size),
        "trainings": truth.facts,
        "seconds": clock.seconds,
        "machine": machine(),
    }
    found: dict[str, Any] = without_nan(result)
    return found


def weigh_all(
    trained: Trained, elsewhere: Trained | None, truth: Truth, size: Size, clock: Clock
) -> tuple[list[Weighed], dict[str, str]]:
    """Weights of every method, and why others have none."""
    methods: list[Weighed] = []
    refused: dict[str, str] = {}
    teacher = teacher_of(trained)
    clock.lap("teacher")
    for name in trained.bench.methods:
        try:
            methods.append(weigh(trained, elsewhere, name, teacher, truth.few_shot, size.repeats))
        except (NumericalError, UnsupportedError) as error:
            refused[name] = str(error)
        clock.lap(name)
    return methods, refused


def settings_of(trained: Trained, size: Size) -> dict[str, Any]:
    """What the figures depend on."""
    bench, inputs = trained.bench, trained.inputs
    labelled = isinstance(inputs.queries.all(), tuple)
    return {
        "fixed": asdict(FIXED),
        "published": {"solver": PUBLISHED[0], **PUBLISHED[1]},
        "pairs": [f"{a} - {b}" for a, b in PAIRS],
        "size": asdict(size),
        "recipe": asdict(bench.recipe),
        "methods": list(bench.methods),
        "n_train": inputs.n_train,
        "n_params": inputs.task.layout.n_params,
        "evaluation_queries": len(inputs.queries),
        "learning_queries": len(trained.learning),
        "grouping": "tensor",
        "elsewhere": None if bench.elsewhere is None else bench.elsewhere[0],
        "measure": inputs.task.measure.name,
        "accuracy": accuracy(inputs.task, inputs.queries) if labelled else None,
    }


class Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap, and say so."""
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 2), now
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: None instead."""
    if isinstance(value, dict):
        return {str(key): without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
