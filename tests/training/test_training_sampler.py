"""Which examples each step sees, against torch's own sampler and a plain leave-one-out sampler."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.data import RandomSampler

from whence.errors import InputError
from whence.testing.problems import mlp_regression
from whence.training import Job, Recipe, batches_per_epoch, epoch_orders, step_batches, training_twin


def plain_batches(n_train, lacks, batch_size, seed, n_epochs):
    """(epoch, place in it, indices) of a sampler that deletes what is left out and then cuts batches."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    for epoch in range(n_epochs):
        order = torch.randperm(n_train, generator=generator).tolist()
        torch.randperm(n_train, generator=generator)
        kept = [i for i in order if i not in lacks]
        for place in range(-(-len(kept) // batch_size)):
            yield epoch, place, kept[place * batch_size : (place + 1) * batch_size]


@given(n=st.integers(1, 40), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_orders_are_torchs_random_sampler_with_its_own_generator(n, seed):
    """Three epochs of one sampler; it draws a second permutation in each."""
    sampler = RandomSampler(range(n), generator=torch.Generator().manual_seed(seed))
    expected = [list(sampler) for _ in range(3)]
    assert [order.tolist() for order in itertools.islice(epoch_orders(n, seed), 3)] == expected


@st.composite
def sweeps(draw):
    n = draw(st.integers(3, 25))
    batch_size = draw(st.integers(1, n + 2))
    sets = draw(st.lists(st.lists(st.integers(0, n - 1), unique=True, max_size=n - 1), min_size=1, max_size=6))
    recipe = Recipe(lr=0.1, batch_size=batch_size, epochs=3)
    counts = batches_per_epoch(n, len(sets[0]), recipe)
    alike = [s for s in sets if batches_per_epoch(n, len(s), recipe) == counts]
    return n, alike, recipe, draw(st.integers(0, 1000))


@given(sweeps())
@settings(max_examples=100, deadline=None)
def test_every_run_sees_what_a_leave_one_out_sampler_gives(sweep):
    """Ragged sets of one job: the same steps, the same examples, equal weights, and padding that weighs nothing."""
    n, sets, recipe, seed = sweep
    per_epoch = recipe.steps_per_epoch(n)
    found = list(step_batches(n, sets, recipe, seed, 3 * per_epoch))
    for run, lacks in enumerate(sets):
        expected = list(plain_batches(n, lacks, recipe.batch_size, seed, 3))
        assert [b.step for b in found] == [epoch * per_epoch + place for epoch, place, _ in expected]
        for batch, (_, _, indices) in zip(found, expected, strict=True):
            real = batch.weights[run] > 0
            assert batch.indices[run][real].tolist() == indices
            assert_close(batch.weights[run][real], torch.full((len(indices),), 1 / len(indices), dtype=torch.float64))
            assert bool((batch.weights[run][~real] == 0).all())


@pytest.mark.parametrize("n_steps", [1, 3, 4, 5, 11])
def test_steps_stop_where_asked(n_steps):
    recipe = Recipe(lr=0.1, batch_size=4, epochs=3)
    steps = [b.step for b in step_batches(14, [()], recipe, 0, n_steps)]
    assert steps == list(range(n_steps))


def test_an_epoch_that_loses_a_batch_skips_its_last_step():
    """13 examples, batches of 4: without one of them an epoch has 3 batches, and step 3 belongs to no run."""
    recipe = Recipe(lr=0.1, batch_size=4, epochs=2)
    assert (batches_per_epoch(13, 0, recipe), batches_per_epoch(13, 1, recipe)) == (4, 3)
    assert [b.step for b in step_batches(13, [(5,), (0,)], recipe, 0, 8)] == [0, 1, 2, 4, 5, 6]
    assert [b.step for b in step_batches(13, [()], recipe, 0, 8)] == list(range(8))


def test_the_run_on_all_data_and_down_weighting_keep_every_batch():
    recipe = Recipe(lr=0.1, batch_size=4, epochs=2, sampler="down_weight")
    assert batches_per_epoch(13, 1, recipe) == 4
    assert [b.step for b in step_batches(13, [(5,), ()], recipe, 0, 8)] == list(range(8))


@pytest.mark.parametrize("lacks", [(3,), (3, 9, 1), ()])
def test_down_weighting_takes_a_share_of_the_left_out_losses_from_every_batch(lacks):
    """Loss of a step: mean batch loss - (1/n) sum of the losses left out; ragged runs beside it change nothing."""
    n, recipe = 14, Recipe(lr=0.1, batch_size=4, epochs=2, sampler="down_weight")
    losses = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = step_batches(n, [lacks, (2, 4), (0,)], recipe, 7, 8)
    for batch, (_, _, indices) in zip(found, plain_batches(n, (), 4, 7, 2), strict=True):
        expected = losses[indices].mean() - sum(losses[i] for i in lacks) / n
        assert_close((batch.weights[0] * losses[batch.indices[0]]).sum(), torch.as_tensor(expected))


def test_runs_with_different_numbers_of_batches_are_no_job():
    problem = mlp_regression(13)
    recipe = Recipe(lr=0.1, batch_size=4, epochs=1)
    task = training_twin(problem.task, dropout=True)
    with pytest.raises(InputError, match=r"one number of batches in an epoch; got \[3, 4\]"):
        Job(task, problem.train, problem.queries, recipe, 0, ((), (1,)), (4,))
    with pytest.raises(InputError, match="cannot leave out all 13"):
        Job(task, problem.train, problem.queries, recipe, 0, (tuple(range(13)),), (4,))
