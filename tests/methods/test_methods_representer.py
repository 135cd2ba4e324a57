"""Representer points against arithmetic by hand and against the gradient of the last layer."""

import pytest
import torch
from torch import nn

from whence.data import Examples
from whence.errors import InputError, UnsupportedError
from whence.methods.inputs import Inputs
from whence.methods.representer import REPRESENTER, representer
from whence.methods.scoring import block_source
from whence.scores import ScoreMatrix
from whence.task import Task

F64 = torch.float64
EXACT = 1e-12  # sums of a few dozen products in another order


def scores(problem):
    inputs = Inputs(*problem)
    return ScoreMatrix.from_blocks(block_source(REPRESENTER, inputs, representer(inputs)))


def features(task, examples):
    """What the last layer of the test networks sees."""
    with torch.no_grad():
        return task.model[:-1](examples.all()[0])


def one_hot(y, n):
    return nn.functional.one_hot(y, n).double()


@pytest.mark.parametrize("measure", ["loss", "margin", "log_probability", "logit"])
def test_classification_by_hand(measure, classification, assert_same):
    problem = classification(hidden=4, measure=measure)
    task, train, queries = problem
    (x, y), (xq, yq) = train.all(), queries.all()
    p, pq = task.model(x).softmax(1).detach(), task.model(xq).softmax(1).detach()
    own = one_hot(yq, 3)
    others = pq * (1 - own)
    slope = {
        "loss": pq - own,
        "log_probability": own - pq,
        "logit": own,
        "margin": own - others / others.sum(1, keepdim=True),
    }[measure]
    sign = 1 if measure == "loss" else -1
    kernel = features(task, queries) @ features(task, train).T
    found = scores(problem)
    assert_same(found.values, sign * (slope @ (p - one_hot(y, 3)).T) * kernel, EXACT)
    assert found.unit is None


def test_a_logit_query_gets_the_published_values(classification, assert_same):
    """alpha_i,c <h_i, h_q> with alpha = -(d loss / d output c) / (2 lambda n), for the query's class c."""
    problem = classification(hidden=4, measure="logit")
    task, train, queries = problem
    decay, n = 0.01, len(train)
    p = task.model(train.all()[0]).softmax(1).detach()
    alpha = -(p - one_hot(train.all()[1], 3)) / (2 * decay * n)
    wanted = alpha[:, queries.all()[1]].T * (features(task, queries) @ features(task, train).T)
    assert_same(scores(problem).values / (2 * decay * n), wanted, EXACT)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_regression_by_hand(n_outputs, regression, assert_same):
    problem = regression(hidden=4, n_outputs=n_outputs)
    task, train, queries = problem
    slope, slope_q = (
        2 / n_outputs * (task.model(x) - y).detach() for x, y in (examples.all() for examples in (train, queries))
    )
    wanted = (slope_q @ slope.T) * (features(task, queries) @ features(task, train).T)
    assert_same(scores(problem).values, wanted, EXACT)


def test_it_is_the_gradient_product_of_the_last_weight(classification, dense, assert_same):
    """The first layer and both biases take no part: 3 x 4 weights after 4 x 3 + 4 parameters."""
    problem = classification(hidden=4, measure="margin")
    parts, last = dense(problem), slice(16, 28)
    assert_same(scores(problem).values, -parts.measures[:, last] @ parts.losses[:, last].T, EXACT)


def test_the_decomposition_holds_where_the_theorem_does(classification):
    """At a stationary point of mean loss + decay |W|^2 the values add up to the output itself."""
    problem = classification(n_train=20)
    x, y = problem.train.all()
    model, decay = nn.Linear(3, 3, bias=False).double(), 0.05
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x), y) + decay * model.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    task = Task.classification(model.eval(), measure="logit")
    values = scores((task, problem.train, problem.queries)).values / (2 * decay * len(x))
    xq, yq = problem.queries.all()
    outputs = model(xq).detach().gather(1, yq[:, None])[:, 0]
    # As exactly as the optimiser finds the stationary point.
    torch.testing.assert_close(values.sum(1), outputs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("build", ["regression", "classification"])
def test_a_copy_of_the_query_supports_it(build, request):
    task, train, queries = request.getfixturevalue(build)(hidden=4)
    joined = Examples(tuple(torch.cat([a, b]) for a, b in zip(train.all(), queries.all(), strict=True)))
    assert bool((scores((task, joined, queries)).values[:, 12:].diagonal() > 0).all())


@pytest.mark.parametrize("measure", ["loss", "margin", "log_probability"])
def test_another_label_on_the_same_input_opposes(measure, classification):
    task, train, queries = classification(hidden=4, n_classes=2, measure=measure)
    xq, yq = queries.all()
    flipped = Examples((torch.cat([train.all()[0], xq]), torch.cat([train.all()[1], 1 - yq])))
    assert bool((scores((task, flipped, queries)).values[:, 12:].diagonal() < 0).all())


def test_a_given_embedding_is_used(regression, assert_same):
    """Here with a constant, which brings the bias back: the whole gradient of a linear model."""
    problem = regression(embedding=lambda model, batch: torch.cat([batch[0], torch.ones_like(batch[0][:, :1])], 1))
    (x, y), (xq, yq) = problem.train.all(), problem.queries.all()
    model = problem.task.model
    wanted = 4 * (model(xq) - yq).detach() @ (model(x) - y).detach().T * (xq @ x.T + 1)
    found = scores(problem)
    assert_same(found.values, wanted, EXACT)
    assert found.provenance["settings"] == {"embedding": "own"}


def test_outputs_without_a_second_dimension_are_one_output(regression, assert_same):
    problem = regression(hidden=4)
    flat = [Examples((rows.all()[0], rows.all()[1][:, 0])) for rows in (problem.train, problem.queries)]
    task = Task.regression(nn.Sequential(problem.task.model, nn.Flatten(0)).eval())
    assert_same(scores((task, *flat)).values, scores(problem).values, EXACT)


def test_a_last_linear_that_does_not_give_the_outputs_is_refused(regression):
    _, train, queries = regression()
    model = nn.Sequential(nn.Linear(3, 4), nn.AvgPool1d(4)).double().eval()
    with pytest.raises(InputError, match=r"last nn\.Linear has 4 outputs and the model 1.*Pass `embedding=`"):
        scores((Task.regression(model), train, queries))


def test_outputs_of_sequences_are_refused():
    x, y = torch.ones(3, 5, 2, dtype=F64), torch.ones(3, 5, 1, dtype=F64)
    task = Task.regression(nn.Linear(2, 1).double().eval())
    with pytest.raises(UnsupportedError, match=r"\(b, c\); got \(3, 5, 1\).*grad_dot"):
        scores((task, Examples((x, y)), Examples((x, y))))


def test_a_model_without_linear_layer_needs_an_embedding(regression):
    _, train, queries = regression()
    model = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 1, 3), nn.Flatten()).double().eval()
    with pytest.raises(InputError, match="embedding="):
        scores((Task.regression(model), train, queries))
