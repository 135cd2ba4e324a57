"""Retraining on kept rows: plain training on the subset, from the initialisation of each seed."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from whence.data import Examples, random_kept_sets
from whence.errors import InputError, StoreMismatchError
from whence.evaluation import lds, reliability
from whence.gold import Retrained, retrain
from whence.scores import ScoreMatrix
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


# Outcomes


def retrained(measures, kept, orientation=1):
    """As `retrain` gives it, for train ids a, b, ... and queries 0, 1, ..."""
    n_seeds, n_points, _, n_query = measures.shape
    kept = torch.tensor(kept)
    return Retrained(
        measures=measures,
        kept=kept,
        points=tuple(range(1, n_points + 1)),
        point_unit="steps",
        seeds=tuple(range(n_seeds)),
        train_ids=tuple("abcdefgh"[: kept.shape[1]]),
        query_ids=tuple(range(n_query)),
        orientation=orientation,
        eps=2.0**-52,
        execution=None,
    )


def test_a_run_that_kept_everything_has_no_outcome():
    measures = torch.zeros(1, 1, 2, 1, dtype=torch.float64)
    with pytest.raises(InputError, match="Kept set 1 is the whole train set"):
        retrained(measures, [[True, False], [True, True]]).outcomes()


@pytest.mark.parametrize("orientation", [1, -1])
def test_outcomes_by_hand(orientation):
    measures = torch.tensor([[[[1.0, 5.0], [2.0, -1.0], [6.0, 2.0]]]], dtype=torch.float64)  # 3 sets, 2 queries
    kept = [[True, True, False], [True, False, True], [False, True, True]]
    outcomes = retrained(measures, kept, orientation).outcomes()
    wanted = torch.tensor([[-2.0, -1.0, 3.0], [3.0, -3.0, 0.0]], dtype=torch.float64)
    assert_close(outcomes.effects, orientation * wanted[None, None])
    assert outcomes.left_out == (("c",), ("b",), ("a",))
    assert_close(outcomes.level, torch.tensor([[3.0, 8 / 3]], dtype=torch.float64))
    assert (outcomes.points, outcomes.point_unit, outcomes.query_ids) == ((1,), "steps", (0, 1))
    assert (outcomes.eps, outcomes.adjustment, outcomes.n_seeds) == (2.0**-52, "mean", 1)


def test_a_run_that_kept_what_helps_has_a_negative_effect():
    """The query is train example 0 itself: the runs that kept it have the lower loss."""
    problem = linear_regression()
    x, y = problem.train.all()
    query = Examples((x[:1], y[:1]))
    kept = random_kept_sets(12, 40, seed=0)
    recipe = Recipe(lr=0.05, batch_size=100, epochs=200)
    found = retrain(problem.task, problem.train, query, recipe, kept=kept, engine="stacked")
    effects = found.outcomes().effects[0, 0, 0]
    helped = torch.tensor([0 in own for own in kept])
    assert float(effects[helped].mean()) < 0 < float(effects[~helped].mean())
    supports = torch.zeros(1, 12, dtype=torch.float64)
    supports[0, 0] = 1.0
    scores = ScoreMatrix(supports, query.ids, problem.train.ids)
    assert lds(scores, found.outcomes(), n_bootstrap=10).table["value"].item() > 0.3


def test_outcomes_of_several_seeds_and_points_have_a_ceiling():
    small = mlp_regression()
    kept = random_kept_sets(14, 10, seed=0)
    found = retrain(
        small.task,
        small.train,
        small.queries,
        RECIPE,
        kept=kept,
        seeds=2,
        initialize=initialize,
        points=[1, 3],
        engine="stacked",
    )
    outcomes = found.outcomes()
    assert outcomes.effects.shape == (2, 2, 4, 10)
    assert_close(outcomes.effects.mean(-1), torch.zeros(2, 2, 4, dtype=torch.float64), rtol=0, atol=1e-15)
    measures = found.measures.transpose(2, 3)
    assert_close(outcomes.effects, measures - measures.mean(-1, keepdim=True), rtol=0, atol=0)
    assert outcomes.left_out == tuple(tuple(i for i in range(14) if i not in own) for own in kept)
    trust = reliability(outcomes, "spearman", n_bootstrap=20)
    assert list(trust.ceiling()) == [1, 3]
    assert all(0 <= ceiling <= 1 for ceiling in trust.ceiling().values())
    alone = reliability(replace(found, measures=found.measures[:1]).outcomes(), "spearman", n_bootstrap=20)
    assert alone.table["note"].tolist() == ["one seed: reliability needs two"] * 2


def test_seeds_that_agree_have_a_ceiling_of_one():
    measures = torch.randn(1, 1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = (torch.arange(6)[:, None] % 3 != torch.arange(3)).tolist()
    both = retrained(measures.expand(2, -1, -1, -1), kept).outcomes()
    assert_close(reliability(both, "spearman", n_bootstrap=10).ceiling(), {1: 1.0})
