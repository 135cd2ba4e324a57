"""K-FAC and EK-FAC against dense matrices built here, by plain autograd and hooks of the test's own."""

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import hessian, jacrev
from torch.testing import assert_close

import whence
from whence.algebra import Damping, damped_inverse, flow
from whence.algebra.dense import apply_filter_dense
from whence.curvature import fit_kronecker
from whence.curvature.kronecker import eigen, squares
from whence.data import Examples
from whence.errors import InputError, NonFiniteError, NumericalError, UnknownNameError, UnsupportedError
from whence.gradients import loss_gradients, measure_gradients
from whence.gradients import passes as gradient_passes
from whence.methods import attribute
from whence.rng import torch_generator
from whence.task import GroupWeights, ParameterGroups, Task
from whence.testing.problems import PROBLEMS, classifier, linear_regression, mlp_regression
from whence.training import Recipe

F64 = torch.float64
ROUNDING = 1e-10  # of the largest entry: sums in another order, and an eigen-decomposition there and back


def normal(name, *shape):
    return torch.randn(shape, generator=torch_generator(0, name), dtype=F64)


def assert_same(found, wanted, tolerance=ROUNDING):
    assert_close(found, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


def gauss_newton(problem):
    """Dense, and the rows v_ik^T J_i of each example and each root of its output Hessian: (n, r, n_params)."""
    task, batch = problem.task, problem.train.all()
    state = {name: p.detach() for name, p in task.model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in task.model.named_parameters() if not p.requires_grad}
    fixed |= dict(task.model.named_buffers())

    def outputs_of(parameters):
        return task.call({**parameters, **fixed}, batch)

    outputs = outputs_of(state).detach()
    jacobian = task.layout.flatten(jacrev(outputs_of)(state), n_leading=outputs.ndim).detach()
    hessians = torch.stack([v[:, i] for i, v in enumerate(hessian(lambda f: task.loss(f, batch).sum())(outputs))])
    values, vectors = torch.linalg.eigh(hessians.detach())
    roots = (vectors * values.clamp_min(0).sqrt()[:, None]).transpose(1, 2)  # (n, r, c)
    rows = roots @ jacobian
    return rows.flatten(0, 1).T @ rows.flatten(0, 1) / len(rows), rows


def dense_reference(problem, rows, corrected=True):
    """(E)K-FAC of a chain of `nn.Linear`, by its definition: inputs are caught by hooks, Kronecker products are formed.

    `rows` (n, r, n_params) are the gradients that stand for the curvature; the output gradients are their biases'.
    """
    model, layout, n = problem.task.model, problem.task.layout, len(problem.train)
    inputs, blocks = {}, []
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: inputs.update({name: x[0].detach()}))
        for name in linears
    ]
    problem.task.outputs(model, problem.train.all())
    for handle in handles:
        handle.remove()
    named = layout.unflatten(rows)
    for name in linears:
        a = torch.cat([inputs[name], torch.ones(n, 1, dtype=F64)], 1)
        g = named[f"{name}.bias"]
        gradients = torch.cat([named[f"{name}.weight"], g[..., None]], -1)  # (n, r, o, i + 1)
        values_a, u_a = torch.linalg.eigh(a.T @ a / n)
        values_g, u_g = torch.linalg.eigh(torch.einsum("nro,nrp->op", g, g) / n)
        measured = (u_g.T @ gradients @ u_a).square().sum((0, 1)) / n
        eigenvalues = measured if corrected else torch.outer(values_g, values_a)
        basis = torch.kron(u_g, u_a)  # of matrices (o, i + 1) read row by row
        blocks.append(basis @ torch.diag(eigenvalues.flatten()) @ basis.T)
    order = torch.cat([places(layout, name) for name in linears])
    dense = torch.zeros(layout.n_params, layout.n_params, dtype=F64)
    dense[order[:, None], order] = torch.block_diag(*blocks)
    return dense


def places(layout, name):
    """Where the entries of (weight, bias) of a layer, read row by row, lie in the flat vector."""
    at = layout.unflatten(torch.arange(layout.n_params)[None])
    return torch.cat([at[f"{name}.weight"][0], at[f"{name}.bias"][0][:, None]], 1).flatten()


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("make", [mlp_regression, classifier])
def test_with_exact_labels_it_equals_the_dense_definition(make, corrected):
    problem = make()
    _, rows = gauss_newton(problem)
    found = fit_kronecker(problem.task, problem.train, corrected=corrected)
    assert_same(found.to_dense(), dense_reference(problem, rows, corrected))
    assert found.facts == {"fisher": "exact", "kronecker_percent": 100.0, "diagonal": [], "other_eigensolver": []}


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("make", [mlp_regression, classifier])
def test_with_given_labels_it_equals_the_dense_definition(make, corrected):
    problem = make()
    rows = torch.cat([rows for _, rows in loss_gradients(problem.task, problem.train, path="loop")])
    found = fit_kronecker(problem.task, problem.train, fisher="empirical", corrected=corrected)
    assert_same(found.to_dense(), dense_reference(problem, rows[:, None], corrected))


def test_it_is_exact_for_linear_regression():
    problem = linear_regression()
    for corrected in (True, False):
        found = fit_kronecker(problem.task, problem.train, corrected=corrected)
        assert_same(found.to_dense(), problem.gauss_newton())


@pytest.mark.parametrize("name", sorted(set(PROBLEMS) - {"branching"}))
def test_trace_and_diagonal_parameters_are_those_of_the_gauss_newton_matrix(name):
    """For every kind of layer: the basis is orthogonal, so the measured squares add up to the trace of each layer."""
    problem = PROBLEMS[name]()
    dense, _ = gauss_newton(problem)
    found = fit_kronecker(problem.task, problem.train)
    at = problem.task.layout.unflatten(torch.arange(len(dense))[None])
    for layer in found.layers:
        own = torch.cat([at[part].flatten() for part in layer.site.names])
        assert float(layer.eigenvalues.sum()) == pytest.approx(float(dense[own, own].sum()), rel=1e-10)
    for part, values in found.diagonal.items():
        own = at[part].flatten()
        assert_same(values, dense.diagonal()[own])
    assert found.mean_eigenvalue == pytest.approx(float(dense.trace()) / len(dense), rel=1e-10)
    assert set(found.facts["diagonal"]) == set(found.diagonal)


def test_which_parameters_have_a_kronecker_form():
    diagonal = {
        name: tuple(fit_kronecker(problem.task, problem.train).facts["diagonal"])
        for name, problem in ((name, PROBLEMS[name]()) for name in ("mlp", "conv", "shared", "embedding", "tied"))
    }
    assert diagonal["mlp"] == diagonal["conv"] == diagonal["shared"] == ()
    assert len(diagonal["embedding"]) == 1
    assert len(diagonal["tied"]) >= 1  # the embedding and the head are one tensor


class Fed(nn.Module):
    """Layers with a bias, or without one and fed (x, 1)."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias
        self.first, self.second = (nn.Linear(i if bias else i + 1, o, bias=bias).double() for i, o in ((3, 4), (4, 2)))

    def forward(self, x):
        return self.second(self.fed(torch.tanh(self.first(self.fed(x)))))

    def fed(self, x):
        return x if self.bias else torch.cat([x, torch.ones_like(x[:, :1])], 1)


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_a_bias_is_an_input_that_is_always_one(method):
    with_bias, without = Fed(True).eval(), Fed(False).eval()
    with torch.no_grad():
        for name in ("first", "second"):
            layer = with_bias.get_submodule(name)
            without.get_submodule(name).weight.copy_(torch.cat([layer.weight, layer.bias[:, None]], 1))
    train, queries = (Examples((normal(f"x{n}", n, 3), normal(f"y{n}", n, 2))) for n in (12, 3))
    scores = [attribute(Task.regression(model), train, queries, method).values for model in (with_bias, without)]
    assert_same(*scores)


@pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("name", ["mlp", "classifier", "conv"])
def test_how_the_train_set_is_split_changes_nothing(monkeypatch, name, fisher):
    problem = PROBLEMS[name]()
    whole = fit_kronecker(problem.task, problem.train, fisher=fisher, seed=3)
    monkeypatch.setattr(gradient_passes.blocks, "__kwdefaults__", {"size": 5})
    split = fit_kronecker(problem.task, problem.train, fisher=fisher, seed=3)
    assert_same(split.to_dense(), whole.to_dense())


def test_the_order_of_the_train_set_changes_nothing():
    problem = classifier()
    turned = problem.train.subset(list(range(len(problem.train)))[::-1])
    for fisher in ("exact", "empirical"):
        one, other = (fit_kronecker(problem.task, part, fisher=fisher) for part in (problem.train, turned))
        assert_same(one.to_dense(), other.to_dense())


def test_drawn_labels_average_to_all_labels():
    problem = classifier(n_train=40)
    exact = fit_kronecker(problem.task, problem.train).eigenvalues.sum()
    traces = torch.stack(
        [fit_kronecker(problem.task, problem.train, fisher="sampled", seed=s).eigenvalues.sum() for s in range(60)]
    )
    error = traces.std() / len(traces) ** 0.5
    assert float(error) > 0
    assert float((traces.mean() - exact).abs()) < 5 * float(error)
    again = fit_kronecker(problem.task, problem.train, fisher="sampled", seed=4)
    assert float(again.eigenvalues.sum()) == float(traces[4])


class MaskedMean(nn.Module):
    """Words, a layer at each, and the mean over those that are not padding."""

    def __init__(self):
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(6, 3), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        kept = x.ne(0).double()[..., None]
        return self.head((torch.tanh(self.layer(self.words(x))) * kept).sum(1) / kept.sum(1))


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_padding_changes_nothing(method):
    torch.manual_seed(0)
    task = Task.classification(MaskedMean().double().eval())
    words = torch.randint(1, 6, (12, 5), generator=torch_generator(0, "words"))
    words[::3, 3:] = 0
    labels = torch.arange(12) % 2
    longer = torch.cat([words, torch.zeros(12, 4, dtype=torch.long)], 1)
    scores = [
        attribute(task, Examples((x, labels)), Examples((x[:3], labels[:3])), method).values for x in (words, longer)
    ]
    assert_same(*scores)


@pytest.mark.parametrize("name", ["mlp", "classifier", "conv", "shared", "embedding", "scaled", "frozen"])
@pytest.mark.parametrize("filter", [damped_inverse(Damping.relative(0.3)), flow(2.0, weight_decay=0.1)])
def test_a_filter_applied_equals_that_of_the_dense_matrix(name, filter):
    problem = PROBLEMS[name]()
    found = fit_kronecker(problem.task, problem.train)
    rows = normal("rows", 3, problem.task.layout.n_params)
    used = found.resolve(filter)
    assert_same(found.apply(filter, rows), apply_filter_dense(found.to_dense(), used, rows), 1e-9)


def test_the_published_unit_of_damping():
    problem = classifier()
    rows = torch.cat([rows for _, rows in loss_gradients(problem.task, problem.train, path="loop")])
    used = fit_kronecker(problem.task, problem.train).resolve(damped_inverse(Damping.mean_square_gradient(10)))
    assert used.damping == pytest.approx(10 * float(rows.square().mean()), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 4),
    s=st.integers(1, 9),
    i=st.integers(1, 6),
    o=st.integers(1, 6),
    buffer=st.sampled_from([1, 2**20]),
)
def test_rotated_squares_are_those_of_rotated_gradients(n, s, i, o, buffer):
    a, g = normal("a", n, s, i), normal("g", n, s, o)
    u_a, u_g = (torch.linalg.qr(normal(name, d, d))[0] for name, d in (("ua", i), ("ug", o)))
    expected = (u_g.T @ torch.einsum("nso,nsi->noi", g, a) @ u_a).square().sum(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(squares, "BUFFER", buffer)
        assert_close(squares.rotated_squares(a, g, u_a, u_g), expected, rtol=1e-10, atol=1e-12)


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_a_second_solver_takes_over_and_is_named(monkeypatch):
    problem = mlp_regression()
    usual = fit_kronecker(problem.task, problem.train, fisher="empirical")

    def fails(matrix):
        raise torch._C._LinAlgError("linalg.eigh: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    found = fit_kronecker(problem.task, problem.train, fisher="empirical")
    assert found.facts["other_eigensolver"] == ["0.weight", "2.weight"]
    monkeypatch.undo()
    assert_same(found.to_dense(), usual.to_dense())


def test_eigenvectors_that_are_nan_are_not_used(monkeypatch):
    matrix = torch.diag(torch.tensor([2.0, 1.0], dtype=F64))
    nan = torch.full((2, 2), torch.nan, dtype=F64)
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: (nan[0], nan))
    found = eigen.eigen(matrix, "It")
    assert found.is_fallback
    assert found.values.tolist() == [1.0, 2.0]
    monkeypatch.setattr(scipy.linalg, "eigh", lambda m, driver: (nan[0].numpy(), nan.numpy()))
    with pytest.raises(NumericalError, match="Both eigensolvers gave NaN for It"):
        eigen.eigen(matrix, "It")


def test_a_layer_whose_moments_overflow_is_named():
    problem = mlp_regression(dtype=torch.float32)
    x, y = problem.train.all()
    x = x.clone()
    x[0, 0] = 1e30  # its square is beyond float32
    with torch.no_grad():
        problem.task.model[0].weight[:, 0] = 0
    with pytest.raises(NonFiniteError, match=r"inputs of '0\.weight' has NaN or infinite"):
        fit_kronecker(problem.task, Examples((x, y)))


def test_what_it_cannot_do_is_refused():
    problem = mlp_regression()
    with pytest.raises(UnknownNameError, match="Did you mean 'empirical'"):
        fit_kronecker(problem.task, problem.train, fisher="emprical")
    own = Task(problem.task.model, outputs=lambda m, b: m(b[0]), loss=lambda f, b: (f - b[1]).abs().sum(1))
    with pytest.raises(UnsupportedError, match="fisher='exact' needs"):
        fit_kronecker(own, problem.train)
    with pytest.raises(UnsupportedError, match="draw labels"):
        fit_kronecker(own, problem.train, fisher="sampled")
    assert fit_kronecker(own, problem.train, fisher="empirical").mean_eigenvalue > 0
    with pytest.raises(InputError, match="either `damping` or `filter`"):
        attribute(
            problem.task, problem.train, problem.queries, "ekfac", damping=Damping.absolute(1.0), filter=flow(1.0)
        )


class Turning(nn.Module):
    """Larger batches go another way."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.first(x) + self.second(x) if len(x) <= 3 else self.first(x) + self.second(x[:2]).sum()


def test_a_branch_on_the_data_is_refused():
    problem = PROBLEMS["branching"]()
    with pytest.raises(UnsupportedError, match="another way than for the first three"):
        fit_kronecker(problem.task, problem.train)


def test_a_model_that_goes_another_way_later_is_refused():
    task = Task.regression(Turning().double().eval())
    with pytest.raises(UnsupportedError, match="another way than for the first three"):
        fit_kronecker(task, Examples((normal("x", 9, 3), normal("y", 9, 2))))


def test_a_layer_that_no_gradient_reaches_has_no_curvature():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    problem = mlp_regression()
    found = fit_kronecker(Task.regression(Idle().double().eval()), problem.train)
    values = {layer.site.weight: float(layer.eigenvalues.abs().max()) for layer in found.layers}
    assert values["idle.weight"] == 0
    assert values["used.weight"] > 0


# --- the methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_scores_are_those_of_the_dense_formula(method):
    problem = classifier(measure="margin")
    dense = fit_kronecker(problem.task, problem.train, corrected=method == "ekfac").to_dense()
    rows = torch.cat([r for _, r in loss_gradients(problem.task, problem.train, path="loop")])
    shift = 0.1 * float(dense.trace()) / len(dense)
    a = measure_gradients(problem.task, problem.queries)  # a larger margin is better: o_q = -1
    expected = -a @ torch.linalg.solve(dense + shift * torch.eye(len(dense), dtype=F64), rows.T) / len(rows)
    found = attribute(problem.task, problem.train, problem.queries, method)
    assert found.unit == "margin"
    assert_same(found.values, expected, 1e-9)


def test_a_horizon_on_its_spectrum():
    problem = mlp_regression()
    recipe = Recipe(lr=0.02, batch_size=len(problem.train), epochs=7)
    found = attribute(problem.task, problem.train, problem.queries, "ekfac", filter=whence.horizon(recipe))
    dense = fit_kronecker(problem.task, problem.train).to_dense()
    b = torch.cat([rows for _, rows in loss_gradients(problem.task, problem.train, path="loop")])
    delta = torch.zeros_like(b)
    for _ in range(7):
        delta = delta - 0.02 * (delta @ dense - b)
    expected = measure_gradients(problem.task, problem.queries) @ delta.T / len(b)
    assert_same(found.values, expected, 1e-9)


def test_weights_of_groups_apply():
    problem = mlp_regression()
    groups = ParameterGroups.of(problem.task.layout)
    only = GroupWeights.only(groups, "0.weight")
    found = attribute(problem.task, problem.train, problem.queries, "ekfac", weights=only).values
    masked = measure_gradients(problem.task, problem.queries) * only.of_parameter(problem.task.layout)
    spectrum = fit_kronecker(problem.task, problem.train)
    rows = torch.cat([r for _, r in loss_gradients(problem.task, problem.train, path="loop")])
    expected = spectrum.apply(damped_inverse(Damping.relative(0.1)), masked) @ rows.T / len(rows)
    assert_same(found, expected, 1e-9)
