"""Which engine runs a sweep of training runs, measured rather than believed, and how it is driven."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from whence.checks import look_up
from whence.errors import UnsupportedError
from whence.progress import stage
from whence.training.job import JobResult
from whence.training.processes import INLINE, Problem, WorkerPool, can_pack, finished

EngineName = Literal["auto", "stacked", "loop", "processes"]
ENGINES = ("auto", "stacked", "loop", "processes")

CHUNKS = (16, 50, 100)  # sizes of a stack that are timed: too few waste calls, too many leave the cache
PROBE_SECONDS = 0.4  # shortest timing that counts
WORTH_PROCESSES = 20.0  # seconds of work below which starting workers (seconds each) is not tried
PROBE_QUERIES = 16


@dataclass(frozen=True)
class Execution:
    """How a sweep is run. Fixed at its first start, so that a resumed sweep is bit-identical.

    Attributes:
        engine: "stacked", "loop" or "processes".
        inner: What each process runs; the engine itself otherwise.
        chunk: Largest number of runs in one job.
        workers: Number of processes; 1 for the engines that run in this one.
        threads: torch threads of each.
    """

    engine: str
    inner: str
    chunk: int
    workers: int
    threads: int

    def to_dict(self) -> dict[str, str | int]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Chunk:
    """Runs of one seed that one job trains."""

    name: str
    seed: int
    left_out: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Timing:
    """Seconds per run and step of one engine."""

    execution: Execution
    seconds: float


def probe(
    problem: Problem, left_out: Sequence[tuple[int, ...]], total_steps: int, *, seconds: float = PROBE_SECONDS
) -> list[Timing]:
    """Time the engines on the first steps of the real sweep; fastest first.

    Args:
        problem: What is trained.
        left_out: What the runs of one seed lack.
        total_steps: Runs times steps of the whole sweep, to see whether worker processes are worth starting.
        seconds: Shortest timing that counts.
    Cost:
        About `seconds` for each of up to six candidates, and a few seconds to start workers for long sweeps.
    """
    threads = torch.get_num_threads()
    queries = problem.queries.subset(range(min(PROBE_QUERIES, len(problem.queries))))
    few = Problem(problem.task, problem.train, queries, problem.recipe)
    sizes = sorted({min(size, len(left_out)) for size in CHUNKS})
    candidates = [Execution("stacked", "stacked", size, 1, 1) for size in sizes]
    candidates.append(Execution("loop", "loop", min(CHUNKS[0], len(left_out)), 1, 1))
    timings = [t for c in candidates if (t := _timed(few, c, left_out, seconds)) is not None]
    if threads > 1:
        # Small models are slower on two threads than on one: only the best of each engine is tried on all of them.
        best = {t.execution.engine: t.execution for t in sorted(timings, key=lambda t: -t.seconds)}
        wide = [_timed(few, replace(e, threads=threads), left_out, seconds) for e in best.values()]
        timings += [t for t in wide if t is not None]
    timings.sort(key=lambda t: t.seconds)
    if threads > 1 and timings[0].seconds * total_steps > WORTH_PROCESSES and can_pack(problem) is None:
        timings.append(_timed_processes(few, left_out, threads, timings, seconds))
    return sorted(timings, key=lambda t: t.seconds)


def _timed(few: Problem, execution: Execution, left_out: Sequence[tuple[int, ...]], seconds: float) -> Timing | None:
    """Median-free lower envelope of a few timings; None where the engine cannot run this model."""
    runs = tuple(left_out[: execution.chunk if execution.engine == "stacked" else 1])
    run = INLINE[execution.engine]
    try:
        with limited_threads(execution.threads):
            run(few.job(0, runs, (1,)))  # warm-up: allocations, kernels, thread pools
    except (UnsupportedError, RuntimeError, NotImplementedError):
        if execution.engine == "loop":
            raise
        return None
    longest = _longest(few)
    steps, best, timed = min(2, longest), math.inf, 0.0
    while True:
        with limited_threads(execution.threads):
            start = time.perf_counter()
            run(few.job(0, runs, (steps,)))
            elapsed = time.perf_counter() - start
        best = min(best, elapsed / steps / len(runs))
        timed = timed + elapsed if steps == longest else elapsed
        if timed >= seconds:
            return Timing(execution, best)
        steps = min(steps * 8, max(steps + 1, math.ceil(1.3 * seconds * steps / elapsed)), longest)


def _longest(problem: Problem) -> int:
    """Steps of the whole recipe: beyond them a run may diverge, and a decaying learning rate would fall below 0."""
    return problem.recipe.steps_at(problem.recipe.amount, len(problem.train))


def _timed_processes(
    few: Problem, left_out: Sequence[tuple[int, ...]], workers: int, inline: list[Timing], seconds: float
) -> Timing:
    """All workers at once, each on a job as long as the probe, with the inner engine that is faster on one thread."""
    per_worker = max(1, math.ceil(len(left_out) / workers))
    best: Timing | None = None
    with WorkerPool(few, workers) as pool:
        for inner in INLINE:
            fitting = [t for t in inline if t.execution.engine == inner]
            if not fitting:
                continue
            chunk = min(fitting[0].execution.chunk, per_worker)
            runs = tuple(left_out[:chunk]) if inner == "stacked" else tuple(left_out[:1])
            steps = min(max(2, math.ceil(seconds / (fitting[0].seconds * len(runs)))), _longest(few))
            for future in [pool.submit(inner, 0, runs, (1,)) for _ in range(workers)]:
                finished(future)
            start = time.perf_counter()
            for future in [pool.submit(inner, 0, runs, (steps,)) for _ in range(workers)]:
                finished(future)
            rate = (time.perf_counter() - start) / steps / len(runs) / workers
            found = Timing(Execution("processes", inner, chunk, workers, 1), rate)
            best = found if best is None or rate < best.seconds else best
    assert best is not None
    return best


def choose(
    problem: Problem, left_out: Sequence[tuple[int, ...]], total_steps: int, engine: EngineName = "auto"
) -> Execution:
    """The execution for a sweep: as asked, or the fastest of those timed.

    Raises:
        UnknownNameError: The engine is in no table.
        UnsupportedError: Worker processes were asked for and cannot run this task.
    """
    look_up(dict.fromkeys(ENGINES), engine, "engine")
    threads = torch.get_num_threads()
    if engine == "auto":
        with stage("probing engines"):
            return probe(problem, left_out, total_steps)[0].execution
    if engine == "processes":
        reason = can_pack(problem)
        if reason is not None:
            raise UnsupportedError(reason)
        chunk = min(CHUNKS[1], max(1, math.ceil(len(left_out) / threads)))
        return Execution("processes", _faster_inline(problem, left_out), chunk, threads, 1)
    chunk = min(CHUNKS[1] if engine == "stacked" else CHUNKS[0], len(left_out))
    return Execution(engine, engine, chunk, 1, threads)


def _faster_inline(problem: Problem, left_out: Sequence[tuple[int, ...]]) -> str:
    with limited_threads(1):
        return probe(problem, left_out, 0)[0].execution.inner


def run_chunks(
    problem: Problem, execution: Execution, chunks: Sequence[Chunk], record_steps: tuple[int, ...], keep: bool = False
) -> Iterator[tuple[Chunk, JobResult]]:
    """Results of all chunks, each as soon as it is there; in order for the engines that run in this process."""
    if execution.engine != "processes":
        run = INLINE[execution.inner]
        for chunk in chunks:
            with limited_threads(execution.threads):
                result = run(problem.job(chunk.seed, chunk.left_out, record_steps, keep))
            yield chunk, result
        return
    with WorkerPool(problem, execution.workers) as pool:
        waiting: dict[Future[bytes], Chunk] = {}
        queue: Iterable[Chunk] = iter(chunks)
        for chunk in itertools.islice(queue, 2 * execution.workers):
            waiting[pool.submit(execution.inner, chunk.seed, chunk.left_out, record_steps, keep)] = chunk
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                ready = waiting.pop(future)
                for chunk in itertools.islice(queue, 1):
                    waiting[pool.submit(execution.inner, chunk.seed, chunk.left_out, record_steps, keep)] = chunk
                yield ready, finished(future)


@contextlib.contextmanager
def limited_threads(n: int) -> Iterator[None]:
    """torch threads set to `n`, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
