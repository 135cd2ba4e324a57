"""LoGra and TrackStar beside their formulas on whole gradients."""

import pytest
import torch
from torch import nn

from whence import Damping, Examples, GroupWeights, Task, attribute, contributions
from whence.errors import InputError, UnsupportedError
from whence.methods import METHODS, Inputs
from whence.methods.layer_codes import LayerCodes
from whence.task import ParameterGroups

F64 = torch.float64


def convolutional():
    """A network with a convolution (many positions), a norm that takes no part, and a linear layer without bias."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3, bias=False)
    ).double()  # fmt: skip


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 4, 4, generator=generator, dtype=F64)
    y = torch.arange(16) % 3
    task = Task.classification(convolutional().eval())
    return task, Examples((x[:11], y[:11])), Examples((x[11:], y[11:]))


LAYERS = {"0": (4, 10), "4": (3, 16)}  # o, i with the bias


def matrices(rows, task):
    """(m, n_params) -> by layer (m, o, i)."""
    named = task.layout.unflatten(rows)
    conv = torch.cat([named["0.weight"].flatten(2), named["0.bias"][:, :, None]], 2)
    return {"0": conv, "4": named["4.weight"]}


def whole_gradients(task, examples, fn):
    """(n, n_params) by plain autograd, one example at a time."""
    rows = []
    for k in range(len(examples)):
        batch = examples.batch([k])
        value = fn(task.outputs(task.model, batch), batch).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(task.model.parameters()))]))
    return torch.stack(rows)


def sides(problem):
    task, train, queries = problem
    return (
        matrices(whole_gradients(task, queries, task.measure), task),
        matrices(whole_gradients(task, train, task.loss), task),
    )


def projections(task, train, rank, seed):
    """P_i and P_o of each layer as matrices, the identity where nothing is projected."""
    codes = LayerCodes.of(task, train, rank, seed)
    found = {}
    for site, name in zip(codes.sites, LAYERS, strict=True):
        each = zip(codes._projections[site], reversed(LAYERS[name]), strict=True)
        found[name] = [torch.eye(length, dtype=F64) if p is None else p for p, length in each]
    return found


@pytest.mark.parametrize("rank", [2, 3, 64])
def test_logra_is_its_formula(problem, rank):
    task, train, queries = problem
    asked = Damping.relative(0.3)
    found = attribute(task, train, queries, method="logra", rank=rank, damping=asked, seed=5)
    of_queries, of_train = sides(problem)
    expected = torch.zeros(len(queries), len(train), dtype=F64)
    for name, (p_i, p_o) in projections(task, train, rank, 5).items():
        z_q, z_i = ((p_o.T @ side[name] @ p_i).flatten(1) for side in (of_queries, of_train))
        fisher = z_i.T @ z_i / len(train)
        damped = fisher + 0.3 * fisher.trace() / len(fisher) * torch.eye(len(fisher), dtype=F64)
        expected += z_q @ torch.linalg.solve(damped, z_i.T) / len(train)
    torch.testing.assert_close(torch.as_tensor(found.values), expected, rtol=1e-9, atol=0)


def test_projections_are_random_normal_and_apart(problem):
    task, train, _ = problem
    one, other = (projections(task, train, 3, seed) for seed in (0, 1))
    assert not torch.equal(one["0"][0], other["0"][0])
    wide = LayerCodes.of(task, train, 3, 0)
    p_i, p_o = wide._projections[wide.sites[1]]
    assert p_i.shape == (16, 3)
    assert p_o is None
    many = torch.stack([LayerCodes.of(task, train, 3, seed)._projections[wide.sites[1]][0] for seed in range(300)])
    # Entries of variance 1 / rank: 14,400 of them know it to about 1.2 %.
    assert float(many.var()) == pytest.approx(1 / 3, rel=0.06)


def test_what_takes_no_part_is_named(problem):
    task, train, queries = problem
    found = attribute(task, train, queries, method="logra")
    settings = found.provenance["settings"]
    assert settings["left_out"] == ["1.weight", "1.bias"]
    assert settings["dims"] == 40 + 48


@pytest.mark.parametrize("rank", [2, 64])
@pytest.mark.parametrize("mixture", [None, 0.0, 0.4])
def test_trackstar_is_its_formula(problem, rank, mixture):
    task, train, queries = problem
    found = attribute(
        task, train, queries, method="trackstar", rank=rank, mixture=mixture, damping=Damping.relative(0.1), seed=3
    )
    of_queries, of_train = sides(problem)
    codes = []
    for name, (p_i, p_o) in projections(task, train, rank, 3).items():
        squares = of_train[name].square().mean(0)
        second_moment = squares.mean(1, keepdim=True) * squares.mean(0) / squares.mean()
        codes.append([(p_o.T @ (g[name] / second_moment.sqrt()) @ p_i).flatten(1) for g in (of_queries, of_train)])
    fishers = [[z.T @ z / len(z) for z in pair] for pair in codes]
    mu = mixture
    if mu is None:
        # The 1 in 65th of the pooled eigenvalues.
        pooled = [torch.cat([torch.linalg.eigvalsh(pair[side]) for pair in fishers]).sort().values for side in (0, 1)]
        s_q, s_t = (float(each[-1 - int((len(each) - 1) / 65)]) for each in pooled)
        mu = s_t / (s_q + s_t)
    assert found.provenance["settings"]["mixture"] == pytest.approx(mu, rel=1e-9)
    white = [[], []]
    for pair, (f_q, f_t) in zip(codes, fishers, strict=True):
        r = mu * f_q + (1 - mu) * f_t
        values, vectors = torch.linalg.eigh(r + 0.1 * r.trace() / len(r) * torch.eye(len(r), dtype=F64))
        for side, z in enumerate(pair):
            white[side].append(z @ (vectors * values.rsqrt()) @ vectors.T)
    z_q, z_i = (torch.cat(each, 1) for each in white)
    expected = z_q @ z_i.T / z_q.norm(dim=1)[:, None] / z_i.norm(dim=1)
    torch.testing.assert_close(torch.as_tensor(found.values), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ["logra", "trackstar"])
def test_groups_add_up_to_the_scores(problem, method):
    task, train, queries = problem
    whole = attribute(task, train, queries, method=method)
    parts = contributions(task, train, queries, method)
    torch.testing.assert_close(parts.values.sum(-1), torch.as_tensor(whole.values))
    norm = list(parts.groups.names).index("1.weight")
    assert not parts.values[:, :, norm].any()
    groups = ParameterGroups.of(task.layout)
    weights = GroupWeights.only(groups, "4.weight")
    alone = attribute(task, train, queries, method=method, weights=weights)
    own = parts.values[:, :, list(groups.names).index("4.weight")] * float(weights.values.max())
    torch.testing.assert_close(torch.as_tensor(alone.values), own)


@pytest.mark.parametrize("method", ["logra", "trackstar"])
def test_scores_do_not_depend_on_blocks(problem, method, monkeypatch):
    task, train, queries = problem
    whole = attribute(task, train, queries, method=method)
    monkeypatch.setattr("whence.gradients.passes.PASS_EXAMPLES", 4)
    monkeypatch.setattr("whence.gradients.passes.blocks.__kwdefaults__", {"size": 4})
    found = attribute(task, train, queries, method=method)
    torch.testing.assert_close(torch.as_tensor(found.values), torch.as_tensor(whole.values), rtol=1e-9, atol=1e-14)


def test_a_query_without_gradient_has_no_scores(problem):
    task, train, queries = problem
    x, y = queries.all()
    # A constant measure: nothing to attribute.
    constant = Task.classification(task.model, measure=lambda outputs, batch: 0 * outputs.sum(1), lower_is_better=True)
    found = attribute(constant, train, Examples((x, y)), method="trackstar", mixture=0.0)
    assert not torch.as_tensor(found.values).any()
    assert METHODS["trackstar"].linear_in_w


def test_bad_options_are_refused_before_any_pass(problem, monkeypatch):
    task, train, queries = problem
    inputs = Inputs(task, train, queries)
    for options, words in [
        ({"rank": 0}, "rank"),
        ({"mixture": 1.0}, r"\[0, 1\)"),
        ({"seed": -1}, "seed"),
        ({"damping": 0.1}, "damping"),
    ]:
        with pytest.raises(InputError, match=words):
            METHODS["trackstar"].compute(inputs, **options)
    monkeypatch.setattr("whence.methods.logra.LARGEST", 20)
    with pytest.raises(UnsupportedError, match="up to 20 are done"):
        METHODS["logra"].compute(inputs)


def test_a_model_without_such_layers_is_refused():
    task = Task.regression(nn.GroupNorm(1, 3).eval())
    x = torch.randn(4, 3)
    examples = Examples((x, x))
    with pytest.raises(UnsupportedError, match="no linear layer or convolution"):
        attribute(task, examples, examples, method="logra")
