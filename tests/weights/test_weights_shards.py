"""Contributions from gradients on disk beside those of gradients in memory."""

import pytest
import torch
from torch import nn

from whence import Examples, Task
from whence.errors import DamagedShardError, InputError, NumericalError, StoreError, StoreMismatchError
from whence.task import ParameterGroups
from whence.weights import GradientShards, contributions, gradient_shards, learn_weights
from whence.weights import shards as room


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(room, "ROWS", 16)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    train = Examples((x[:41], y[:41]), ids=[f"t{k}" for k in range(41)])
    return Task.classification(model), train, Examples((x[41:], y[41:]))


def test_whole_gradients_on_disk_give_the_same_contributions(problem, tmp_path):
    task, train, queries = problem
    shards = gradient_shards(task, train, tmp_path / "g", dim=100, dtype="float32")
    assert shards.dims == [40, 8, 24, 3]
    found = shards.contributions(task, queries).collect()
    whole = contributions(task, train, queries)
    # Powers of two scale without rounding; sums are taken in another order.
    torch.testing.assert_close(found.values.double(), whole.values, rtol=1e-4, atol=1e-7)
    assert (found.groups, found.train_ids, found.query_ids) == (whole.groups, whole.train_ids, whole.query_ids)


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_is_as_close_as_its_digits(problem, tmp_path, dtype, digits):
    task, train, queries = problem
    found = gradient_shards(task, train, tmp_path / "g", dim=100, dtype=dtype).contributions(task, queries).collect()
    whole = contributions(task, train, queries)
    gradients = torch.cat([rows for _, rows in room.loss_gradients(task, train)])
    for j, (rows, own) in enumerate(zip(gradients.split([40, 8, 24, 3], 1), whole.values.unbind(2), strict=True)):
        queries_of = room.measure_gradients(task, queries).split([40, 8, 24, 3], 1)[j]
        # Each number is off by at most half a unit of its last digit; below float16's range by 2^-25 of the scale.
        bound = digits * (queries_of.abs() @ rows.abs().T) + 1e-6 * own.abs().max()
        assert bool(((found.values[:, :, j] - own).abs() <= bound).all())


def test_projected_groups_keep_inner_products_on_average(problem, tmp_path):
    task, train, queries = problem
    whole = contributions(task, train, queries).values
    seeds = range(40)
    found = torch.stack(
        [
            gradient_shards(task, train, tmp_path / str(s), dim=8, seed=s, dtype="float32")
            .contributions(task, queries)
            .collect()
            .values
            for s in seeds
        ]
    )
    # Groups of no more than 8 entries are not projected at all.
    torch.testing.assert_close(found[0, :, :, 1].double(), whole[:, :, 1], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found[0, :, :, 3].double(), whole[:, :, 3], rtol=1e-4, atol=1e-7)
    for j in (0, 2):
        spread = found[:, :, :, j].std(0) / len(seeds) ** 0.5
        off = (found[:, :, :, j].mean(0) - whole[:, :, j]).abs()
        assert float((off > 3 * spread).double().mean()) < 0.05
        assert float(found[:, :, :, j].std(0).max()) > 0


def test_an_interrupted_store_goes_on(problem, tmp_path, monkeypatch):
    task, train, _ = problem
    codes, calls = room._codes, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return codes(*args)

    monkeypatch.setattr(room, "_codes", failing)
    with pytest.raises(KeyboardInterrupt):
        gradient_shards(task, train, tmp_path / "g")
    monkeypatch.setattr(room, "_codes", lambda *args: calls.append(1) or codes(*args))
    calls.clear()
    continued = gradient_shards(task, train, tmp_path / "g")
    assert len(calls) == 1 + 2  # scales, and the two shards that were missing
    fresh = gradient_shards(task, train, tmp_path / "h")
    for (_, one), (_, other) in zip(continued.blocks(), fresh.blocks(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(StoreMismatchError, match="made_by"):
        gradient_shards(task, train, tmp_path / "g", seed=1)


def test_stores_are_opened_and_checked(problem, tmp_path):
    task, train, queries = problem
    gradient_shards(task, train, tmp_path / "g", groups="module")
    opened = GradientShards.open(tmp_path / "g")
    assert opened.groups.names == ("0", "2")
    weights = learn_weights(opened.contributions(task, queries), "nnls", k=3)
    assert weights.facts["passes"] >= 2
    other = Task.classification(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).eval())
    with pytest.raises(StoreMismatchError, match="gradients of the model"):
        opened.contributions(other, queries)
    with pytest.raises(StoreError):
        GradientShards.open(tmp_path / "nothing")
    path = tmp_path / "g" / "rows-000000016.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedShardError):
        GradientShards.open(tmp_path / "g").contributions(task, queries).collect()


def test_numbers_too_large_for_half_precision_are_named(tmp_path):
    groups = ParameterGroups(("a",), (0,), (2,), ("a",))
    shards = GradientShards.create(tmp_path / "g", groups=groups, dims=[2], train_ids=["x", "y"], made_by={})
    with pytest.raises(NumericalError, match=r"example 'y'.*bfloat16"):
        shards.write(slice(0, 2), torch.tensor([[1.0, 2.0], [1e6, 0.0]]))
    shards.write(slice(0, 2), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    stream = shards.finish().stream(torch.tensor([[1.0, 10.0]]), ["q"], scale=0.5)
    assert stream.collect().values.flatten().tolist() == [10.5, 1.5]
    with pytest.raises(InputError, match=r"\(1, 2\); got \(1, 3\)"):
        shards.stream(torch.zeros(1, 3), ["q"])
    with pytest.raises(InputError, match="one length for each of the 1 groups"):
        GradientShards.create(tmp_path / "h", groups=groups, dims=[1, 1], train_ids=["x"], made_by={})
