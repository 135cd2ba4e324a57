"""kill -9 at any moment costs at most the shard in flight."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from whence.storage.shards import ShardStore

N_SHARDS, N_KILLS = 60, 12
NAMES = [f"shard_{k:03d}" for k in range(N_SHARDS)]

# Torch is imported once; each writer is a fork of this process that is killed after a few more shards, and the next
# one must find everything that was complete and continue.
SCRIPT = """
import os, random, signal, sys, time
import torch
from whence.storage.shards import ShardStore

torch.set_num_threads(1)  # a pool of threads does not survive fork
folder, n_kills = sys.argv[1], int(sys.argv[2])
names = sys.argv[3:]
chance = random.Random(0)

def shards():
    return ShardStore(folder, {"a": 1}, names, description="numbers to lose")

def write_all():
    store = shards().open_or_create()
    for name in store.missing():
        k = int(name[-3:])
        store.write(name, {"x": torch.arange(50_000) * k, "k": torch.tensor(k)}, {"k": k})
    store.finish()

for kill in range(n_kills):
    writer = os.fork()
    if writer == 0:
        write_all()
        os._exit(1)  # it was faster than its killer
    before = sum(shards().has(name) for name in names)
    deadline = time.monotonic() + 20
    while sum(shards().has(name) for name in names) < before + kill % 4 and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.004))
    os.kill(writer, signal.SIGKILL)
    _, status = os.waitpid(writer, 0)
    store = shards().open_or_create()  # the lock of the dead is free
    present = [name for name in names if store.has(name)]
    assert sorted(present + store.missing()) == sorted(names)
    for name in present:
        k = int(name[-3:])
        assert torch.equal(store.read(name)["x"], torch.arange(50_000) * k), name
    print("killed" if os.WIFSIGNALED(status) else "ended", len(present), flush=True)
    store.close()
write_all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")
def test_kill_at_random_moments_then_resume(tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(N_KILLS), *NAMES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    partway = [line for line in result.stdout.splitlines() if line.startswith("killed")]
    assert len(partway) >= N_KILLS // 2, result.stdout  # otherwise this test tests nothing

    store = ShardStore.existing(folder)
    assert store.complete
    assert list(folder.glob("*.partial")) == []
    whole = ShardStore(tmp_path / "whole", {"a": 1}, NAMES, description="numbers to lose").open_or_create()
    for k, name in enumerate(NAMES):
        assert_close(store.read(name)["x"], torch.arange(50_000) * k, rtol=0, atol=0)
        whole.write(name, {"x": torch.arange(50_000) * k, "k": torch.tensor(k)}, {"k": k})
        assert whole.path(name).read_bytes() == store.path(name).read_bytes()
    whole.finish()
    for file in ("plan.json", "manifest.json"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
