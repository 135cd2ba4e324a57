"""kill -9 at random moments of further training costs at most the chunk in flight, and no bit of the result."""

import os
import subprocess
import sys

import pytest
import torch

from whence.gold import further_train
from whence.storage import ShardStore
from whence.testing.problems import mlp_regression
from whence.training import Recipe

N_KILLS, N_SEEDS = 20, 120

# Torch is imported once; each sweep is a fork of this process that is killed some shards later, at a random moment.
SCRIPT = """
import os, random, signal, sys, time
import torch
from pathlib import Path
from whence.gold import further_train
from whence.testing.problems import mlp_regression
from whence.training import Recipe

torch.set_num_threads(1)  # a pool of threads does not survive fork
store, n_kills, n_seeds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(0)
small = mlp_regression()
recipe = Recipe(lr=0.05, batch_size=4, epochs=3, momentum=0.9)
options = {"left_out": 6, "points": [1, 3], "engine": "stacked"}
further_train(small.task, small.train, small.queries, recipe, seeds=1, **options)  # what is imported late is now there

def done():
    return len(list(store.glob("seed-*.safetensors")))

for kill in range(n_kills):
    sweep = os.fork()
    if sweep == 0:
        further_train(small.task, small.train, small.queries, recipe, seeds=n_seeds, store_dir=store, **options)
        os._exit(0)  # it was faster than its killer
    before, deadline = done(), time.monotonic() + 20
    while done() < before + kill % 4 and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(sweep, signal.SIGKILL)
    _, status = os.waitpid(sweep, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else "ended", done(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")
def test_kill_9_at_random_moments_then_the_same_call_gives_the_same_bits(tmp_path):
    store = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(store), str(N_KILLS), str(N_SEEDS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    kills = [line.split() for line in result.stdout.splitlines()]
    partway = [int(done) for how, done in kills if how == "9" and 0 < int(done) < N_SEEDS]
    assert len(partway) >= N_KILLS // 2, result.stdout  # otherwise this test tests nothing
    assert len(set(partway)) >= 5
    assert not ShardStore.existing(store).complete

    small = mlp_regression()
    recipe = Recipe(lr=0.05, batch_size=4, epochs=3, momentum=0.9)
    options = {"left_out": 6, "seeds": N_SEEDS, "points": [1, 3]}
    resumed = further_train(small.task, small.train, small.queries, recipe, store_dir=store, **options)
    whole = further_train(
        small.task, small.train, small.queries, recipe, store_dir=tmp_path / "whole", engine="stacked", **options
    )
    for name in ("measures", "full", "distances"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    assert ShardStore.existing(store).complete
    assert list(store.glob("*.partial")) == []
    files = [path.name for path in (tmp_path / "whole").iterdir() if not path.name.startswith(".")]
    assert len(files) == N_SEEDS + 3  # header, plan, manifest
    for name in files:
        assert (store / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
