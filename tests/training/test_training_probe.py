"""The choice of an engine: timed, honoured where asked for, and never a way to diverge."""

import pytest
import torch

from whence.errors import UnknownNameError, UnsupportedError
from whence.testing.problems import PROBLEMS, lambda_task, mlp_regression
from whence.training import Execution, Problem, Recipe, Timing, choose, limited_threads, probe, training_twin
from whence.training.engines import CHUNKS

RECIPE = Recipe(lr=0.05, batch_size=4, epochs=2)
SETS = tuple((k,) for k in range(14))


def problem_of(small, recipe=RECIPE):
    return Problem(training_twin(small.task, recipe.dropout), small.train, small.queries, recipe)


def test_a_probe_times_every_engine_of_this_process_and_sorts_them():
    found = probe(problem_of(mlp_regression()), SETS, 0, seconds=0.01)
    assert {t.execution.engine for t in found} == {"stacked", "loop"}
    assert [t.seconds for t in found] == sorted(t.seconds for t in found)
    assert all(t.seconds > 0 for t in found)
    for t in found:
        threads = torch.get_num_threads()
        assert t.execution == Execution(t.execution.engine, t.execution.engine, len(SETS), 1, threads)


def test_stacks_of_every_size_that_fits_are_timed():
    n = CHUNKS[0] + 4
    found = probe(problem_of(mlp_regression(n)), [(k,) for k in range(n)], 0, seconds=0.001)
    assert sorted(t.execution.chunk for t in found if t.execution.engine == "stacked") == [CHUNKS[0], n]


def test_worker_processes_are_timed_where_they_may_be_worth_their_start():
    """Hours of work and two threads: all three engines."""
    with limited_threads(2):
        found = probe(problem_of(mlp_regression()), SETS, 10**12, seconds=0.01)
    assert {t.execution.engine for t in found} == {"stacked", "loop", "processes"}
    assert [t.seconds for t in found] == sorted(t.seconds for t in found)
    (processes,) = (t.execution for t in found if t.execution.engine == "processes")
    assert (processes.workers, processes.threads) == (2, 1)
    assert processes.inner in ("stacked", "loop")
    assert min(t.seconds for t in found) > 0
    inline = {(t.execution.engine, t.execution.threads) for t in found if t.execution.workers == 1}
    assert inline == {("stacked", 1), ("stacked", 2), ("loop", 1), ("loop", 2)}
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads, total", [(2, 0), (1, 10**12)])
def test_worker_processes_are_not_started_for_little_work_or_one_thread(threads, total):
    with limited_threads(threads):
        found = probe(problem_of(mlp_regression()), SETS, total, seconds=0.001)
    assert {t.execution.engine for t in found} == {"stacked", "loop"}


@pytest.mark.parametrize(
    "options", [{"lr": 2.0, "steps": 3}, {"lr": 0.05, "steps": 3, "schedule": "linear"}, {"lr": 2.0, "epochs": 1}]
)
def test_a_probe_never_trains_beyond_the_recipe(options):
    """Longer runs would diverge: lr * s is above 2, or the rate falls below 0 after its end."""
    small = PROBLEMS["linear"]()
    assert 2.0 * float(torch.linalg.eigvalsh(small.gauss_newton()).max()) > 2
    found = probe(problem_of(small, Recipe(batch_size=12, **options)), SETS[:12], 0, seconds=0.05)
    assert {t.execution.engine for t in found} == {"stacked", "loop"}


def test_a_model_that_cannot_be_stacked_is_looped():
    problem = problem_of(PROBLEMS["branching"]())
    assert {t.execution.engine for t in probe(problem, SETS, 0, seconds=0.01)} == {"loop"}
    assert choose(problem, SETS, 0).engine == "loop"


@pytest.mark.parametrize("engine", ["stacked", "loop"])
def test_an_engine_that_was_asked_for_is_taken(engine):
    found = choose(problem_of(mlp_regression()), SETS, 0, engine)
    assert found == Execution(engine, engine, len(SETS), 1, torch.get_num_threads())


def test_processes_that_were_asked_for_have_one_thread_each():
    with limited_threads(2):
        found = choose(problem_of(mlp_regression()), SETS, 0, "processes")
        assert torch.get_num_threads() == 2
    assert (found.engine, found.workers, found.threads, found.chunk) == ("processes", 2, 1, 7)


def test_auto_takes_the_fastest(monkeypatch):
    problem = problem_of(mlp_regression())
    slow, fast = Execution("stacked", "stacked", 14, 1, 1), Execution("loop", "loop", 14, 1, 1)
    times = {"stacked": 2.0, "loop": 1.0}
    monkeypatch.setattr("whence.training.engines._timed", lambda few, e, sets, seconds: Timing(e, times[e.engine]))
    assert choose(problem, SETS, 0) == fast
    times["loop"] = 3.0
    assert choose(problem, SETS, 0) == slow


def test_an_unknown_engine_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown engine 'stakced'\. Did you mean 'stacked'"):
        choose(problem_of(mlp_regression()), SETS, 0, "stakced")


def test_processes_are_refused_where_they_cannot_run():
    small, task = mlp_regression(), lambda_task()
    task.factory = None
    problem = Problem(task, small.train, small.queries, RECIPE)
    with pytest.raises(UnsupportedError, match="`factory="):
        choose(problem, SETS, 0, "processes")
