"""Methods without curvature, self-influence and the baselines, against plain autograd and arithmetic by hand."""

import pytest
import torch
from torch import nn

from whence import Damping, Recipe, attribute, damped_inverse, flow, self_influence
from whence import horizon as horizon_of
from whence.curvature import FORMS
from whence.data import Examples
from whence.errors import InputError, ShapeError, UnknownNameError
from whence.task import Task

F64 = torch.float64
EXACT = 1e-12  # sums of a few dozen products in another order
SOLVED = 1e-9  # through an eigen-decomposition
KRYLOV = 1e-7  # Lanczos stops at a change of 1e-8
SINGLE = 1e-5  # float32 gradients


@pytest.mark.parametrize("measure", ["loss", "margin", "log_probability", "logit"])
def test_grad_dot_and_grad_cos_are_products_of_autograd_gradients(measure, classification, dense, assert_same):
    problem = classification(hidden=4, measure=measure)
    parts = dense(problem)
    sign = 1 if measure == "loss" else -1
    assert_same(attribute(*problem, "grad_dot").values, sign * parts.measures @ parts.losses.T, EXACT)
    unit = nn.functional.normalize
    assert_same(attribute(*problem, "grad_cos").values, sign * unit(parts.measures) @ unit(parts.losses).T, EXACT)


def test_float32_gradients_are_close_to_float64_ones(regression, assert_same):
    problem = regression(hidden=4, n_outputs=2)
    wanted = {method: attribute(*problem, method).values for method in ("grad_dot", "grad_cos")}
    single = Task.regression(problem.task.model.float())
    train, queries = (rows.to(dtype=torch.float32) for rows in (problem.train, problem.queries))
    for method, values in wanted.items():
        assert_same(attribute(single, train, queries, method).values.double(), values, SINGLE)


def test_a_zero_gradient_has_cosine_zero(regression):
    """Without a bias an input of zero has no gradient, whatever its residual."""
    problem = regression(bias=False, n_train=5, n_query=3)
    rows = []
    for examples, zero in ((problem.train, 2), (problem.queries, 1)):
        x, y = examples.all()
        x = x.clone()
        x[zero] = 0.0
        rows.append(Examples((x, y), ids=examples.ids))
    scores = attribute(problem.task, *rows, "grad_cos").values
    assert bool((scores[1] == 0).all())
    assert bool((scores[:, 2] == 0).all())
    others = torch.ones_like(scores, dtype=torch.bool)
    others[1], others[:, 2] = False, False
    # One input, one output: gradients are multiples of x, so no other cosine vanishes.
    assert bool((scores[others] != 0).all())
    assert bool((attribute(problem.task, *rows, "grad_dot").values[1] == 0).all())


@pytest.mark.parametrize("hidden", [None, 4])
def test_self_influence_is_the_diagonal(hidden, classification, assert_same):
    task, train, _ = classification(hidden=hidden, n_train=9)
    squares = self_influence(task, train)
    assert_same(squares, attribute(task, train, train, "grad_dot").values.diagonal(), EXACT)
    recipe = Recipe(lr=0.1, batch_size=4, epochs=3)  # nine steps
    filters = [
        damped_inverse(Damping.relative(0.1)),
        damped_inverse(Damping.mean_square_gradient(2.0)),
        flow(0.7),
        horizon_of(recipe),
        horizon_of(recipe, 2, flow=True),
    ]
    for used in filters:
        for form in FORMS:
            found = self_influence(task, train, filter=used, form=form)
            wanted = attribute(task, train, train, "influence_gn", filter=used, form=form).values.diagonal()
            assert_same(found, wanted, KRYLOV if form == "krylov" else SOLVED)
            assert bool((found >= 0).all())


def test_self_influence_in_blocks_is_the_same(classification, monkeypatch):
    task, train, _ = classification(hidden=4, n_train=9)
    used = damped_inverse(Damping.relative(0.1))
    wanted = [self_influence(task, train, filter=f) for f in (None, used)]
    monkeypatch.setattr("whence.gradients.rows.chunk_size", lambda *_: 2)
    monkeypatch.setattr("whence.curvature.linearized.CACHE", 0)
    for f, values in zip((None, used), wanted, strict=True):
        torch.testing.assert_close(self_influence(task, train, filter=f), values, rtol=SOLVED, atol=0.0)


def test_self_influence_refuses_what_is_no_filter(regression):
    task, train, _ = regression()
    with pytest.raises(InputError, match=r"`filter` must be a spectral filter; got 'horizon'"):
        self_influence(task, train, filter="horizon")
    with pytest.raises(UnknownNameError, match="primal"):
        self_influence(task, train, filter=flow(1.0), form="prime")


def test_random_is_seeded_and_independent_of_the_problem(regression, classification):
    shape = {"n_train": 200, "n_query": 50}
    first = attribute(*regression(**shape), "random", seed=3).values
    assert first.shape == (50, 200)
    assert torch.equal(first, attribute(*classification(**shape), "random", seed=3).values)
    other = attribute(*regression(**shape), "random", seed=4).values
    # 10,000 independent standard normal numbers: five standard errors.
    assert abs(float(first.mean())) < 0.05
    assert float(first.std()) == pytest.approx(1.0, abs=0.04)
    assert abs(float((first * other).mean())) < 0.05


# --- embeddings -------------------------------------------------------------------------------------------------------


def cosines(x, y):
    return torch.stack([torch.stack([(a @ b) / (a @ a).sqrt() / (b @ b).sqrt() for b in y]) for a in x])


def test_embedding_cosine_takes_the_input_of_the_last_linear_layer(classification, assert_same):
    problem = classification(hidden=4)
    first = problem.task.model[0]
    with torch.no_grad():
        train, queries = (
            torch.tanh(examples.all()[0] @ first.weight.T + first.bias) for examples in (problem.train, problem.queries)
        )
    assert_same(attribute(*problem, "embedding_cosine").values, cosines(queries, train), EXACT)


def test_embedding_cosine_of_a_linear_model_compares_inputs(regression, assert_same):
    problem = regression()
    wanted = cosines(problem.queries.all()[0], problem.train.all()[0])
    assert_same(attribute(*problem, "embedding_cosine").values, wanted, EXACT)


def test_a_given_embedding_is_used_and_flattened(regression, assert_same):
    problem = regression(embedding=lambda model, batch: torch.stack([batch[0] ** 2, batch[0] + 1], dim=1))
    train, queries = (
        torch.cat([x**2, x + 1], 1) for x in (examples.all()[0] for examples in (problem.train, problem.queries))
    )
    assert_same(attribute(*problem, "embedding_cosine").values, cosines(queries, train), EXACT)


def test_an_embedding_of_zero_scores_zero_and_blocks_do_not_matter(regression, monkeypatch):
    problem = regression(embedding=lambda model, batch: batch[0].clamp(min=0) * (batch[0][:, :1] > 0))
    values = attribute(*problem, "embedding_cosine").values
    silent = (problem.train.all()[0][:, 0] <= 0) | (problem.train.all()[0] <= 0).all(1)
    assert 0 < int(silent.sum()) < len(silent)
    assert bool((values[:, silent] == 0).all())
    monkeypatch.setattr("whence.methods.embedding_cosine.BATCH", 5)
    torch.testing.assert_close(attribute(*problem, "embedding_cosine").values, values, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("embed", "got"),
    [(lambda model, batch: batch[0][:, 0], r"\(4,\)"), (lambda model, batch: batch[0].reshape(-1, 1), r"\(12, 1\)")],
)
def test_an_embedding_without_a_row_for_each_example_is_refused(embed, got, regression):
    with pytest.raises(ShapeError, match=rf"of 4 examples must be \(4, d\); got {got}"):
        attribute(*regression(embedding=embed), "embedding_cosine")


class Scale(nn.Module):
    """A model without a linear layer, or with one that it does not use."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=F64))
        if unused:
            self.spare = nn.Linear(2, 2).double()

    def forward(self, x):
        return x[:, :1] * self.scale


@pytest.mark.parametrize(("unused", "message"), [(False, "no nn.Linear was found"), (True, "is not used")])
def test_without_a_linear_layer_an_embedding_is_asked_for(unused, message, regression):
    _, train, queries = regression()
    task = Task.regression(Scale(unused).eval())
    with pytest.raises(InputError, match=rf"{message}.*|`embedding=`.*{message}") as refusal:
        attribute(task, train, queries, "embedding_cosine")
    assert "embedding=" in str(refusal.value)
    # No hook is left behind on the model.
    assert not any(module._forward_pre_hooks for module in task.model.modules())
