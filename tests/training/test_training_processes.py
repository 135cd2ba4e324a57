"""Worker processes: the same bits, from scripts and factories as users write them, and no orphans."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.errors import UnsupportedError, WhenceError
from whence.task import Task
from whence.task.factory import import_factory
from whence.testing.problems import PROBLEMS, lambda_task, mlp, mlp_regression
from whence.training import Chunk, Execution, Problem, Recipe, WorkerPool, run_chunks, training_twin
from whence.training.processes import can_pack, finished

RECIPE = Recipe(lr=0.05, batch_size=4, epochs=2, momentum=0.9)


def problem_of(small, recipe=RECIPE):
    return Problem(training_twin(small.task, recipe.dropout), small.train, small.queries, recipe)


@contextlib.contextmanager
def few_open_files(n):
    """At most `n` files more than are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_results_are_those_of_one_thread_bit_for_bit():
    """And many of them can be kept at once: a result holds no file open."""
    problem = problem_of(PROBLEMS["dropout"]())
    chunks = [Chunk(f"{seed}-{k}", seed, ((), (k,), (k + 1,))) for seed in range(10) for k in range(5)]
    own = {
        chunk.name: r
        for chunk, r in run_chunks(problem, Execution("stacked", "stacked", 3, 1, 1), chunks, (3, 8), True)
    }
    with few_open_files(60):
        execution = Execution("processes", "stacked", 3, 2, 1)
        found = {chunk.name: r for chunk, r in run_chunks(problem, execution, chunks, (3, 8), True)}
    assert found.keys() == own.keys()
    for name, result in found.items():
        assert torch.equal(result.measures, own[name].measures)
        assert torch.equal(result.distances, own[name].distances)
        for key, values in result.parameters.items():
            assert torch.equal(values, own[name].parameters[key])


# A plain script: no guard, a network and a loss of its own behind a factory in a file, then kill -9

OWN = """
import torch
from torch import nn
from whence import Task
from whence.testing import mlp_regression

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.float64)
        nn.init.ones_(self.layer.weight)
    def forward(self, x):
        return self.layer(x)

def build():
    small = mlp_regression()
    task = Task(Net().eval(), outputs=lambda model, batch: model(batch[0]),
                loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1), factory=__file__ + ":build")
    return task, small.train, small.queries
"""

SCRIPT = """
import multiprocessing, sys, threading, time
import torch
import whence
from whence.task.factory import import_factory
from whence.testing import mlp_regression

print("script starts", flush=True)
torch.set_num_threads(2)
recipe = whence.Recipe(lr=0.05, batch_size=4, epochs=3)

def same(task, train, queries):
    options = dict(left_out=4, seeds=2)
    found = whence.further_train(task, train, queries, recipe, engine="processes", **options)
    own = whence.further_train(task, train, queries, recipe, engine=found.execution.inner, **options)
    assert found.execution.engine == "processes", found.execution
    print("close" if torch.allclose(found.measures, own.measures, rtol=1e-10) else "differs", flush=True)

task, train, queries = import_factory(sys.argv[1] + ":build")()
task.model.layer.weight.data += 0.5  # what the factory builds is not yet the final model
task.model.layer.bias.requires_grad_(False)
same(task.with_model(task.model), train, queries)

def tell():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print("workers", *(child.pid for child in multiprocessing.active_children()), flush=True)

threading.Thread(target=tell, daemon=True).start()
small = mlp_regression()
long = whence.Recipe(lr=0.05, batch_size=4, epochs=400)
whence.further_train(small.task, small.train, small.queries, long, left_out=14, seeds=2000, engine="processes",
                     store_dir=sys.argv[2])
"""


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=120):  # the machine may be busy
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_script_without_a_guard_a_factory_in_a_file_and_workers_that_die_with_their_parent(tmp_path):
    own, script, store = tmp_path / "own.py", tmp_path / "script.py", tmp_path / "store"
    own.write_text(OWN)
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(own), str(store)]
    workers = []
    with (
        open(tmp_path / "stderr", "w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            lines = [process.stdout.readline().strip() for _ in range(3)]
            assert lines[:2] == ["script starts", "close"], (tmp_path / "stderr").read_text()
            workers = [int(pid) for pid in lines[2].split()[1:]]
            assert len(workers) == 2
            wait_until(lambda: len(list(store.glob("seed-*.safetensors"))) >= 2)
            assert all(map(alive, workers))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            wait_until(lambda: not any(map(alive, workers)))
        finally:
            for pid in (process.pid, *workers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert "script starts" not in process.stdout.read()  # no worker ran the script again


# What cannot be sent


def test_tasks_of_importable_parts_can_be_sent():
    for name, build in PROBLEMS.items():
        assert can_pack(problem_of(build())) is None, name


def lambda_problem(factory):
    task = lambda_task()
    task.factory = factory
    small = mlp_regression()
    return Problem(task, small.train, small.queries, RECIPE)


def test_a_lambda_needs_a_factory():
    assert "`factory=" in (can_pack(lambda_problem(None)) or "")
    assert can_pack(lambda_problem("whence.testing.problems:lambda_task")) is None
    with pytest.raises(UnsupportedError, match=r'a lambda, a local function.*Pass `factory="package.module:function"`'):
        WorkerPool(lambda_problem(None), 1)


class Stubborn:
    """Cannot be pickled, and says so in its own way."""

    def __call__(self, outputs, batch):
        return outputs.sum(1)

    def __reduce__(self):
        raise ValueError("ctypes objects containing pointers cannot be pickled")


def test_whatever_pickling_raises_means_a_factory_is_needed():
    small = mlp_regression()
    task = Task(mlp(3, 2), outputs=small.task.outputs, loss=Stubborn())
    assert "`factory=" in (can_pack(Problem(task, small.train, small.queries, RECIPE)) or "")


def test_classes_of_the_script_and_of_a_factorys_file_need_a_factory(tmp_path, monkeypatch):
    """They pickle by reference to a module that no worker can import."""
    small = mlp_regression()
    net = type("MainNet", (nn.Linear,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "MainNet", net, raising=False)
    from_main = Task.regression(net(3, 2).eval())
    assert "the running script" in (can_pack(Problem(from_main, small.train, small.queries, RECIPE)) or "")

    (tmp_path / "own.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    monkeypatch.setattr("sys.path", [*sys.path])
    from_file = Task.regression(import_factory(f"{tmp_path}/own.py:Net")(3, 2).eval())
    assert "a factory's file" in (can_pack(Problem(from_file, small.train, small.queries, RECIPE)) or "")


def test_a_model_elsewhere_is_refused():
    small = mlp_regression()
    task = Task.regression(mlp(3, 2).to("meta"))
    assert "the model is on meta" in (can_pack(Problem(task, small.train, small.queries, RECIPE)) or "")


def test_a_worker_that_cannot_build_its_task_says_what_to_do(capfd):
    with WorkerPool(lambda_problem("whence.testing.problems:no_such_task"), 1) as pool:
        future = pool.submit("loop", 0, ((),), (1,))
        with pytest.raises(WhenceError, match=r'could not build the task.*engine="stacked"'):
            finished(future)
    assert "has no `no_such_task`." in capfd.readouterr().err


def test_what_is_shared_is_a_copy():
    """Workers must not see later changes, nor change the user's tensors."""
    from whence.training.processes import _shared

    x = torch.arange(6.0).reshape(2, 3)[:, 1]
    shared = _shared(x)
    assert shared.is_shared()
    assert not x.is_shared()
    assert_close(shared, x, rtol=0, atol=0)
    assert shared.untyped_storage().nbytes() == 8  # not the whole storage that the view belongs to
