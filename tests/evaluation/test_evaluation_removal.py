"""Counterfactual removal: closed forms of linear regression, controls, and one training for each distinct set."""

import math

import pytest
import torch
from torch.testing import assert_close

from whence.data import Examples
from whence.errors import DataError, InputError, StoreMismatchError, UnknownNameError
from whence.evaluation import removal
from whence.evaluation.removal import area, removed_counts
from whence.gold import retrain
from whence.scores import ScoreMatrix
from whence.task import Task
from whence.testing.problems import classifier, linear_regression, mlp, mlp_regression
from whence.training import Recipe

FLOAT64 = {"rtol": 1e-9, "atol": 1e-11}
DESCENT = Recipe(lr=0.1, batch_size=100, epochs=25)
FEW = {"n_bootstrap": 50, "engine": "loop"}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix_of(values, small, method="m"):
    return ScoreMatrix(values, small.queries.ids, small.train.ids, method=method)


def without(problem, left_out):
    """By how much the loss of each query is higher after training without these."""
    full = problem.losses(problem.descended(0.1, 25), problem.queries)
    return problem.losses(problem.descended(0.1, 25, left_out), problem.queries) - full


def row(found, name, count):
    return found.table.set_index(["name", "count"]).loc[(name, count)]


def test_changes_are_the_closed_form_of_linear_regression():
    problem, scores = linear_regression(), normal(4, 12)
    args = problem.task, problem.train, problem.queries, matrix_of(scores, problem), DESCENT
    found = removal(*args, counts=[3, 1, 6], n_bootstrap=50, engine="stacked")
    assert found.counts == (1, 3, 6)
    order = scores.argsort(1, descending=True).tolist()
    for c, count in enumerate(found.counts):
        wanted = torch.stack([without(problem, order[q][:count])[q] for q in range(4)])
        assert_close(found.per_query["m"][c], wanted, **FLOAT64)
        assert row(found, "m", count)["value"] == pytest.approx(float(wanted.mean()))
    assert_close(found.full, problem.losses(problem.descended(0.1, 25), problem.queries), **FLOAT64)


def test_true_single_effects_beat_random_and_their_negatives_lose():
    problem = linear_regression(n_train=20, n_query=8)
    true = torch.stack([without(problem, [i]) for i in range(20)], dim=1)
    scores = {"true": matrix_of(true, problem), "turned": matrix_of(-true, problem)}
    found = removal(problem.task, problem.train, problem.queries, scores, DESCENT, counts=[1], n_bootstrap=300)
    assert_close(found.per_query["true"][0], true.amax(1), **FLOAT64)
    assert_close(found.per_query["turned"][0], true.amin(1), **FLOAT64)
    value, low, _ = found.difference("true", "turned", count=1)
    assert value == pytest.approx(float((true.amax(1) - true.amin(1)).mean()))
    assert low > 0
    assert row(found, "true", 1)["over_random_low"] > 0 > row(found, "turned", 1)["over_random_high"]


def test_random_controls_are_of_equal_size_and_other_for_each_query(monkeypatch):
    small = classifier(n_query=6)
    seen = []

    def spied(*args, kept, **options):
        seen.extend(kept)
        return retrain(*args, kept=kept, **options)

    monkeypatch.setitem(removal.__globals__, "retrain", spied)
    scores = matrix_of(torch.zeros(6, 14), small)  # ties: the first positions, the same for all queries
    found = removal(small.task, small.train, small.queries, scores, DESCENT, counts=[2], **FEW)
    labels = small.train.all()[1]
    lacking = [frozenset(range(14)) - set(kept) for kept in seen]
    assert lacking[0] == frozenset()
    assert frozenset({0, 1}) in lacking[1:]
    assert all(len(s) == 2 for s in lacking[1:])
    assert len(set(lacking)) == len(lacking) > 5  # no set twice; random ones differ between queries
    assert found.n_trainings == len(lacking)
    own = [s for s in lacking[1:] if len({int(labels[i]) for i in s}) == 1]
    asked = {int(y) for y in small.queries.all()[1]}
    assert asked <= {int(labels[next(iter(s))]) for s in own}  # every query's class has a set of its own class
    names = ["m", "random examples", "random examples of the class"]
    assert list(found.per_query) == names


def test_a_class_with_too_few_examples_is_undefined_and_said_so():
    x = normal(12, 3)
    labels = torch.tensor([0] * 7 + [1, 1, 1] + [0, 1])
    whole = Examples((x, labels))
    train, queries = whole.subset(range(10)), whole.subset([10, 11])
    scores = ScoreMatrix(normal(2, 10), queries.ids, train.ids, method="m")
    task = Task.classification(mlp(3, 2))
    found = removal(task, train, queries, scores, DESCENT, counts=[2, 4, 8], **FEW)
    own = found.per_query["random examples of the class"]
    assert own.isnan().tolist() == [[False, False], [False, True], [True, True]]
    at_4, at_8 = (row(found, "random examples of the class", count) for count in (4, 8))
    assert (at_4["n_query"], at_4["n_undefined"], at_4["note"]) == (1, 1, "")
    assert (at_8["n_query"], at_8["note"]) == (0, "classes have fewer examples")
    assert math.isnan(at_8["value"])
    assert not found.per_query["m"].isnan().any()


def test_equal_sets_of_several_methods_are_trained_once():
    problem, scores = linear_regression(), normal(4, 12)
    args = problem.task, problem.train, problem.queries
    one = removal(*args, matrix_of(scores, problem), DESCENT, counts=[2, 4], **FEW)
    twins = {"a": matrix_of(scores, problem), "b": matrix_of(7 * scores, problem)}
    both = removal(*args, twins, DESCENT, counts=[2, 4], seeds=3, **FEW)
    assert both.n_trainings == 3 * one.n_trainings
    assert both.n_seeds == 3
    assert both.difference("a", "b") == [0.0, 0.0, 0.0]


def test_each_seed_is_compared_with_its_own_run_on_all_data():
    small, scores = mlp_regression(), normal(4, 14)
    recipe = Recipe(lr=0.05, batch_size=4, epochs=3)
    options = {"seeds": [4, 2], "initialize": lambda seed: mlp(3, 5, 2, seed=seed).state_dict(), "engine": "loop"}
    args = small.task, small.train, small.queries
    found = removal(*args, matrix_of(scores, small), recipe, counts=[3], n_bootstrap=50, **options)
    order = scores.argsort(1, descending=True)[:, :3].tolist()
    kept = [range(14), *([i for i in range(14) if i not in own] for own in order)]
    measures = retrain(*args, recipe, kept=kept, **options).measures[:, 0]  # (n_seeds, 5, n_query)
    wanted = [(measures[:, 1 + q, q] - measures[:, 0, q]).mean() for q in range(4)]
    assert_close(found.per_query["m"][0], torch.stack(wanted), rtol=0, atol=1e-14)


def test_a_loss_and_its_negative_are_one_change():
    scores, values = normal(4, 14), []
    for measure in ("loss", "log_probability"):
        small = classifier(measure=measure)
        found = removal(small.task, small.train, small.queries, matrix_of(scores, small), DESCENT, counts=[0.2], **FEW)
        assert found.counts == (3,)
        values.append(found.per_query["m"])
    assert_close(values[0], values[1], rtol=1e-10, atol=1e-13)


def test_permuted_train_examples_change_nothing():
    problem, scores = linear_regression(), normal(4, 12)
    args = matrix_of(scores, problem), DESCENT
    whole = removal(problem.task, problem.train, problem.queries, *args, counts=[1, 4], **FEW)
    train = problem.train.subset([(5 * i + 3) % 12 for i in range(12)])
    found = removal(problem.task, train, problem.queries, *args, counts=[1, 4], **FEW)
    for name, values in whole.per_query.items():
        assert_close(found.per_query[name], values, **FLOAT64)


def test_the_area_is_the_mean_height_of_the_curve():
    # From (0, 0) over (2, 4) to (6, 8): triangle 4 and trapezoid 24 over a width of 6.
    assert_close(area(torch.tensor([[4.0], [8.0]], dtype=torch.float64), (2, 6)), torch.tensor([28 / 6]).double())
    problem = linear_regression(n_query=6)
    scores = {"a": matrix_of(normal(6, 12), problem), "b": matrix_of(normal(6, 12, seed=1), problem)}
    found = removal(problem.task, problem.train, problem.queries, scores, DESCENT, counts=[2, 6], **FEW)
    gap = found.area_per_query["a"] - found.area_per_query["b"]
    assert found.difference("a", "b")[0] == pytest.approx(float(gap.mean()))
    assert_close(found.area_per_query["a"], area(found.per_query["a"], (2, 6)))
    areas = found.areas.set_index("name")
    assert areas.loc["a", "value"] == pytest.approx(float(found.area_per_query["a"].mean()))
    over = areas.loc["a", ["over_random", "over_random_low", "over_random_high"]].tolist()
    assert over == found.difference("a", "random examples")
    assert found.to_dict()["b"][6] == [row(found, "b", 6)[column] for column in ("value", "low", "high")]


def test_a_finished_store_answers_without_training(tmp_path, monkeypatch):
    small, scores = mlp_regression(), normal(4, 14)
    args = small.task, small.train, small.queries, matrix_of(scores, small), DESCENT
    options = {"store_dir": tmp_path / "store", **FEW}
    whole = removal(*args, counts=[2], **options)
    with pytest.raises(StoreMismatchError):
        removal(*args, counts=[3], **options)
    monkeypatch.setattr("whence.training.loop._run_one", lambda *args: pytest.fail("trained again"))
    assert removal(*args, counts=[2], **options).table.equals(whole.table)


@pytest.mark.parametrize(
    "counts, wanted", [([5, 1], (1, 5)), ([0.1, 0.5], (10, 50)), ([0.001], (1,)), ([3, 0.2], (3, 20))]
)
def test_counts_and_shares(counts, wanted):
    assert removed_counts(counts, 100) == wanted


def test_what_does_not_fit_is_refused_before_any_training(monkeypatch):
    small = mlp_regression()
    scores = matrix_of(normal(4, 14), small)

    def refuse(*args, **options):
        raise AssertionError("work has begun")

    monkeypatch.setitem(removal.__globals__, "retrain", refuse)

    def remove(counts=(2,), scores=scores, **options):
        removal(small.task, small.train, small.queries, scores, DESCENT, counts=counts, **options)

    for counts in ([], [2, 2], [14], [1, 0.07]):  # 0.07 of 14 is 1
        with pytest.raises(InputError, match="distinct numbers of examples below the 14"):
            remove(counts)
    with pytest.raises(InputError, match="at least 1; got 0"):
        remove([0])
    with pytest.raises(InputError, match=r"share .* 1\.0"):
        remove([1.0])
    with pytest.raises(InputError, match="name of a control"):
        remove(scores={"random examples of the class": scores})
    with pytest.raises(DataError, match="13"):
        remove(scores=scores.columns(range(13)))
    with pytest.raises(InputError, match="n_bootstrap"):
        remove(n_bootstrap=0)
    with pytest.raises(AssertionError, match="work has begun"):
        remove()


def test_unknown_names_and_counts_are_named():
    problem = linear_regression()
    scores = matrix_of(normal(4, 12), problem)
    found = removal(problem.task, problem.train, problem.queries, scores, DESCENT, counts=[2], **FEW)
    with pytest.raises(UnknownNameError, match=r"'n'.*random examples"):
        found.difference("m", "n")
    with pytest.raises(UnknownNameError, match="'n'"):
        found.difference("n", "m", count=2)
    with pytest.raises(InputError, match=r"\[2\]; got 3"):
        found.difference("m", "random examples", count=3)
