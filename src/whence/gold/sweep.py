"""Many training runs that differ in what they lack and in their seed, stored run by run and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.errors import StoreError
from whence.progress import stage
from whence.storage import ShardStore
from whence.training import Chunk, EngineName, Execution, JobResult, Problem, batches_per_epoch, choose, run_chunks

Lacks = tuple[int, ...]  # train positions a run lacks
HEADER = "header"


@dataclass(frozen=True, eq=False)
class Sweep:
    """What is to be run.

    Attributes:
        problem_of: Seed -> problem; the same object for seeds that start from the same parameters.
        seeds: Seeds of order and dropout.
        sets: What each run of a seed lacks.
        record_steps: Where measures are taken.
        settings: JSON facts that decide the numbers, for the store.
        header: Names that readers of the store need.
        description: What the store holds.
    """

    problem_of: Callable[[int], Problem]
    seeds: tuple[int, ...]
    sets: tuple[Lacks, ...]
    record_steps: tuple[int, ...]
    settings: Mapping[str, Any]
    header: Mapping[str, Any]
    description: str


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What every run gave.

    Attributes:
        measures: float64 (n_seeds, n_points, n_sets, n_query).
        distances: float64 (n_seeds, n_points, n_sets): distance of the parameters from the start.
        execution: How it was run.
    """

    measures: Tensor
    distances: Tensor
    execution: Execution


def run_sweep(
    sweep: Sweep, *, engine: EngineName = "auto", store_dir: str | Path | None = None, rebuild: bool = False
) -> SweepResult:
    """Run what is not stored yet, and gather everything.

    Engine, chunk bounds and thread count are fixed in the store at its first start, so that a sweep that was
    interrupted and continued is bit-identical to one that was not.

    Raises:
        StoreMismatchError: The folder holds a sweep of other settings.
        DamagedShardError: A stored chunk is damaged; `rebuild` computes it again.
    """
    if store_dir is None:
        execution = _choose(sweep, engine)
        chunks = plan_chunks(sweep, execution)
        return _gather(sweep, execution, dict(_computed(sweep, execution, chunks)))
    execution = stored_execution(store_dir, engine) or _choose(sweep, engine)
    chunks = plan_chunks(sweep, execution)
    settings = {**sweep.settings, "execution": execution.to_dict()}
    names = [HEADER, *(chunk.name for chunk in chunks)]
    store = ShardStore(store_dir, settings, names, description=sweep.description)
    with store.open_or_create(rebuild=rebuild):
        missing = set(store.missing())
        if HEADER in missing:
            store.write(HEADER, {"none": torch.zeros(1)}, sweep.header)
        todo = [chunk for chunk in chunks if chunk.name in missing]
        for name, result in _computed(sweep, execution, todo):
            store.write(name, {"measures": result.measures, "distances": result.distances})
        if not store.complete:
            store.finish()
    loaded = {chunk.name: store.read(chunk.name) for chunk in chunks}
    return _gather(sweep, execution, {n: JobResult(t["measures"], t["distances"]) for n, t in loaded.items()})


def stored_execution(store_dir: str | Path, engine: EngineName) -> Execution | None:
    """How a store was begun, where there is one and it was begun with the engine asked for ("auto" takes any)."""
    if not (Path(store_dir) / "plan.json").is_file():
        return None
    found = ShardStore.existing(store_dir).settings.get("execution")
    if not isinstance(found, dict):
        raise StoreError(f"{store_dir} holds something else than training runs. Name another folder.")
    execution = Execution(**found)
    return execution if engine in ("auto", execution.engine) else None


def plan_chunks(sweep: Sweep, execution: Execution) -> list[Chunk]:
    """The jobs of a sweep: per seed, runs with equally many batches in an epoch, at most `execution.chunk` of them."""
    problem = sweep.problem_of(sweep.seeds[0])
    groups: dict[int, list[int]] = {}
    for k, lacks in enumerate(sweep.sets):
        groups.setdefault(batches_per_epoch(len(problem.train), len(lacks), problem.recipe), []).append(k)
    chunks = []
    for seed in sweep.seeds:
        for members in groups.values():
            for start in range(0, len(members), execution.chunk):
                part = members[start : start + execution.chunk]
                name = f"seed-{seed:06d}-sets-{part[0]:06d}-{part[-1]:06d}-of-{len(part)}"
                chunks.append(Chunk(name, seed, tuple(sweep.sets[k] for k in part)))
    return chunks


def _choose(sweep: Sweep, engine: EngineName) -> Execution:
    problem = sweep.problem_of(sweep.seeds[0])
    counts = [batches_per_epoch(len(problem.train), len(s), problem.recipe) for s in sweep.sets]
    common = max(set(counts), key=counts.count)
    alike = [s for s, count in zip(sweep.sets, counts, strict=True) if count == common]
    total = len(sweep.seeds) * len(sweep.sets) * sweep.record_steps[-1]
    return choose(problem, alike, total, engine)


def _computed(sweep: Sweep, execution: Execution, chunks: Sequence[Chunk]) -> Iterator[tuple[str, JobResult]]:
    runs = sum(len(chunk.left_out) for chunk in chunks)
    with stage(sweep.description, total=runs, unit="run") as done:
        for problem, own in _by_problem(sweep, chunks):
            for chunk, result in run_chunks(problem, execution, own, sweep.record_steps):
                yield chunk.name, result
                done.advance(len(chunk.left_out))


def _by_problem(sweep: Sweep, chunks: Sequence[Chunk]) -> Iterator[tuple[Problem, list[Chunk]]]:
    """Chunks of seeds with one start together, so that worker processes are started once."""
    order: list[tuple[Problem, list[Chunk]]] = []
    for chunk in chunks:
        problem = sweep.problem_of(chunk.seed)
        if not order or order[-1][0] is not problem:
            order.append((problem, []))
        order[-1][1].append(chunk)
    yield from order


def _gather(sweep: Sweep, execution: Execution, results: Mapping[str, JobResult]) -> SweepResult:
    place = {lacks: k for k, lacks in enumerate(sweep.sets)}
    first = next(iter(results.values()))
    n_points, _, n_query = first.measures.shape
    shape = (len(sweep.seeds), n_points, len(sweep.sets))
    measures = torch.full((*shape, n_query), torch.nan, dtype=torch.float64)
    distances = torch.full(shape, torch.nan, dtype=torch.float64)
    for chunk in plan_chunks(sweep, execution):
        s = sweep.seeds.index(chunk.seed)
        columns = torch.tensor([place[lacks] for lacks in chunk.left_out])
        measures[s, :, columns] = results[chunk.name].measures
        distances[s, :, columns] = results[chunk.name].distances
    return SweepResult(measures, distances, execution)
