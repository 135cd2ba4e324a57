"""Engine: chunks of runs shared out to worker processes of one thread each.

Workers are spawned, never forked (a forked torch can hang in its thread pool). They get the train data through shared
memory, and the task by pickle, or by its factory where it cannot be pickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import Any

import torch
from torch import Tensor, multiprocessing

from whence.batches import map_tensors
from whence.data import Examples
from whence.errors import UnsupportedError, WhenceError
from whence.task import Task
from whence.task.factory import FILE_MODULE, import_factory
from whence.training.job import Job, JobResult, RunJob
from whence.training.loop import run_loop
from whence.training.recipe import Recipe
from whence.training.stacked import run_stacked

INLINE: dict[str, RunJob] = {"stacked": run_stacked, "loop": run_loop}


@dataclass(frozen=True, eq=False)
class Problem:
    """What all jobs of one sweep share: the training twin, the data and the recipe."""

    task: Task
    train: Examples
    queries: Examples
    recipe: Recipe

    def job(
        self, seed: int, left_out: tuple[tuple[int, ...], ...], record_steps: tuple[int, ...], keep: bool = False
    ) -> Job:
        """One chunk of runs."""
        return Job(self.task, self.train, self.queries, self.recipe, seed, left_out, record_steps, keep)


class WorkerPool:
    """Processes that hold a `Problem` and run jobs of it.

    Raises:
        UnsupportedError: The task can neither be pickled nor built by a factory, or lies on another device than the
            CPU.
    """

    def __init__(self, problem: Problem, n_workers: int) -> None:
        self.n_workers = n_workers
        self._payload = _pack(problem)
        self._pool = ProcessPoolExecutor(
            n_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(self._payload,)
        )

    def submit(
        self,
        inner: str,
        seed: int,
        left_out: tuple[tuple[int, ...], ...],
        record_steps: tuple[int, ...],
        keep: bool = False,
    ) -> Future[bytes]:
        """Run one job in a worker with the engine `inner`; `finished` waits for its result."""
        with _hidden_main(), _named_end():
            return self._pool.submit(_run, inner, seed, left_out, record_steps, keep)

    def close(self) -> None:
        """End the workers; what has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def finished(future: Future[bytes]) -> JobResult:
    """The result of a submitted job, as soon as it is there."""
    with _named_end():
        result: JobResult = pickle.loads(future.result())
    return result


@contextlib.contextmanager
def _named_end() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise WhenceError(
            "A worker process ended before its work was done: it was killed, ran out of memory, or could not build the "
            'task (then its own error stands above). Use engine="stacked" or engine="loop"; what `store_dir` holds is '
            "kept."
        ) from error


def can_pack(problem: Problem) -> str | None:
    """Why worker processes cannot run this problem; None where they can."""
    try:
        _pack(problem)
    except UnsupportedError as error:
        return str(error)
    return None


def _pack(problem: Problem) -> dict[str, Any]:
    """Everything a worker needs; tensors travel through shared memory."""
    if problem.task.device.type != "cpu":
        raise UnsupportedError(f"Worker processes train on the CPU; the model is on {problem.task.device}.")
    shared: dict[str, Any] = {"recipe": problem.recipe}
    for name in ("train", "queries"):
        examples: Examples = getattr(problem, name)
        shared[name] = (map_tensors(_shared, examples.all()), examples.ids)
    if _pickles(problem.task):
        return {**shared, "task": problem.task}
    if problem.task.factory is None:
        raise UnsupportedError(
            "The task cannot be sent to worker processes: it holds a lambda, a local function, or a class defined in "
            'the running script or in a factory\'s file. Pass `factory="package.module:function"` to the task, or use '
            'engine="stacked".'
        )
    return {
        **shared,
        "factory": problem.task.factory,
        "state": {name: _shared(x) for name, x in problem.task.model.state_dict().items()},
        "tracked": problem.task.layout.names,
        "dropout": problem.recipe.dropout,
    }


def _shared(x: Tensor) -> Tensor:
    # A view would drag its whole storage along; the copy is shared once and dropped with the pool.
    shared: Tensor = x.detach().clone(memory_format=torch.contiguous_format).share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _pickles(task: Task) -> bool:
    try:
        data = pickle.dumps(task)
    except Exception:  # whatever the user's own objects raise
        return False
    # What the running script or a factory's file defines is pickled by reference to a module no worker can import.
    return b"__main__" not in data and FILE_MODULE.encode() not in data


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep spawned workers from running the user's script again.

    `multiprocessing` re-imports the main module in every worker, so that a plain script without an
    `if __name__ == "__main__"` guard would start itself over. Nothing here needs that module.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {key: vars(main).pop(key) for key in ("__file__", "__spec__") if key in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


# --- in the worker ----------------------------------------------------------------------------------------------------

_PROBLEM: list[Problem] = []


def _start(payload: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    task = payload["task"] if "task" in payload else _rebuild(payload)
    train, queries = (Examples(batch, ids=ids) for batch, ids in (payload["train"], payload["queries"]))
    _PROBLEM[:] = [Problem(task, train, queries, payload["recipe"])]


def _rebuild(payload: dict[str, Any]) -> Task:
    from whence.training.dropout import training_twin

    built = import_factory(payload["factory"])()
    task: Task = built[0] if isinstance(built, tuple) else getattr(built, "task", built)  # or a `Setup`
    twin = training_twin(task, payload["dropout"])
    twin.model.load_state_dict(payload["state"])
    for name, p in twin.model.named_parameters():
        p.requires_grad_(name in payload["tracked"])
    return twin.with_model(twin.model)


def _die_with_parent() -> None:
    """A worker of a killed parent would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run(
    inner: str, seed: int, left_out: tuple[tuple[int, ...], ...], record_steps: tuple[int, ...], keep: bool
) -> bytes:
    # Tensors would travel as shared memory, which holds a file open for each of them as long as it lives.
    return pickle.dumps(INLINE[inner](_PROBLEM[0].job(seed, left_out, record_steps, keep)))
