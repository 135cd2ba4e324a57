"""The pilot: a small gold standard in two halves that share neither left-out examples nor seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from whence.errors import InputError
from whence.gold import Gold, further_train
from whence.methods import Inputs
from whence.progress import stage
from whence.rng import torch_generator
from whence.storage import make_dir, read_json, write_json
from whence.training import EngineName, Problem, Recipe, probe, training_twin

Half = Literal["choice", "verdict"]
PLAN = "pilot.json"
HALVES: tuple[Half, Half] = ("choice", "verdict")
LEAST_LEFT_OUT, MOST_LEFT_OUT = 10, 200  # of one half
LEAST_SEEDS, MOST_SEEDS = 2, 20


@dataclass(frozen=True)
class Pilot:
    """How large the pilot is.

    Attributes:
        left_out: Train positions left out one at a time, by half.
        n_seeds: Seeds of each half that should fit the time.
        per_run: Seconds of one further training, as timed.
        engine: That was fastest.
        first_seed: Of further training; another audit has others.
    """

    left_out: dict[Half, tuple[int, ...]]
    n_seeds: int
    per_run: float
    engine: EngineName
    first_seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "left_out": {half: list(rows) for half, rows in self.left_out.items()}}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Pilot:
        """The inverse of `to_dict`."""
        return cls(**{**found, "left_out": {half: tuple(found["left_out"][half]) for half in HALVES}})

    def seed(self, half: Half, k: int) -> int:
        """The k-th seed of a half; the halves share none."""
        return self.first_seed + HALVES.index(half) * MOST_SEEDS + k


def kept_plan(plan: Callable[[], Pilot], store_dir: Path | None) -> Pilot:
    """The plan kept in a folder, or a new one: its size follows a timing, and a pilot that goes on must not change."""
    if store_dir is None:
        return plan()
    path = store_dir / PLAN
    if path.is_file():
        return Pilot.from_dict(read_json(path))
    found = plan()
    make_dir(store_dir)
    write_json(path, found.to_dict())
    return found


def run_pilot(
    pilot: Pilot,
    inputs: Inputs,
    recipe: Recipe,
    points: Sequence[int],
    deadline: float,
    store_dir: Path | None = None,
) -> dict[Half, Gold]:
    """Both gold standards, seed by seed in turn, until `deadline` (of `time.perf_counter`) or the seeds planned.

    Two seeds of each half are run in any case. The time decides how many there are, never what they show.
    """
    found: dict[Half, list[Gold]] = {half: [] for half in HALVES}
    with stage("pilot", total=pilot.n_seeds, unit="seeds") as progress:
        for k in range(pilot.n_seeds):
            started = time.perf_counter()
            for half in HALVES:
                found[half].append(_one_seed(pilot, half, k, inputs, recipe, points, store_dir))
            progress.advance()
            now = time.perf_counter()
            if k + 1 >= LEAST_SEEDS and now + (now - started) > deadline:
                break
    return {half: _joined(parts) for half, parts in found.items()}


def _one_seed(
    pilot: Pilot, half: Half, k: int, inputs: Inputs, recipe: Recipe, points: Sequence[int], store_dir: Path | None
) -> Gold:
    return further_train(
        inputs.task,
        inputs.train,
        inputs.queries,
        recipe,
        left_out=pilot.left_out[half],
        seeds=[pilot.seed(half, k)],
        points=points,
        engine=pilot.engine,
        store_dir=None if store_dir is None else store_dir / f"{half}-{k}",
    )


def _joined(parts: Sequence[Gold]) -> Gold:
    """Gold standards of the same sets, seed after seed."""
    return replace(
        parts[0],
        measures=torch.cat([part.measures for part in parts]),
        full=torch.cat([part.full for part in parts]),
        distances=torch.cat([part.distances for part in parts]),
        seeds=tuple(seed for part in parts for seed in part.seeds),
    )


def plan_pilot(inputs: Inputs, recipe: Recipe, points: Sequence[int], seconds: float, seed: int) -> Pilot:
    """As many left-out examples and seeds as `seconds` of further training allow, by a timed probe of the engines.

    Raises:
        InputError: Not even the smallest pilot fits, or the train set is too small to be halved.
    """
    n_train, n_steps = inputs.n_train, recipe.steps_at(max(points), inputs.n_train)
    most = min(MOST_LEFT_OUT, n_train // 2 - 1)
    if most < LEAST_LEFT_OUT:
        raise InputError(
            f"An audit leaves out at least {2 * LEAST_LEFT_OUT} train examples, half of them to choose by and half to "
            f"judge by; {n_train} are too few. Compare all methods on a full gold standard (`whence.further_train`)."
        )
    problem = Problem(training_twin(inputs.task, recipe.dropout), inputs.train, inputs.queries, recipe)
    started = time.perf_counter()
    timing = probe(problem, [(), *((i,) for i in range(most))], 0)[0]
    probed = time.perf_counter() - started
    per_run = timing.seconds * n_steps
    n_left_out, n_seeds = pilot_size((seconds - probed) / per_run / 2, most)
    if n_seeds < LEAST_SEEDS:
        need = probed + 2 * LEAST_SEEDS * (LEAST_LEFT_OUT + 1) * per_run
        raise InputError(
            f"The smallest pilot needs {2 * LEAST_SEEDS * (LEAST_LEFT_OUT + 1)} further trainings of {per_run:.2g} s; "
            f"{seconds:.0f} s are given to it. Allow it {math.ceil(need)} s, or follow less training."
        )
    order = torch.randperm(n_train, generator=torch_generator(seed, "audit")).tolist()
    return Pilot(
        left_out={
            "choice": tuple(sorted(order[:n_left_out])),
            "verdict": tuple(sorted(order[n_left_out : 2 * n_left_out])),
        },
        n_seeds=n_seeds,
        per_run=per_run,
        engine=timing.execution.engine,  # type: ignore[arg-type]
        first_seed=len(HALVES) * MOST_SEEDS * seed,
    )


def pilot_size(n_runs: float, most: int) -> tuple[int, int]:
    """Left-out examples and seeds of one half that may take `n_runs` runs.

    The examples grow as three times the root: seeds and examples average the noise alike, but only more examples help
    against the chance of which ones are left out. Where it can be, twice the least number of seeds is planned: on a
    machine that is slower than the probe found it, some can be left away.
    """
    n_runs = max(n_runs, 0.0)
    fitting = int(n_runs / (2 * LEAST_SEEDS)) - 1
    n_left_out = min(most, max(LEAST_LEFT_OUT, min(fitting, int(3 * math.sqrt(n_runs)))))
    return n_left_out, min(MOST_SEEDS, int(n_runs // (n_left_out + 1)))
