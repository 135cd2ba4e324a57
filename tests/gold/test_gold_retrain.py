"""Retraining on kept rows: plain training on the subset, from the initialisation of each seed."""

import pytest
import torch
from torch.testing import assert_close

from whence.errors import InputError, StoreMismatchError
from whence.gold import retrain
from whence.testing.problems import PROBLEMS, linear_regression, mlp, mlp_regression
from whence.training import Recipe
from whence.training.processes import INLINE

FLOAT64 = {"rtol": 1e-10, "atol": 1e-11}  # rounding in another order, grown over a dozen steps
RECIPE = Recipe(lr=0.05, batch_size=4, epochs=3, momentum=0.9)
KEPT = [[0, 1, 2, 3, 4, 5, 6], [13, 2, 7, 9, 4], range(14), [5], [2, 4, 7, 9, 13], range(0, 14, 2)]


def initialize(seed):
    return mlp(3, 5, 2, seed=100 + seed).state_dict()


def plain(train_plainly, small, seed, kept, start=None):
    """Measures after epochs 1 and 3, where epochs are passes over all data."""
    lacks = tuple(set(range(14)) - set(kept))
    task = small.task
    if start is not None:
        model = mlp(3, 5, 2)
        model.load_state_dict(start)
        task = task.with_model(model)
    batch = small.queries.all()
    return torch.stack(
        [
            task.measure(task.outputs(model, batch), batch).detach()
            for step, model in train_plainly(task, small.train, RECIPE, seed, lacks)
            if step in (4, 12)
        ]
    )


@pytest.mark.parametrize("engine", ["stacked", "loop"])
@pytest.mark.parametrize("own", [False, True])
def test_runs_are_plain_training_on_the_subset_in_the_reference_order(train_plainly, engine, own):
    small = mlp_regression()
    found = retrain(
        small.task,
        small.train,
        small.queries,
        RECIPE,
        kept=KEPT,
        seeds=[0, 3],
        initialize=initialize if own else None,
        points=[1, 3],
        engine=engine,
    )
    assert found.measures.shape == (2, 2, len(KEPT), 4)
    for s, seed in enumerate((0, 3)):
        for k, kept in enumerate(KEPT):
            expected = plain(train_plainly, small, seed, kept, initialize(seed) if own else None)
            assert_close(found.measures[s, :, k], expected, **FLOAT64)


def test_the_answer_names_its_parts():
    small = mlp_regression()
    found = retrain(small.task, small.train, small.queries, RECIPE, kept=KEPT, engine="loop")
    for row, kept in zip(found.kept, KEPT, strict=True):
        assert row.nonzero().flatten().tolist() == sorted(kept)
    assert found.kept.dtype == torch.bool
    assert (found.train_ids, found.query_ids) == (tuple(range(14)), tuple(range(14, 18)))
    assert (found.points, found.point_unit, found.seeds, found.orientation) == ((3,), "epochs", (0,), 1)


def test_the_same_rows_in_another_order_are_the_same_set():
    small = mlp_regression()
    found = retrain(small.task, small.train, small.queries, RECIPE, kept=KEPT, engine="loop").measures
    assert_close(found[:, :, 1], found[:, :, 4], rtol=0, atol=0)


def test_full_batch_linear_regression_is_the_closed_form():
    problem = linear_regression()
    recipe = Recipe(lr=0.1, batch_size=100, epochs=25)
    kept = [[0, 1, 2, 3, 4, 5], [3, 4, 5, 9, 10, 11]]
    found = retrain(problem.task, problem.train, problem.queries, recipe, kept=kept, engine="stacked")
    for k, rows in enumerate(kept):
        w = problem.descended(0.1, 25, [i for i in range(12) if i not in rows])
        assert_close(found.measures[0, 0, k], problem.losses(w, problem.queries), **FLOAT64)


def test_the_task_is_not_changed():
    small = mlp_regression()
    before = {name: x.clone() for name, x in small.task.model.state_dict().items()}
    retrain(small.task, small.train, small.queries, RECIPE, kept=KEPT, seeds=2, initialize=initialize, engine="loop")
    assert_close(small.task.model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("own", [False, True])
def test_resumed_is_uninterrupted(tmp_path, monkeypatch, own):
    small = mlp_regression()
    options = {"kept": KEPT, "seeds": 3, "initialize": initialize if own else None, "engine": "stacked"}
    whole = retrain(small.task, small.train, small.queries, RECIPE, **options)
    run, calls = INLINE["stacked"], []

    def interrupted(job):
        calls.append(job.seed)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(job)

    with monkeypatch.context() as patch:
        patch.setitem(INLINE, "stacked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            retrain(small.task, small.train, small.queries, RECIPE, store_dir=tmp_path / "store", **options)
    resumed = retrain(small.task, small.train, small.queries, RECIPE, store_dir=tmp_path / "store", **options)
    assert torch.equal(resumed.measures, whole.measures)


def test_a_store_of_another_initialisation_is_refused(tmp_path):
    small = mlp_regression()
    options = {"kept": KEPT, "engine": "loop", "store_dir": tmp_path / "store"}
    retrain(small.task, small.train, small.queries, RECIPE, initialize=initialize, **options)
    for other in (None, lambda seed: initialize(seed + 1)):
        with pytest.raises(StoreMismatchError, match=r"settings\.initialisation"):
            retrain(small.task, small.train, small.queries, RECIPE, initialize=other, **options)


@pytest.mark.parametrize(
    "kept, message",
    [
        ([], "`kept` holds no set"),
        ([[0, 1], []], "A kept set is empty"),
        ([[0, 1], [3, 3]], r"distinct and in 0 \.\. 13; got \(3, 3\)"),
        ([[0, 14]], r"distinct and in 0 \.\. 13; got \(0, 14\)"),
        ([[-1]], r"distinct and in 0 \.\. 13"),
    ],
)
def test_kept_sets_that_cannot_be_are_refused_before_training(monkeypatch, kept, message):
    monkeypatch.setitem(INLINE, "loop", lambda job: pytest.fail("training began"))
    small = mlp_regression()
    with pytest.raises(InputError, match=message):
        retrain(small.task, small.train, small.queries, RECIPE, kept=kept, engine="loop")


def test_batch_norm_statistics_are_those_of_the_initialisation():
    small = PROBLEMS["batch_norm"]()

    def shifted(seed):
        state = {name: x.clone() for name, x in small.task.model.state_dict().items()}
        state["norm.running_mean"] += seed
        return state

    found = retrain(
        small.task, small.train, small.queries, RECIPE, kept=KEPT, seeds=[0, 2], initialize=shifted, engine="stacked"
    )
    same = retrain(small.task, small.train, small.queries, RECIPE, kept=KEPT, seeds=[0, 2], engine="stacked")
    assert_close(found.measures[0], same.measures[0], rtol=0, atol=0)
    assert not torch.allclose(found.measures[1], same.measures[1])
