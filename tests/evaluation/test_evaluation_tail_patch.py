"""Tail-patch scores: closed forms, signs, controls, and what is refused before any step."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.adapters import causal_language_model
from whence.data import Examples
from whence.errors import DataError, InputError, ModeError, UnknownNameError
from whence.evaluation import tail_patch
from whence.methods import attribute
from whence.scores import ScoreMatrix
from whence.testing.problems import classifier, linear_regression, mlp_regression
from whence.training import Recipe

FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}
SGD = Recipe(lr=0.05, batch_size=4, epochs=1)
FEW = {"n_bootstrap": 50}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix_of(values, small, method="m"):
    return ScoreMatrix(values, small.queries.ids, small.train.ids, method=method)


def gains(problem):
    """(n_query, n_train): by how much a step on each example lowers each query's loss, by the closed form."""
    residuals = problem.x @ problem.start - problem.y
    moved = problem.start - 0.05 * 2 * residuals[:, None] * problem.x  # (n_train, d)
    before = problem.losses(problem.start, problem.queries)
    return torch.stack([before - problem.losses(w, problem.queries) for w in moved], dim=1)


def row(result, name):
    return result.table.set_index("name").loc[name]


def test_values_are_means_of_the_closed_form():
    problem, scores = linear_regression(), normal(4, 12)
    true = gains(problem)
    found = tail_patch(problem.task, problem.train, problem.queries, matrix_of(scores, problem), SGD, k=3, **FEW)
    order = scores.argsort(1, descending=True)
    assert_close(found.gains["m"], true.gather(1, order[:, :3]), **FLOAT64)
    assert_close(found.per_query["m"], true.gather(1, order[:, :3]).mean(1), **FLOAT64)
    assert_close(found.gains["m, bottom"], true.gather(1, order.flip(1)[:, :3]), **FLOAT64)
    assert_close(row(found, "m")["value"], float(true.gather(1, order[:, :3]).mean()), **FLOAT64)
    assert list(found.table["name"]) == ["m", "m, bottom", "random examples"]
    assert_close(found.before, problem.losses(problem.start, problem.queries), **FLOAT64)


def test_the_best_scores_are_the_gains_themselves():
    problem = linear_regression()
    true = gains(problem)
    scores = {"best": matrix_of(true, problem), "worst": matrix_of(-true, problem)}
    found = tail_patch(problem.task, problem.train, problem.queries, scores, SGD, k=2, **FEW)
    assert row(found, "best")["value"] == pytest.approx(float(true.topk(2, dim=1).values.mean()))
    assert row(found, "best")["value"] == row(found, "worst, bottom")["value"]
    assert row(found, "best")["value"] > row(found, "random examples")["value"] > row(found, "worst")["value"]


def test_with_all_examples_top_bottom_and_random_are_the_same():
    problem = linear_regression()
    scores = matrix_of(normal(4, 12), problem)
    found = tail_patch(problem.task, problem.train, problem.queries, scores, SGD, k=12, **FEW)
    for values in found.per_query.values():
        assert_close(values, gains(problem).mean(1), **FLOAT64)


@pytest.mark.parametrize("measure", ["loss", "log_probability"])
def test_small_steps_are_gradient_products(measure):
    """Better is better, whichever way the measure points: supporters by grad_dot have positive values."""
    small = classifier(measure=measure)
    scores = attribute(small.task, small.train, small.queries, method="grad_dot")
    lr = 1e-6
    found = tail_patch(small.task, small.train, small.queries, scores, Recipe(lr=lr, batch_size=1, epochs=1), k=14)
    wanted = scores.values.sort(dim=1, descending=True).values
    assert_close(found.gains["grad_dot"] / lr, wanted, rtol=1e-3, atol=1e-3)
    assert float(wanted[:, 0].min()) > 0.01


def test_a_loss_and_its_negative_are_one_score():
    scores = normal(4, 14)
    tables = []
    for measure in ("loss", "log_probability"):
        small = classifier(measure=measure)
        found = tail_patch(small.task, small.train, small.queries, matrix_of(scores, small), SGD, k=3, **FEW)
        tables.append(found.per_query["m"])
    assert_close(tables[0], tables[1], rtol=1e-12, atol=1e-15)


class BigramModel(nn.Module):
    """The logits of the next token depend on this one alone."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 5, dtype=torch.float64)

    def forward(self, input_ids):
        return self.table(input_ids)


def test_language_models_have_their_published_unit():
    """100 times the mean per-token log-probability; for one bigram table the step is softmax regression by hand."""
    model = BigramModel().eval()
    table = normal(5, 5)
    model.table.weight.data.copy_(table)
    task = causal_language_model(model, reduction="mean", measure="log_probability")
    train = Examples({"input_ids": torch.tensor([[0, 1, 2, 1], [3, 4, 3, 4]])})
    queries = Examples({"input_ids": torch.tensor([[2, 1, 2, 0], [0, 1, 1, 2]])})
    scores = ScoreMatrix(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), queries.ids, train.ids, method="m")
    recipe = Recipe(lr=0.3, batch_size=1, epochs=1)
    found = tail_patch(task, train, queries, scores, recipe, k=1, scale=100, **FEW)

    def logprob(weights, tokens):
        steps = itertools.pairwise(tokens)
        return torch.stack([weights[a].log_softmax(0)[b] for a, b in steps]).mean()

    leaf = table.clone().requires_grad_()
    (slope,) = torch.autograd.grad(-logprob(leaf, [0, 1, 2, 1]), leaf)
    after = table - 0.3 * slope
    wanted = [100 * (logprob(after, q) - logprob(table, q)) for q in ([2, 1, 2, 0], [0, 1, 1, 2])]
    assert_close(found.per_query["m"], torch.stack(wanted), **FLOAT64)
    assert float(found.per_query["m"][1]) > 1  # the query's first bigram was learned


def test_permuted_train_examples_and_queries_change_nothing():
    small, scores = mlp_regression(), normal(4, 14)
    whole = tail_patch(small.task, small.train, small.queries, matrix_of(scores, small), SGD, k=3, **FEW)
    train = small.train.subset([(5 * i + 3) % 14 for i in range(14)])
    found = tail_patch(small.task, train, small.queries, matrix_of(scores, small), SGD, k=3, **FEW)
    for name, values in whole.per_query.items():
        assert_close(found.per_query[name], values, **FLOAT64)
    queries = small.queries.subset([2, 0, 3, 1])
    found = tail_patch(small.task, train, queries, matrix_of(scores, small), SGD, k=3, **FEW)
    for name, values in whole.per_query.items():
        assert_close(found.per_query[name], values[[2, 0, 3, 1]], **FLOAT64)


def test_each_example_is_stepped_on_once_whoever_names_it():
    small, scores = mlp_regression(), normal(4, 14)
    one = tail_patch(small.task, small.train, small.queries, matrix_of(scores, small), SGD, k=2, **FEW)
    two = {"a": matrix_of(scores, small), "b": matrix_of(2 * scores, small)}
    both = tail_patch(small.task, small.train, small.queries, two, SGD, k=2, **FEW)
    assert one.n_steps == both.n_steps <= 14
    assert_close(both.per_query["a"], both.per_query["b"], rtol=0, atol=0)


def test_differences_are_paired_and_the_scale_is_a_factor():
    small = mlp_regression(n_query=30)
    scores = {"a": matrix_of(normal(30, 14), small), "b": matrix_of(normal(30, 14, seed=1), small)}
    args = small.task, small.train, small.queries, scores, SGD
    found, large = tail_patch(*args, k=2), tail_patch(*args, k=2, scale=100)
    a, b = found.per_query["a"], found.per_query["b"]
    value, low, high = found.difference("a", "b")
    assert value == pytest.approx(float((a - b).mean()))
    # The normal interval of a mean of 30 differences: 2 * 1.96 standard errors wide.
    assert high - low == pytest.approx(2 * 1.96 * float((a - b).std()) / math.sqrt(30), rel=0.2)
    assert low < value < high
    assert found.difference("a", "a") == [0.0, 0.0, 0.0]
    over = [row(found, "a")[column] for column in ("over_random", "over_random_low", "over_random_high")]
    assert over == found.difference("a", "random examples")
    assert math.isnan(row(found, "random examples")["over_random"])
    assert_close(large.to_dict()["a"], [100 * x for x in found.to_dict()["a"]])
    with pytest.raises(UnknownNameError, match="'c'"):
        found.difference("a", "c")


def test_one_query_has_a_value_and_no_interval():
    small = mlp_regression(n_query=1)
    found = tail_patch(small.task, small.train, small.queries, matrix_of(normal(1, 14), small), SGD, k=2, **FEW)
    value, low, high = found.to_dict()["m"]
    assert math.isfinite(value)
    assert math.isnan(low)
    assert math.isnan(high)


def test_what_does_not_fit_is_refused_before_any_step(monkeypatch):
    small = mlp_regression()
    scores = matrix_of(normal(4, 14), small)

    def refuse(*args, **options):
        raise AssertionError("work has begun")

    monkeypatch.setitem(tail_patch.__globals__, "one_step", refuse)

    def patch(scores=scores, **options):
        tail_patch(small.task, small.train, small.queries, scores, SGD, **{"k": 2, **options})

    with pytest.raises(InputError, match=r"`k`=15 .* 14 train examples"):
        patch(k=15)
    with pytest.raises(InputError, match="`k` must be an integer of at least 1"):
        patch(k=0)
    with pytest.raises(InputError, match="`scale`"):
        patch(scale=0.0)
    with pytest.raises(InputError, match="holds no score matrix"):
        patch({})
    with pytest.raises(InputError, match="'random examples' is the name of a control"):
        patch({"random examples": scores})
    with pytest.raises(InputError, match="'m, bottom' is the name of a control"):
        patch({"m": scores, "m, bottom": scores})
    with pytest.raises(DataError, match="13"):
        patch(scores.columns(range(13)))
    with pytest.raises(DataError, match="17"):
        patch(scores.rows([14, 15, 16]))
    with pytest.raises(InputError, match="confidence"):
        patch(confidence=1.0)
    with pytest.raises(AssertionError, match="work has begun"):
        patch()
    monkeypatch.undo()
    small.task.model.train()
    with pytest.raises(ModeError, match="eval"):
        patch()
