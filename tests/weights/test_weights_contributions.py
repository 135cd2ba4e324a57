"""Contributions: scores taken apart by parameter groups add up to the scores, for every method that is linear."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.testing import assert_close

from whence.algebra import Damping, damped_inverse
from whence.data import Examples
from whence.errors import (
    DamagedShardError,
    InputError,
    NonFiniteError,
    ShapeError,
    StoreError,
    StoreMismatchError,
    UnknownNameError,
)
from whence.methods import METHODS, Inputs, attribute, self_influence
from whence.scores import ScoreMatrix
from whence.task import GroupWeights, ParameterGroups, Task
from whence.testing.problems import PROBLEMS, SmallProblem, classifier, mlp_regression
from whence.training import Recipe
from whence.weights import Contributions, contributions, contributions_with

F64 = torch.float64
# Of the largest score: sums in another order, through an eigen-decomposition or 1e-10 of conjugate gradients.
REORDERED = 1e-8
RECIPE = Recipe(lr=0.05, batch_size=5, epochs=4)  # 3 steps an epoch of 14 examples
CASES = {
    "grad_dot": ("grad_dot", {}),
    "gn dual": ("influence_gn", {"form": "dual"}),
    "gn primal": ("influence_gn", {"form": "primal"}),
    "gn krylov": ("influence_gn", {"form": "krylov"}),
    "hessian": ("influence_hessian", {"damping": Damping.absolute(2.0)}),
    "cg": ("influence_cg", {"tolerance": 1e-10}),
    "horizon": ("horizon", {"recipe": RECIPE}),
    "ahead, exact": ("horizon_ahead", {"recipe": RECIPE, "look_ahead": "exact"}),
    "ahead, both shifts": ("horizon_ahead", {"recipe": RECIPE, "look_ahead": "both_shifts"}),
    "unrolled": ("unrolled", {"recipe": RECIPE}),
    "lissa": ("lissa", {"depth": 100}),
    "lissa, hessian": ("lissa_hessian", {"damping": Damping.absolute(4.0), "depth": 20}),
    "datainf": ("datainf", {}),
    "fisher": ("influence_fisher", {"fisher": "empirical"}),
    "arnoldi": ("arnoldi", {"rank": 12, "n_iterations": 38}),
    "kfac": ("kfac", {}),
    "ekfac": ("ekfac", {}),
    "trak": ("trak", {"dim": 4, "n_projections": 2}),
    "logra": ("logra", {"rank": 3}),
    "trackstar": ("trackstar", {"rank": 3, "mixture": 0.0}),  # otherwise scores depend on the queries beside them
    "tracin": ("tracin", {"checkpoints": [classifier().task.model.state_dict()]}),
}
NOT_LINEAR = ("grad_cos", "embedding_cosine", "representer", "random")
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def parts(problem):
    return problem.task, problem.train, problem.queries


def of_case(problem, case, **options):
    method, own = CASES[case]
    return contributions(*parts(problem), method, **own, **options)


def scores_of_case(problem, case, **options):
    method, own = CASES[case]
    return attribute(*parts(problem), method, **own, **options)


def groups_of(problem, grouping="tensor"):
    return ParameterGroups.of(problem.task.layout, grouping)


def uneven(groups, name="uneven"):
    return GroupWeights(torch.tensor([0.0, 3.0, 0.5, 1.25, 2.0, 0.1, 0.7])[: len(groups)], groups, name)


def facts(provenance):
    """Without what conjugate gradients tell of their own course: other right-hand sides take another one."""
    own = {k: v for k, v in provenance["settings"].items() if k not in ("iterations", "worst_relative_residual")}
    return {**provenance, "settings": own}


def assert_same(found, wanted):
    assert found.shape == wanted.shape
    assert_close(found, wanted, rtol=0, atol=REORDERED * float(wanted.abs().max()))


def never(*_, **__):
    raise AssertionError("the model was run")


def deep():
    """Regression with two blocks and a head: tensor, module and block are three different groupings."""
    widths = ((3, 4), (4, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(i, o), nn.Tanh(), nn.Linear(o, o), nn.Tanh()) for i, o in widths]
        model = nn.Sequential(OrderedDict(layers=nn.Sequential(*layers), head=nn.Linear(3, 1))).double().eval()
        x, y = torch.randn(14, 3, dtype=F64), torch.randn(14, 1, dtype=F64)
    whole = Examples((x, y))
    return SmallProblem(Task.regression(model), whole.subset(range(10)), whole.subset(range(10, 14)))


# --- they add up ------------------------------------------------------------------------------------------------------


def test_every_linear_method_is_tested():
    assert {method for method, _ in CASES.values()} == {name for name, one in METHODS.items() if one.linear_in_w}
    assert set(METHODS) == {method for method, _ in CASES.values()} | set(NOT_LINEAR)


@EVERY_CASE
@pytest.mark.parametrize("measure", ["loss", "margin"])
def test_groups_add_up_to_the_unweighted_scores(case, measure):
    problem = classifier(measure=measure)
    found = of_case(problem, case)
    wanted = scores_of_case(problem, case)
    assert found.values.shape == (4, 14, 4)
    assert found.values.dtype == F64
    assert_same(found.scores().values, wanted.values)
    assert found.orientation == (1.0 if measure == "loss" else -1.0)
    for name in ("query_ids", "train_ids", "method", "unit"):
        assert getattr(found, name) == getattr(wanted, name) == getattr(found.scores(), name)
    assert torch.equal(found.scores().orientation, wanted.orientation)
    assert facts(found.provenance) == facts(wanted.provenance)


@EVERY_CASE
def test_one_group_alone_is_its_slice(case):
    problem = classifier()
    found = of_case(problem, case)
    for j, name in enumerate(found.groups.names):
        alone = GroupWeights.only(found.groups, name)  # weight n_groups on this one: the mean is 1
        wanted = len(found.groups) * found.values[:, :, j]
        assert_close(found.scores(alone).values, wanted, rtol=0, atol=0)
        assert_same(scores_of_case(problem, case, weights=alone).values, wanted)


@EVERY_CASE
@pytest.mark.parametrize("measure", ["loss", "margin"])
def test_weighting_the_query_first_is_weighting_the_contributions(case, measure):
    problem = classifier(measure=measure)
    found = of_case(problem, case)
    weights = uneven(found.groups)
    wanted = torch.einsum("qij,j->qi", found.values, weights.values)
    assert_close(found.scores(weights).values, wanted)
    assert_same(scores_of_case(problem, case, weights=weights).values, wanted)


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_groups_add_up_for_every_kind_of_network(name):
    problem = PROBLEMS[name]()
    found = contributions(*parts(problem))
    assert found.groups.names == problem.task.layout.names
    assert_same(found.scores().values, attribute(*parts(problem), "grad_dot").values)


# --- against dense matrices -------------------------------------------------------------------------------------------


def dense(problem):
    """Gradients of the margins (m, p) and losses (n, p), and the Gauss-Newton matrix (p, p), by `torch.func`."""
    model, (x, y), (x_query, y_query) = problem.task.model, problem.train.all(), problem.queries.all()
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def outputs(flat, x):
        pieces = flat.split([p.numel() for p in named.values()])
        state = {name: piece.reshape(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return functional_call(model, state, (x,))

    def margins(flat):
        logits = outputs(flat, x_query)
        own = logits.gather(1, y_query[:, None])[:, 0]
        others = logits.scatter(1, y_query[:, None], -torch.inf)
        return own - others.logsumexp(1)

    def losses(flat):
        return nn.functional.cross_entropy(outputs(flat, x), y, reduction="none")

    now, jacobian = outputs(flat, x), jacrev(outputs)(flat, x)
    curved = [
        hessian(lambda z, t=t: nn.functional.cross_entropy(z, t))(z) for z, t in zip(now, y.unbind(), strict=True)
    ]
    matrix = torch.einsum("iap,iab,ibq->pq", jacobian, torch.stack(curved), jacobian) / len(x)
    return jacrev(margins)(flat).detach(), jacrev(losses)(flat).detach(), matrix.detach()


@pytest.mark.parametrize("case", ["grad_dot", "gn dual", "gn primal", "gn krylov", "cg", "horizon"])
def test_contributions_are_masked_dense_products(case):
    problem = classifier(measure="margin")
    queries, losses, matrix = dense(problem)
    n, eye = len(losses), torch.eye(len(matrix), dtype=F64)
    if case == "grad_dot":
        filtered = eye
    elif case == "horizon":
        filtered = sum(0.05 * torch.linalg.matrix_power(eye - 0.05 * matrix, t) for t in range(12)) / n
    else:
        filtered = torch.linalg.inv(matrix + 0.1 * matrix.trace() / len(matrix) * eye) / n
    wanted = torch.zeros(4, 14, 4, dtype=F64)
    for j, place in enumerate([range(15), range(15, 20), range(20, 35), range(35, 38)]):
        mask = torch.zeros(38, dtype=F64)
        mask[place] = 1
        wanted[:, :, j] = -1 * (queries * mask) @ filtered @ losses.T  # a higher margin is better
    assert_same(of_case(problem, case).values, wanted)


# --- groupings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grouping, names",
    [
        ("module", ["layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2", "head"]),
        ("block", ["layers.0", "layers.1", "head"]),
        (lambda name: name.rpartition(".")[2], ["weight", "bias"]),
    ],
)
def test_coarser_groups_are_sums_of_tensors(grouping, names):
    problem = deep()
    fine, coarse = contributions(*parts(problem)), contributions(*parts(problem), groups=grouping)
    assert list(coarse.groups.names) == names
    owner = torch.tensor(coarse.groups.of_tensor)
    wanted = torch.stack([fine.values[:, :, owner == j].sum(-1) for j in range(len(names))], dim=-1)
    assert_same(coarse.values, wanted)
    weights = uneven(coarse.groups)
    assert_same(attribute(*parts(problem), "grad_dot", weights=weights).values, coarse.scores(weights).values)


@pytest.mark.parametrize("case", ["grad_dot", "gn dual", "ahead, exact"])
def test_permuted_groups_give_permuted_contributions(case):
    problem = classifier()
    own, order = groups_of(problem), [2, 0, 3, 1]
    permuted = ParameterGroups(
        names=tuple(own.names[j] for j in order),
        of_tensor=tuple(order.index(j) for j in own.of_tensor),
        sizes=tuple(own.sizes[j] for j in order),
        tensors=own.tensors,
    )
    assert_same(of_case(problem, case, groups=permuted).values, of_case(problem, case).values[:, :, order])


def test_an_unknown_grouping_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'module'"):
        contributions(*parts(classifier()), groups="modul")


# --- blocks of queries ------------------------------------------------------------------------------------------------


@EVERY_CASE
def test_query_blocks_change_nothing(case, monkeypatch):
    problem = classifier(n_query=5)
    whole = of_case(problem, case)
    bytes_of_a_query = 4 * 38 * 8  # groups x parameters x float64
    monkeypatch.setattr("whence.weights.by_group.QUERY_ROWS", 2 * bytes_of_a_query + 1)
    sizes, with_queries = [], Inputs.with_queries
    monkeypatch.setattr(Inputs, "with_queries", lambda self, q: sizes.append(len(q)) or with_queries(self, q))
    blocks = of_case(problem, case)
    assert sizes == [2, 2, 1]
    assert_same(blocks.values, whole.values)
    assert blocks.query_ids == whole.query_ids
    assert facts(blocks.provenance) == facts(whole.provenance)


def test_query_blocks_and_later_queries_share_one_curvature(monkeypatch):
    problem = classifier(n_query=5)
    from whence.methods import inputs as room

    fitted, fit = [], room.fit_gauss_newton
    monkeypatch.setattr(room, "fit_gauss_newton", lambda *args, **kw: fitted.append(1) or fit(*args, **kw))
    monkeypatch.setattr("whence.weights.by_group.QUERY_ROWS", 1)
    inputs = Inputs(*parts(problem))
    found = contributions_with(inputs, "influence_gn")
    others = contributions_with(inputs.with_queries(problem.queries.subset([3, 1])), "influence_gn")
    assert len(fitted) == 1
    assert_same(others.values, found.values[[3, 1]])


@pytest.mark.parametrize("at", [1, 4])
def test_an_amount_of_training_is_passed_on(at):
    problem = classifier()
    found = contributions(*parts(problem), "horizon_ahead", recipe=RECIPE, at=at)
    wanted = attribute(*parts(problem), "horizon_ahead", recipe=RECIPE, at=at)
    assert_same(found.scores().values, wanted.values)
    assert found.provenance["amount"] == at


# --- weights in `attribute` -------------------------------------------------------------------------------------------


@EVERY_CASE
def test_uniform_weights_change_nothing(case):
    problem = classifier()
    plain = scores_of_case(problem, case)
    weights = GroupWeights.uniform(groups_of(problem))
    same = scores_of_case(problem, case, weights=weights)
    assert torch.equal(same.values, plain.values)
    assert same.unit == plain.unit == ("loss" if METHODS[CASES[case][0]].has_unit else None)
    named = {"weights": {"name": "uniform", "values": dict.fromkeys(weights.groups.names, 1.0)}}
    assert same.provenance == {**plain.provenance, **named}
    assert of_case(problem, case).scores(weights).unit == plain.unit


@EVERY_CASE
def test_other_weights_are_named_and_leave_no_unit(case):
    problem = classifier()
    weights = uneven(groups_of(problem))
    for scores in (scores_of_case(problem, case, weights=weights), of_case(problem, case).scores(weights)):
        assert scores.unit is None
        assert scores.provenance["weights"] == {"name": "uneven", "values": weights.by_name()}


def test_all_amounts_are_weighted():
    problem = classifier()
    weights = uneven(groups_of(problem))
    found = attribute(*parts(problem), "horizon", recipe=RECIPE, at=[1, 4], weights=weights)
    for at, scores in found.items():
        wanted = contributions(*parts(problem), "horizon", recipe=RECIPE, at=at).scores(weights)
        assert_same(scores.values, wanted.values)


@pytest.mark.parametrize("method", NOT_LINEAR)
def test_methods_that_are_not_linear_are_refused_before_the_model_runs(method, monkeypatch):
    problem = classifier()
    weights = GroupWeights.uniform(groups_of(problem))
    monkeypatch.setattr(Task, "check", never)
    monkeypatch.setattr(nn.Sequential, "forward", never)
    message = rf"'{method}' is not linear in the query's gradient.*that take them: grad_dot, influence_gn,"
    with pytest.raises(InputError, match=message):
        contributions(*parts(problem), method)
    with pytest.raises(InputError, match=message):
        attribute(*parts(problem), method, weights=weights)


def test_wrong_options_are_refused_before_the_model_runs(monkeypatch):
    problem = classifier()
    monkeypatch.setattr(Task, "check", never)
    with pytest.raises(UnknownNameError, match="Did you mean 'damping'"):
        contributions(*parts(problem), "influence_gn", dampng=Damping.absolute(1))
    with pytest.raises(InputError, match="leave out `at`"):
        contributions(*parts(problem), "grad_dot", at=3)


def test_weights_of_another_model_are_refused():
    problem, other = classifier(), deep()
    weights = GroupWeights.uniform(groups_of(other))
    message = "of a model with 10 parameter tensors, this one has 4; they differ in 0.bias"
    with pytest.raises(InputError, match=message):
        attribute(*parts(problem), "grad_dot", weights=weights)
    with pytest.raises(InputError, match=message):
        self_influence(problem.task, problem.train, weights=weights)
    with pytest.raises(InputError, match=message):
        contributions(*parts(problem), groups=weights.groups)
    with pytest.raises(InputError, match=r"'uniform' are of 10 groups, such as 'layers\.0\.0\.weight'.*of 4, such"):
        contributions(*parts(problem)).scores(weights)


# --- self-influence ---------------------------------------------------------------------------------------------------


def test_weighted_self_influence_is_the_diagonal_of_weighted_scores():
    problem = classifier()
    task, train = problem.task, problem.train
    weights = uneven(groups_of(problem))
    wanted = attribute(task, train, train, "grad_dot", weights=weights).values.diagonal()
    assert_same(self_influence(task, train, weights=weights), wanted)
    uniform = GroupWeights.uniform(groups_of(problem))
    assert_close(self_influence(task, train, weights=uniform), self_influence(task, train), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_weighted_self_influence_with_a_filter_is_the_diagonal_of_weighted_scores(form):
    problem = classifier()
    task, train = problem.task, problem.train
    weights = uneven(groups_of(problem))
    scores = attribute(task, train, train, "influence_gn", damping=Damping.relative(0.2), weights=weights)
    filter = damped_inverse(Damping.relative(0.2))
    found = self_influence(task, train, filter=filter, form=form, weights=weights)
    assert_same(found, scores.values.diagonal())


# --- the class itself -------------------------------------------------------------------------------------------------


def small(values=None):
    groups = ParameterGroups(("a", "b"), (0, 1), (3, 4), ("a", "b"))
    values = torch.arange(12, dtype=F64).reshape(2, 3, 2) if values is None else values
    facts = {"model": "x", "settings": {"damping": 0.1}}
    return Contributions(values, groups, ["p", "q"], [10, 11, 12], "grad_dot", -1.0, "margin", facts)


def test_scores_by_hand():
    found = small()
    assert found.scores().values.tolist() == [[1, 5, 9], [13, 17, 21]]
    weights = GroupWeights(torch.tensor([3.0, 1.0]), found.groups)  # 1.5 and 0.5
    assert found.scores(weights).values.tolist() == [[0.5, 4.5, 8.5], [12.5, 16.5, 20.5]]
    swapped = found.rows([1, 0])
    assert swapped.query_ids == ("q", "p")
    assert torch.equal(swapped.values, found.values[[1, 0]])
    assert repr(found) == "Contributions(2 queries x 3 train examples x 2 groups, method='grad_dot')"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"\(n_query, n_train, n_groups\) = \(2, 3, 2\); got \(3, 2, 2\)"):
        small(torch.zeros(3, 2, 2))
    values = torch.zeros(2, 3, 2)
    values[1, 2, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="12"):
        small(values)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_contributions_are_read_back_exactly(tmp_path, dtype):
    found = small(torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype))
    path = found.save(tmp_path / "c.safetensors")
    again = Contributions.load(path)
    assert torch.equal(again.values, found.values)
    assert again.values.dtype == dtype
    for name in ("groups", "query_ids", "train_ids", "method", "orientation", "unit", "provenance"):
        assert getattr(again, name) == getattr(found, name)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="overwrite=True"):
        small().save(path)
    assert path.read_bytes() == before
    small().save(path, overwrite=True)
    assert torch.equal(Contributions.load(path).values, small().values)


def test_columns_of_a_view_are_saved(tmp_path):
    wide = torch.arange(24, dtype=F64).reshape(2, 2, 6).transpose(1, 2)[:, ::2]
    found = small(wide)
    assert torch.equal(Contributions.load(found.save(tmp_path / "c")).values, wide)


def test_absent_damaged_and_foreign_files_are_told_apart(tmp_path):
    with pytest.raises(StoreError, match="There is no file"):
        Contributions.load(tmp_path / "absent")
    path = small().save(tmp_path / "c.safetensors")
    for size in (4, len(path.read_bytes()) - 8):
        (tmp_path / "cut").write_bytes(path.read_bytes()[:size])
        with pytest.raises(DamagedShardError, match=r"cut is truncated or altered .*Write it again"):
            Contributions.load(tmp_path / "cut")
    matrix = ScoreMatrix(torch.zeros(1, 2), ["q"], [0, 1])
    with pytest.raises(StoreMismatchError, match="holds ScoreMatrix; Contributions were asked for"):
        Contributions.load(matrix.save(tmp_path / "scores"))


def test_the_test_problem_has_the_margin_of_the_task():
    """The dense reference above writes the margin anew."""
    problem = classifier(measure="margin")
    batch = problem.queries.all()
    logits = problem.task.model(batch[0]).detach()
    log_p = logits.log_softmax(1).gather(1, batch[1][:, None])[:, 0]
    assert_close(problem.task.measure(logits, batch), log_p - torch.log1p(-log_p.exp()))
    assert mlp_regression().task.measure.orientation == 1
