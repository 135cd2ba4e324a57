"""A trajectory and its kept states: the same run backwards wherever they are kept, within budget, and no file left."""

import errno
import gc
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whence.errors import NonFiniteError, StoreError, StoreWriteError, UnknownNameError
from whence.testing.problems import linear_regression
from whence.training import Recipe
from whence.training.kept_states import GROUP, PACKINGS, KeptStates, packing
from whence.training.trajectory import Trajectory, _spacing

F64 = torch.float64
U_HALF = 2.0**-8  # unit roundoff of bfloat16: 8 bits of significand
U = 2.0**-52
N_STEPS = 30
RECIPES = {
    "sgd": Recipe(lr=0.02, batch_size=4, steps=N_STEPS),
    "momentum": Recipe(lr=0.02, batch_size=4, steps=N_STEPS, momentum=0.9),
    "adam": Recipe(lr=0.02, batch_size=4, steps=N_STEPS, optimizer="adam"),
}


def run_of(recipe="adam", problem=None, **options):
    problem = problem or linear_regression()
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    return Trajectory(problem.task, problem.train, recipe, 3, recipe.amount, **options)


def size_of(run):
    return sum(x.nbytes for x in run.end)


def walk(n_states, n_params=5, seed=0, scale=0.1):
    """States of Adam's kind: parameters that wander, a buffer of either sign, and one that is never negative."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(n_states, n_params, generator=generator, dtype=F64)
    parameters = 1 + (scale * steps).cumsum(0)
    return [(p, s, s.square() * (s > 0)) for p, s in zip(parameters, steps, strict=True)]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


# --- the run backwards ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_where_states_are_kept_does_not_change_the_run(recipe, tmp_path):
    whole = run_of(recipe)
    size = size_of(whole)
    others = {
        "computed again": run_of(recipe, memory=9 * size),
        "on disk": run_of(recipe, memory=0, spill=tmp_path),
        "partly on disk": run_of(recipe, memory=int(7.5 * size), spill=tmp_path),
    }
    assert whole.every == 1
    assert others["computed again"].every > 1
    assert others["on disk"]._kept.bytes_in_memory == 0
    assert others["partly on disk"]._kept.bytes_in_memory == 7 * size
    wanted = list(whole.backwards())
    assert [step.step for step, _ in wanted] == list(range(N_STEPS))[::-1]
    for name, run in others.items():
        assert same(run.end, whole.end), name
        for (step, state), (found_step, found) in zip(wanted, run.backwards(), strict=True):
            assert found_step.step == step.step, name
            assert same(found, state), name
        assert torch.equal(run.at(11), whole.at(11)), name
        assert run.rounding == {}
        run.close()


@pytest.mark.parametrize("memory_states", [3, 9, 1000])
@pytest.mark.parametrize("recipe", RECIPES)
def test_in_bfloat16_the_run_ends_alike_and_its_states_are_off_by_what_it_says(recipe, memory_states):
    whole = run_of(recipe)
    run = run_of(recipe, keep="bfloat16", memory=memory_states * size_of(whole))
    assert same(run.end, whole.end)
    exact = {step.step: state for step, state in whole.backwards()}
    worst = {"parameters": 0.0, "buffers": 0.0}
    for step, state in run.backwards():
        if step.step % run.every == 0:
            for k, (found, wanted) in enumerate(zip(state, exact[step.step], strict=True)):
                part = "buffers" if k else "parameters"
                error = float((found - wanted).norm() / wanted.norm()) if bool(wanted.any()) else 0.0
                worst[part] = max(worst[part], error)
    if recipe == "sgd":
        del worst["buffers"]
    assert run.rounding == pytest.approx(worst, rel=1e-6)
    assert max(worst.values()) <= U_HALF
    assert any(run.rounding.values())


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_states", [0, 6, 8, 11, 40])
@pytest.mark.parametrize("keep", PACKINGS)
def test_the_budget_of_memory_is_kept_where_it_can_be(n_states, keep):
    problem = linear_regression()
    size = 3 * 8 * problem.task.layout.n_params
    memory = n_states * size
    run = run_of("adam", problem, memory=memory, keep=keep)
    segment = run.every * size if run.every > 1 else 0
    taken = run._kept.bytes_in_memory + segment
    assert run._kept.bytes_in_memory == packing(keep).nbytes(run.end, -(-N_STEPS // run.every))
    least = min(packing(keep).nbytes(run.end, -(-N_STEPS // k)) + k * size for k in range(2, N_STEPS + 1))
    assert taken <= max(memory, least)


def test_bfloat16_keeps_more_of_the_states_in_the_same_memory():
    size = size_of(run_of())
    spacings = [run_of(keep=keep, memory=12 * size).every for keep in ("full", "bfloat16")]
    assert spacings == [4, 1]  # 8 kept and 4 of a segment; 30 states of 2 bytes in 8 per number, 4 of them larger


@given(n_steps=st.integers(1, 300), n_states=st.integers(1, 300))
def test_kept_states_fit_or_take_least(n_steps, n_states):
    state = (torch.zeros(1, dtype=torch.float32),)
    every = _spacing(n_steps, 4 * n_states, packing("full").nbytes, state)
    held = -(-n_steps // every) + (every if every > 1 else 0)
    spacings = {k: -(-n_steps // k) + (k if k > 1 else 0) for k in range(1, n_steps + 1)}
    assert held <= max(n_states, min(spacings.values()))
    assert all(spacings[k] > n_states for k in range(1, every)) or held == min(spacings.values())


# --- kept states ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 25),
    memory=st.integers(0, 4000),
    keep=st.sampled_from(sorted(PACKINGS)),
    spilled=st.booleans(),
    seed=st.integers(0, 9),
)
def test_states_come_back_in_any_order(count, memory, keep, spilled, seed, tmp_path):
    states = walk(count, seed=seed)
    kept = KeptStates(states[0], count, memory=memory, keep=keep, spill=tmp_path if spilled else None)
    for k, state in enumerate(states):
        kept.put(k, state)
    assert kept.bytes_in_memory + kept.bytes_on_disk == packing(keep).nbytes(states[0], count)
    if spilled:
        assert kept.bytes_in_memory <= memory
    else:
        assert kept.bytes_on_disk == 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    plain = KeptStates(states[0], count, memory=0, keep=keep)
    for k, state in enumerate(states):
        plain.put(k, state)
    for k in order:
        assert same(kept.get(k), states[k] if keep == "full" else plain.get(k))
    kept.close()
    assert not any(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(scale=st.sampled_from([1e-6, 1e-2, 1.0, 30.0]), seed=st.integers(0, 99))
def test_errors_are_of_the_way_since_the_last_state_and_do_not_add_up(scale, seed):
    """An entry is off by half a unit of its difference to what was read before, and by the rounding of one sum."""
    states = walk(3 * GROUP + 2, scale=scale, seed=seed)
    kept = KeptStates(states[0], len(states), memory=0, keep="bfloat16")
    for k, state in enumerate(states):
        kept.put(k, state)
    for k, (parameters, first, second) in enumerate(states):
        found = kept.get(k)
        assert [x.dtype for x in found] == [F64] * 3
        if k % GROUP == 0:
            assert torch.equal(found[0], parameters)
        else:
            before = kept.get(k - 1)[0]
            bound = U_HALF * (parameters - before).abs() + 4 * U * (parameters.abs() + before.abs())
            assert bool(((found[0] - parameters).abs() <= bound).all())
        assert bool(((found[1] - first).abs() <= U_HALF * first.abs()).all())
        assert bool(((found[2] - second).abs() <= U_HALF * second).all())
        assert bool((found[2] >= 0).all())  # the root of a second moment is taken


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_in_the_folder_stays_and_runs_do_not_share_files(tmp_path):
    (tmp_path / "0.safetensors").write_bytes(b"mine")
    runs = [run_of("sgd", memory=0, spill=tmp_path / "new" / "deep") for _ in range(2)]
    runs.append(run_of("sgd", memory=0, spill=str(tmp_path)))
    folders = [run._kept._folder for run in runs]
    assert len(set(folders)) == 3
    assert [len(os.listdir(folder)) for folder in folders] == [N_STEPS] * 3
    runs[0].close()
    assert not folders[0].exists()
    assert len(list(runs[1].backwards())) == N_STEPS
    runs[1].close()
    runs[1].close()  # twice is harmless
    del runs[2]
    gc.collect()
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "new"]
    assert (tmp_path / "0.safetensors").read_bytes() == b"mine"
    assert os.listdir(tmp_path / "new" / "deep") == []


def test_a_run_that_diverges_leaves_no_file(tmp_path):
    with pytest.raises(NonFiniteError, match="learning rate"):
        run_of(Recipe(lr=1e200, batch_size=4, steps=9), memory=0, spill=tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_run_leaves_no_file(tmp_path, monkeypatch):
    original = Trajectory.after

    def after(self, state, step):
        if step.step == 5:
            raise KeyboardInterrupt
        return original(self, state, step)

    monkeypatch.setattr(Trajectory, "after", after)
    with pytest.raises(KeyboardInterrupt):
        run_of(memory=0, spill=tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def no_steps(monkeypatch):
    monkeypatch.setattr(Trajectory, "after", lambda *_: pytest.fail("the run began"))


def test_a_disk_with_too_little_space_is_refused_before_the_run(tmp_path, monkeypatch, no_steps):
    size = 3 * 8 * linear_regression().task.layout.n_params
    free = 20 * size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    with pytest.raises(StoreWriteError, match=rf"take {29 * size} bytes more than .*{tmp_path} has {free} free.*leave"):
        run_of(memory=size, spill=tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_disk_with_just_enough_space_will_do(tmp_path, monkeypatch):
    size = 3 * 8 * linear_regression().task.layout.n_params
    free = (N_STEPS - 1) * size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    run = run_of(memory=size, spill=tmp_path)
    assert run._kept.bytes_on_disk == free


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_run(code, tmp_path, monkeypatch, no_steps):
    def mkdtemp(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("whence.training.kept_states.tempfile.mkdtemp", mkdtemp)
    with pytest.raises(StoreWriteError, match=rf"{tmp_path}: {os.strerror(code)}.*another `spill` folder"):
        run_of(memory=0, spill=tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_run(tmp_path, no_steps):
    (tmp_path / "taken").write_bytes(b"mine")
    with pytest.raises(StoreWriteError, match=r"taken: .*another `spill` folder"):
        run_of(memory=0, spill=tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b"mine"


def test_a_disk_that_fills_up_during_the_run_is_told_and_emptied(tmp_path, monkeypatch):
    original = Path.write_bytes

    def write_bytes(self, content):
        if self.name == "7.safetensors":
            original(self, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(StoreWriteError, match=r"7\.safetensors: No space left.*Free some space"):
        run_of(memory=0, spill=tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:50])])
def test_a_file_that_is_lost_is_told(spoil, tmp_path):
    run = run_of(memory=0, spill=tmp_path)
    spoil(run._kept._folder / "4.safetensors")
    with pytest.raises(StoreError, match=r"4\.safetensors cannot be read.*Run it again"):
        list(run.backwards())
    run.close()


def test_an_unknown_way_to_keep_is_refused(no_steps):
    with pytest.raises(UnknownNameError, match=r"'bf16'.*bfloat16, full"):
        run_of(keep="bf16")
