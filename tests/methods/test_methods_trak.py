"""TRAK with the final model and with checkpoints, against its formula in dense matrices."""

import copy

import pytest
import torch
from torch import nn
from torch.func import jacrev

from whence import Damping, attribute
from whence.algebra.projections import Projection
from whence.data import Examples
from whence.errors import DataError, InputError, NonFiniteError, NumericalError, UnknownNameError, UnsupportedError
from whence.methods.inputs import Inputs
from whence.methods.scoring import block_source
from whence.methods.trak import TRAK, trak
from whence.rng import derive_seed
from whence.scores import ScoreMatrix
from whence.task import GroupWeights, ParameterGroups, Task, fingerprint

F64 = torch.float64
SOLVED = 1e-9  # through an eigen-decomposition
SINGLE = 1e-5  # float32 gradients, their errors times the root of the Gram matrix's condition (seen: 2e-7)
RIDGE = Damping.relative(0.1)


def scores(problem, weights=None, **options):
    inputs = Inputs(*problem)
    inputs = inputs if weights is None else inputs.weighted(weights)
    return ScoreMatrix.from_blocks(block_source(TRAK, inputs, trak(inputs, **options)))


def state_of(task):
    return {name: p.detach() for name, p in task.model.named_parameters()}


def rows_of(tree, n_leading):
    return torch.cat([x.flatten(n_leading) for x in tree.values()], -1).detach()


def model_output(task, x, y, state):
    """f of every example, written without the library: (n, r)."""
    z = torch.func.functional_call(task.model, state, (x,))
    if y.is_floating_point():
        return z.flatten(1)
    p = z.softmax(1).gather(1, y[:, None])
    return torch.log(p / (1 - p))


def output_gradients(task, x, y):
    """(n, r, n_params)."""
    return rows_of(jacrev(lambda state: model_output(task, x, y, state))(state_of(task)), 2)


def loss_slopes(task, x, y):
    """l' (n, r) by hand."""
    z = task.model(x).detach()
    if y.is_floating_point():
        return (2 * (z - y) / z.flatten(1).shape[1]).flatten(1)
    return z.softmax(1).gather(1, y[:, None]) - 1


def measure_gradients(task, queries):
    def measures(state):
        return task.measure(torch.func.functional_call(task.model, state, (queries.all()[0],)), queries.all())

    return rows_of(jacrev(measures)(state_of(task)), 1)


def by_hand(problem, ridge=0.0, projection=None, weights=None):
    """(o_q / n) a_q^T P (P^T sum_i J_i^T J_i P / n + ridge I)^-1 P^T J_i^T l'_i; `ridge` times the mean eigenvalue."""
    task, train, queries = problem
    x, y = train.all()
    jacobian, a = output_gradients(task, x, y), measure_gradients(task, queries)
    a = a if weights is None else a * weights
    if projection is not None:
        jacobian, a = jacobian @ projection, a @ projection
    flat = jacobian.flatten(0, 1)
    gram = flat.T @ flat / len(x)
    gram = gram + ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=F64)
    b = torch.einsum("irp,ir->ip", jacobian, loss_slopes(task, x, y))
    return task.measure.orientation / len(x) * a @ torch.linalg.solve(gram, b.T)


def dense_projection(n_params, dim, seed=0, number=0):
    return Projection(n_params, dim, derive_seed(seed, "trak", number)).to_dense()


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [None, 2])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_regression_without_projection_is_the_dense_formula(hidden, n_outputs, regression, assert_same):
    problem = regression(n_train=40, hidden=hidden, n_outputs=n_outputs)
    assert_same(scores(problem, dim=None, ridge=RIDGE).values, by_hand(problem, ridge=0.1), SOLVED)
    if hidden is None:  # then the Gram matrix has an inverse
        assert_same(scores(problem, dim=None).values, by_hand(problem), SOLVED)


@pytest.mark.parametrize("measure", ["loss", "margin", "log_probability", "logit"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_classification_without_projection_is_the_dense_formula(measure, n_classes, classification, assert_same):
    problem = classification(hidden=4, measure=measure, n_classes=n_classes)
    assert_same(scores(problem, dim=None, ridge=RIDGE).values, by_hand(problem, ridge=0.1), SOLVED)


@pytest.mark.parametrize("build", ["regression", "classification"])
def test_projected_scores_are_the_formula_with_that_matrix(build, request, assert_same):
    problem = request.getfixturevalue(build)(n_train=30, hidden=4)
    n_params = problem.task.layout.n_params
    wanted = by_hand(problem, projection=dense_projection(n_params, 6, seed=3))
    assert_same(scores(problem, dim=6, seed=3).values, wanted, SOLVED)
    # More dimensions than examples need a ridge.
    wanted = by_hand(problem, ridge=0.1, projection=dense_projection(n_params, 50))
    assert_same(scores(problem, dim=50, ridge=RIDGE).values, wanted, SOLVED)


def by_tensor(problem, ridge, dim=None):
    """A sum over parameter tensors of the formula with that tensor's gradients alone."""
    layout = problem.task.layout
    total = 0
    for name, start, stop in zip(layout.names, layout.offsets, layout.offsets[1:], strict=False):
        columns = torch.eye(layout.n_params, dtype=F64)[:, start:stop]
        if dim is not None and stop - start > dim:
            own = Projection(stop - start, dim, derive_seed(0, "trak", 0, name)).to_dense()
            columns = columns @ own
        total = total + by_hand(problem, ridge=ridge, projection=columns)
    return total


@pytest.mark.parametrize("dim", [None, 5])
def test_each_tensor_may_have_an_inverse_of_its_own(dim, classification, assert_same):
    problem = classification(n_train=30, hidden=4)
    found = scores(problem, dim=dim, ridge=RIDGE, per_tensor=True)
    assert_same(found.values, by_tensor(problem, 0.1, dim), SOLVED)
    assert found.provenance["settings"]["per_tensor"] is True
    # Without cross terms a group's contribution is its own formula.
    layout = problem.task.layout
    groups = ParameterGroups.of(layout, "tensor")
    alone = [
        scores(problem, dim=dim, ridge=RIDGE, per_tensor=True, weights=GroupWeights.only(groups, name)).values
        for name in groups.names
    ]
    assert_same(sum(alone) / len(alone), by_tensor(problem, 0.1, dim), SOLVED)


def test_projections_of_tensors_are_averaged(classification, assert_same):
    problem = classification(n_train=30, hidden=4)
    several = scores(problem, dim=5, ridge=RIDGE, per_tensor=True, n_projections=2).values
    first = scores(problem, dim=5, ridge=RIDGE, per_tensor=True).values
    assert not torch.allclose(several, first)
    layout = problem.task.layout
    second = 0
    for name, start, stop in zip(layout.names, layout.offsets, layout.offsets[1:], strict=False):
        columns = torch.eye(layout.n_params, dtype=F64)[:, start:stop]
        if stop - start > 5:
            columns = columns @ Projection(stop - start, 5, derive_seed(0, "trak", 1, name)).to_dense()
        second = second + by_hand(problem, ridge=0.1, projection=columns)
    assert_same(several, (first + second) / 2, SOLVED)


def test_a_tensor_with_too_few_rows_is_refused_before_any_gradient(classification):
    problem = classification(n_train=8, hidden=4)
    with pytest.raises(NumericalError, match="Gram matrix is singular"):
        scores(problem, dim=512, per_tensor=True)


def test_a_margin_query_gets_the_published_scores(classification, assert_same):
    """phi_q^T (Phi^T Phi)^-1 Phi^T Q with Q = diag(1 - p_i): Park et al. (2023), with one model."""
    problem = classification(n_train=30, hidden=4, measure="margin")
    task, train, queries = problem
    projection = dense_projection(task.layout.n_params, 5)
    phi = output_gradients(task, *train.all())[:, 0] @ projection
    phi_q = output_gradients(task, *queries.all())[:, 0] @ projection
    p = task.model(train.all()[0]).softmax(1).gather(1, train.all()[1][:, None])[:, 0].detach()
    assert_same(scores(problem, dim=5).values, phi_q @ torch.linalg.solve(phi.T @ phi, phi.T) * (1 - p), SOLVED)


def test_loss_gradients_are_slope_times_output_gradient(classification, regression, dense, assert_same):
    """The chain rule by which the train side and the query side are read from ordinary gradients."""
    for problem in (classification(hidden=4), regression(hidden=4, n_outputs=2)):
        x, y = problem.train.all()
        product = torch.einsum("irp,ir->ip", output_gradients(problem.task, x, y), loss_slopes(problem.task, x, y))
        assert_same(product, dense(problem).losses, 1e-12)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_squared_error_is_influence_in_another_unit(n_outputs, regression, assert_same):
    """The Hessian of the loss in the outputs is 2 / c there, and TRAK leaves it out."""
    problem = regression(hidden=4, n_outputs=n_outputs)
    wanted = 2 / n_outputs * attribute(*problem, "influence_gn", damping=RIDGE).values
    assert_same(scores(problem, dim=None, ridge=RIDGE).values, wanted, SOLVED)


def test_many_dimensions_come_near_no_projection(regression):
    problem = regression(n_train=20, hidden=3)
    exact = scores(problem, dim=None, ridge=Damping.absolute(0.5)).values
    found = scores(problem, dim=600, ridge=Damping.absolute(0.5)).values
    # A product of projected rows has a relative error of about sqrt(2 / dim) = .06.
    assert float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)) > 0.99


def one_by_one(problem, ridge):
    """TRAK of a classifier for the measure "loss" without projection: one backward pass an example."""
    task, train, queries = problem
    parameters = list(task.model.parameters())

    def gradients(rows, number):
        x, y = rows.all()
        each = [torch.autograd.grad(number(task.model(x[i : i + 1])[0], y[i]), parameters) for i in range(len(x))]
        return torch.stack([torch.cat([g.flatten() for g in found]) for found in each])

    phi = gradients(train, lambda z, label: z[label] - z[torch.arange(len(z)) != label].logsumexp(0))
    a = gradients(queries, lambda z, label: z.logsumexp(0) - z[label])
    x, y = train.all()
    slope = task.model(x).detach().softmax(1)[range(len(x)), y] - 1
    gram = phi.T @ phi / len(x)
    gram += ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=F64)
    return a @ torch.linalg.solve(gram, (phi * slope[:, None]).T) / len(x)


def test_float32_scores_without_projection_follow_a_float64_reference(classification, assert_same):
    problem = classification(n_train=40, hidden=4)
    wanted = one_by_one(problem, ridge=0.1)
    assert_same(scores(problem, dim=None, ridge=RIDGE).values, wanted, SOLVED)
    model = copy.deepcopy(problem.task.model).float()
    single = (Task.classification(model), *(rows.to(dtype=torch.float32) for rows in (problem.train, problem.queries)))
    found = scores(single, dim=None, ridge=RIDGE).values.double()
    for a, b in zip(found, wanted, strict=True):
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.999


# --- signs ------------------------------------------------------------------------------------------------------------


def with_copies(problem):
    """The queries are put into the train set, so that example n + q is query q."""
    task, train, queries = problem
    rows = tuple(torch.cat([a, b]) for a, b in zip(train.all(), queries.all(), strict=True))
    return task, Examples(rows), queries


@pytest.mark.parametrize("measure", ["loss", "margin", "log_probability"])
def test_a_copy_of_the_query_supports_it_classification(measure, classification):
    task, train, queries = with_copies(classification(n_train=30, hidden=4, measure=measure))
    values = scores((task, train, queries), dim=6).values
    assert bool((values[:, 30:].diagonal() > 0).all())
    # The same input with another label opposes it: two classes, so that its gradient has the opposite direction.
    task, train, queries = with_copies(classification(n_train=30, n_classes=2, hidden=4, measure=measure))
    x, y = train.all()
    flipped = Examples((x, torch.cat([y[:30], 1 - y[30:]])))
    assert bool((scores((task, flipped, queries), dim=6).values[:, 30:].diagonal() < 0).all())


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_copy_of_the_query_supports_it_regression(n_outputs, regression):
    problem = with_copies(regression(n_train=30, hidden=4, n_outputs=n_outputs))
    assert bool((scores(problem, dim=6).values[:, 30:].diagonal() > 0).all())


def test_signs_agree_with_refitting_a_linear_model(regression):
    """At the least-squares solution leaving out is known exactly, and TRAK is its derivative in another unit."""
    task, train, queries = regression(n_train=25)
    (x, y), (xq, yq) = train.all(), queries.all()

    def fit(rows):
        design = torch.cat([x[rows], torch.ones(len(rows), 1, dtype=F64)], 1)
        return torch.linalg.lstsq(design, y[rows]).solution

    def losses(solution):
        return ((torch.cat([xq, torch.ones(len(xq), 1, dtype=F64)], 1) @ solution) - yq).square()[:, 0]

    solution = fit(list(range(25)))
    with torch.no_grad():
        task.model.weight.copy_(solution[:3].T)
        task.model.bias.copy_(solution[3])
    truth = torch.stack([losses(fit([j for j in range(25) if j != i])) - losses(solution) for i in range(25)], 1)
    found = scores((task, train, queries), dim=None).values
    for a, b in zip(found, truth, strict=True):
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.95


# --- checkpoints ------------------------------------------------------------------------------------------------------


def states_of(task, n, scale=0.3):
    """State dicts around the final model, as other runs would leave them."""
    found = []
    for k in range(n):
        generator = torch.Generator().manual_seed(k)
        noise = {
            name: torch.randn(x.shape, generator=generator, dtype=F64) for name, x in task.model.named_parameters()
        }
        found.append({name: x + scale * noise[name] for name, x in task.model.state_dict().items()})
    return found


def task_at(task, state):
    model = copy.deepcopy(task.model)
    model.load_state_dict(state)
    return task.with_model(model)


def over_models(problem, states, projections, ridge=0.0, weights=None):
    """(o_q / n) sum_r mean_c(l'_ir) mean_cj(a_q^T P (P^T sum_i J_i^T J_i P / n + ridge I)^-1 P^T J_ir^T).

    `projections` has the matrices of each checkpoint.
    """
    task, train, queries = problem
    x, y = train.all()
    products, slopes = [], []
    for state, own in zip(states, projections, strict=True):
        here = task_at(task, state)
        slopes.append(loss_slopes(here, x, y))
        for p in own:
            a = measure_gradients(here, queries) * (1.0 if weights is None else weights) @ p
            phi = output_gradients(here, x, y) @ p
            flat = phi.flatten(0, 1)
            gram = flat.T @ flat / len(x)
            gram = gram + ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=F64)
            products.append(torch.einsum("qk,irk->qir", torch.linalg.solve(gram, a.T).T, phi))
    mean = torch.stack(products).mean(0)
    return task.measure.orientation / len(x) * torch.einsum("qir,ir->qi", mean, torch.stack(slopes).mean(0))


def matrices(problem, dim, seed, n_models, n_each=1):
    n_params = problem.task.layout.n_params
    return [[dense_projection(n_params, dim, seed, c * n_each + j) for j in range(n_each)] for c in range(n_models)]


@pytest.mark.parametrize("build", ["regression", "classification"])
@pytest.mark.parametrize("n_projections", [1, 2])
def test_checkpoints_average_products_and_loss_slopes_by_themselves(build, n_projections, request, assert_same):
    options = {"n_outputs": 2} if build == "regression" else {}
    problem = request.getfixturevalue(build)(n_train=30, hidden=4, **options)
    states = states_of(problem.task, 3)
    projections = matrices(problem, 6, 3, 3, n_projections)
    wanted = over_models(problem, states, projections)
    found = scores(problem, dim=6, seed=3, n_projections=n_projections, checkpoints=states)
    assert_same(found.values, wanted, SOLVED)
    assert found.unit is None
    assert len(found.provenance["settings"]["resolved_ridge"]) == 3 * n_projections
    # It is not the mean of the scores of each model.
    each = torch.stack([over_models(problem, [s], [p]) for s, p in zip(states, projections, strict=True)])
    assert float((each.mean(0) - wanted).abs().max() / wanted.abs().max()) > 0.01


def test_a_margin_query_gets_the_published_scores_of_several_models(classification, assert_same):
    """Park et al. (2023), eq. (17): (1/M sum phi_q^T (Phi^T Phi)^-1 Phi^T) (1/M sum Q), Q = diag(1 - p_i)."""
    problem = classification(n_train=30, hidden=4, measure="margin")
    task, train, queries = problem
    states = states_of(task, 2)
    rows, q = [], []
    for state, (p,) in zip(states, matrices(problem, 5, 0, 2), strict=True):
        here = task_at(task, state)
        phi, phi_q = (output_gradients(here, *x.all())[:, 0] @ p for x in (train, queries))
        rows.append(phi_q @ torch.linalg.inv(phi.T @ phi) @ phi.T)
        q.append(1 - here.model(train.all()[0]).softmax(1).gather(1, train.all()[1][:, None])[:, 0].detach())
    wanted = sum(rows) / 2 * (sum(q) / 2)
    assert_same(scores(problem, dim=5, checkpoints=states).values, wanted, SOLVED)


def test_the_final_model_as_a_checkpoint_is_no_checkpoint(classification, assert_same):
    problem = classification(n_train=30, hidden=4)
    found = scores(problem, dim=5, ridge=RIDGE, checkpoints=[problem.task.model.state_dict()])
    wanted = scores(problem, dim=5, ridge=RIDGE)
    assert_same(found.values, wanted.values, SOLVED)
    assert wanted.provenance["settings"]["checkpoints"] is None
    (mark,) = found.provenance["settings"]["checkpoints"]
    assert mark["fingerprint"] == fingerprint(problem.task.model)


def test_checkpoints_without_projection(regression, monkeypatch, assert_same):
    problem = regression(n_train=30, hidden=3, n_outputs=2)
    states = states_of(problem.task, 2)
    same = torch.eye(problem.task.layout.n_params, dtype=F64)
    wanted = over_models(problem, states, [[same], [same]], ridge=0.1)
    assert_same(scores(problem, dim=None, ridge=RIDGE, checkpoints=states).values, wanted, SOLVED)
    monkeypatch.setattr("whence.gradients.rows.chunk_size", lambda *_: 7)
    assert_same(scores(problem, dim=None, ridge=RIDGE, checkpoints=states).values, wanted, SOLVED)


def test_group_weights_apply_at_every_checkpoint(regression, assert_same):
    problem = regression(n_train=30, hidden=4)
    layout, states = problem.task.layout, states_of(problem.task, 2)
    groups = ParameterGroups.of(layout, "tensor")
    weights = GroupWeights(torch.tensor([0.0, 2.0, 1.0, 1.0], dtype=F64), groups)
    flat = weights.of_parameter(layout).to(F64)
    wanted = over_models(problem, states, matrices(problem, 6, 0, 2), weights=flat)
    assert_same(scores(problem, weights, dim=6, checkpoints=states).values, wanted, SOLVED)


def test_a_ridge_in_squared_gradients_is_that_of_each_checkpoint(classification):
    problem = classification(n_train=30, hidden=4)
    states = states_of(problem.task, 2)
    damping = Damping.mean_square_gradient(2.0)
    found = scores(problem, dim=5, ridge=damping, checkpoints=states).provenance["settings"]["resolved_ridge"]
    for k, (state, (p,)) in enumerate(zip(states, matrices(problem, 5, 0, 2), strict=True)):
        here, (x, y) = task_at(problem.task, state), problem.train.all()
        b = torch.einsum("irk,ir->ik", output_gradients(here, x, y) @ p, loss_slopes(here, x, y))
        assert found[k] == pytest.approx(2.0 * float(b.square().mean()), rel=SOLVED)


def test_checkpoints_are_read_from_files_and_the_model_stays(classification, tmp_path):
    problem = classification(n_train=30, hidden=4)
    states, before = states_of(problem.task, 2), fingerprint(problem.task.model)
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for state, path in zip(states, paths, strict=True):
        torch.save(state, path)
    found = scores(problem, dim=5, checkpoints=paths)
    assert torch.equal(found.values, scores(problem, dim=5, checkpoints=states).values)
    assert [mark["checkpoint"] for mark in found.provenance["settings"]["checkpoints"]] == [str(p) for p in paths]
    assert fingerprint(problem.task.model) == before


def test_bad_checkpoints_are_refused_before_any_gradient(classification, tmp_path, monkeypatch):
    problem = classification(n_train=30, hidden=4)
    monkeypatch.setattr("whence.methods.trak_features.pull_back", lambda *_, **__: pytest.fail("gradients"))
    good, other = states_of(problem.task, 2)
    other["0.weight"] = other["0.weight"] * float("nan")
    with pytest.raises(InputError, match="must be a list of state dicts"):
        scores(problem, dim=5, checkpoints=good)
    with pytest.raises(InputError, match="must be a list of state dicts"):
        scores(problem, dim=5, checkpoints=[])
    with pytest.raises(InputError, match="Checkpoint 1"):
        scores(problem, dim=5, checkpoints=[good, {}])
    with pytest.raises(DataError, match="Checkpoint 1"):
        scores(problem, dim=5, checkpoints=[good, tmp_path / "none.pt"])
    with pytest.raises(NonFiniteError):
        scores(problem, dim=5, checkpoints=[good, other])


# --- seeds, splitting, weights ----------------------------------------------------------------------------------------


def test_several_projections_are_averaged_and_the_seed_decides(classification, assert_same):
    problem = classification(n_train=30, hidden=4)
    n_params = problem.task.layout.n_params
    wanted = sum(by_hand(problem, projection=dense_projection(n_params, 5, 2, k)) for k in range(3)) / 3
    assert_same(scores(problem, dim=5, seed=2, n_projections=3).values, wanted, SOLVED)
    first = scores(problem, dim=5, seed=2).values
    torch.manual_seed(1)  # no global state
    assert torch.equal(first, scores(problem, dim=5, seed=2).values)
    assert not torch.equal(first, scores(problem, dim=5, seed=3).values)
    assert not torch.equal(first, scores(problem, dim=5, seed=2, projection="normal").values)


@pytest.mark.parametrize("options", [{"dim": 5, "n_projections": 2}, {"dim": None, "ridge": RIDGE}])
def test_blocks_of_the_train_set_do_not_matter(options, classification, monkeypatch, assert_same):
    problem = classification(n_train=30, hidden=4)
    wanted = scores(problem, **options).values
    monkeypatch.setattr("whence.gradients.rows.chunk_size", lambda *_: 7)
    source = block_source(TRAK, Inputs(*problem), trak(Inputs(*problem), **options))
    assert [block.train_slice.stop for block in source] == [7, 14, 21, 28, 30]
    assert_same(ScoreMatrix.from_blocks(source).values, wanted, SOLVED)


def test_group_weights_are_put_on_the_query_before_the_projection(regression, assert_same):
    problem = regression(n_train=30, hidden=4)
    layout = problem.task.layout
    groups = ParameterGroups.of(layout, "tensor")
    weights = GroupWeights(torch.tensor([0.0, 2.0, 1.0, 1.0], dtype=F64), groups)
    wanted = by_hand(
        problem, projection=dense_projection(layout.n_params, 6), weights=weights.of_parameter(layout).to(F64)
    )
    found = scores(problem, weights, dim=6)
    assert_same(found.values, wanted, SOLVED)
    # What each group gives adds up to the whole.
    inputs = Inputs(*problem)
    (block,) = trak(inputs.by_group(groups), dim=6).blocks()
    assert_same(block.values.reshape(4, 4, 30).sum(1), scores(problem, dim=6).values, SOLVED)


def test_it_only_ranks_and_says_what_it_did(classification):
    found = scores(classification(n_train=30, hidden=4), dim=5, seed=2, ridge=RIDGE)
    assert found.unit is None
    settings = found.provenance["settings"]
    assert settings["dim"] == 5
    assert settings["seed"] == 2
    assert settings["model_output"] == "margin"
    assert settings["ridge"] == {"value": 0.1, "unit": "relative"}
    assert settings["resolved_ridge"][0] > 0
    assert scores(classification(n_train=30, hidden=4), dim=5).provenance["settings"]["resolved_ridge"] == [0.0]


def test_float32_models_are_close_to_float64_ones(classification, assert_same):
    problem = classification(n_train=40, hidden=4)
    wanted = scores(problem, dim=5).values
    task = Task.classification(problem.task.model.float())
    try:
        found = scores((task, *(rows.to(dtype=torch.float32) for rows in (problem.train, problem.queries))), dim=5)
    finally:
        problem.task.model.double()
    assert_same(found.values.double(), wanted, SINGLE)


def test_outputs_without_a_second_dimension_are_one_output(regression, assert_same):
    problem = regression(n_train=20)
    flat = [Examples((rows.all()[0], rows.all()[1][:, 0])) for rows in (problem.train, problem.queries)]
    task = Task.regression(nn.Sequential(problem.task.model, nn.Flatten(0)).eval())
    assert_same(scores((task, *flat), dim=None).values, scores(problem, dim=None).values, SOLVED)


def test_a_ridge_in_squared_gradients_is_resolved(regression, assert_same):
    problem = regression(n_train=30, hidden=4)
    task, (x, y) = problem.task, problem.train.all()
    b = torch.einsum("irp,ir->ip", output_gradients(task, x, y), loss_slopes(task, x, y))
    wanted = scores(problem, dim=None, ridge=Damping.absolute(2.0 * float(b.square().mean()))).values
    assert_same(scores(problem, dim=None, ridge=Damping.mean_square_gradient(2.0)).values, wanted, SOLVED)


def test_a_query_or_train_example_without_gradient_scores_zero(regression):
    """Without a bias an input of zero has no gradient."""
    problem = regression(bias=False, n_train=12, n_query=3)
    x, y = problem.train.all()
    x = x.clone()
    x[2] = 0.0
    values = scores((problem.task, Examples((x, y)), problem.queries), dim=2).values
    assert bool((values[:, 2] == 0).all())
    assert int((values == 0).sum()) == 3


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [12, 13, 512])
def test_as_many_dimensions_as_examples_are_refused_before_any_gradient(dim, regression, monkeypatch):
    problem = regression(n_train=12, hidden=200)
    monkeypatch.setattr(
        "whence.methods.trak_features.pull_back", lambda *_, **__: pytest.fail("gradients were computed")
    )
    with pytest.raises(NumericalError, match=rf"dim = {dim} for n_train = 12.*well below 12, or `ridge="):
        scores(problem, dim=dim)


def test_more_dimensions_than_parameters_or_parameters_than_examples_are_refused(regression):
    with pytest.raises(NumericalError, match=r"dim = 5 for n_train = 12 and 4 parameters.*well below 5"):
        scores(regression(), dim=5)
    with pytest.raises(NumericalError, match=r"dim = None, that is 21 parameters for n_train = 12"):
        scores(regression(hidden=4), dim=None)


def test_each_output_of_a_regression_counts_as_a_row(regression):
    problem = regression(n_train=5, n_outputs=3)
    assert scores(problem, dim=8).values.shape == (4, 5)
    with pytest.raises(NumericalError, match=r"n_train = 5 with 3 outputs each"):
        scores(problem, dim=15, ridge=None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_singular_gram_matrix_is_refused_not_inverted(dtype, regression):
    """Forty examples, but only three different ones."""
    problem = regression(n_train=3, hidden=4)
    rows = tuple(x.repeat(14, 1)[:40].to(dtype) for x in problem.train.all())
    queries = problem.queries.to(dtype=dtype)
    task = Task.regression(problem.task.model.to(dtype))
    try:
        with pytest.raises(NumericalError, match=r"dim = 6 over n_train = 40 examples has rank 3.*smaller `dim`"):
            scores((task, Examples(rows), queries), dim=6)
        with pytest.raises(NumericalError, match="has rank 3"):
            scores((task, Examples(rows), queries), dim=6, ridge=Damping.absolute(1e-16))
        assert scores((task, Examples(rows), queries), dim=6, ridge=RIDGE).values.isfinite().all()
        assert scores((task, Examples(rows), queries), dim=2).values.isfinite().all()
    finally:
        problem.task.model.double()


def test_a_softmax_classifier_without_projection_needs_a_ridge(classification):
    """Its margins do not change when all logits move together: 3 + 1 directions of the last layer."""
    with pytest.raises(NumericalError, match=r"dim = 12 over n_train = 60 examples has rank 8"):
        scores(classification(n_train=60), dim=None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, InputError, "`dim` must be an integer of at least 1; got 0"),
        ({"dim": 2.5}, InputError, "`dim` must be an integer"),
        ({"dim": 2, "n_projections": 0}, InputError, "`n_projections` must be an integer of at least 1"),
        ({"dim": 2, "seed": -1}, InputError, "`seed` must be an integer of at least 0"),
        ({"dim": 2, "projection": "gaussian"}, UnknownNameError, "Known: normal, rademacher, sparse"),
        ({"dim": 2, "ridge": 0.1}, InputError, r"must be a `Damping`, a number with its unit; got 0\.1"),
        ({"dim": None, "n_projections": 2}, InputError, "asks for no projection, `n_projections=2` for several"),
    ],
)
def test_bad_options_are_refused(options, error, message, regression):
    with pytest.raises(error, match=message):
        scores(regression(), **options)


def test_too_many_parameters_without_projection_are_refused(regression, monkeypatch):
    monkeypatch.setattr("whence.methods.trak.MAX_UNPROJECTED", 3)
    with pytest.raises(InputError, match=r"Gram matrix of 4 x 4; up to 3 parameters .* Pass `dim`"):
        scores(regression(), dim=None)


def own_loss(outputs, batch):
    return (outputs - batch[1]).abs().sum(1)


def test_a_loss_of_several_outputs_without_known_output_is_refused(regression):
    problem = regression(n_outputs=2)
    task = Task(problem.task.model, outputs=problem.task.outputs, loss=own_loss)
    with pytest.raises(
        UnsupportedError, match=r"'own_loss' of 2 outputs none is known.*Task\.classification.*grad_dot"
    ):
        scores((task, problem.train, problem.queries), dim=2)


def test_any_loss_of_one_output_has_one(regression, assert_same):
    """|z - y| has the slope of the sign."""
    problem = regression(n_train=20)
    task = Task(problem.task.model, outputs=problem.task.outputs, loss=own_loss)
    x, y = problem.train.all()
    phi, sign = output_gradients(task, x, y)[:, 0], torch.sign(task.model(x) - y)[:, 0].detach()
    a = measure_gradients(task, problem.queries)
    wanted = a @ torch.linalg.solve(phi.T @ phi, (phi * sign[:, None]).T)
    assert_same(scores((task, problem.train, problem.queries), dim=None).values, wanted, SOLVED)


def test_a_confident_example_keeps_its_slope():
    """1 - p rounds to 0 in float64 where the margin is 40; its score does not."""
    model = nn.Linear(1, 2, bias=False).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[20.0], [-20.0]]))
    x = torch.tensor([[1.0], [1.0], [-0.01]], dtype=F64)
    train = Examples((x, torch.tensor([0, 1, 0])))
    queries = Examples((torch.tensor([[0.02]], dtype=F64), torch.tensor([0])))
    values = scores((Task.classification(model), train, queries), dim=1, projection="normal").values
    assert 0 < float(values[0, 0]) < 1e-15
    assert float(values[0, 1]) < 0
