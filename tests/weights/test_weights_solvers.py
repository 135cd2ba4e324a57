"""The self-supervised objective by hand, and solvers that agree on where it is smallest."""

import itertools
import json
import math
import warnings

import pytest
import torch
from torch.testing import assert_close

from whence.errors import InputError, UnknownNameError, WhenceWarning
from whence.task import ParameterGroups
from whence.weights import SOLVERS, Contributions, learn_weights, learning, self_supervised_loss
from whence.weights.objective import WeightProblem
from whence.weights.quotient import norms
from whence.weights.solvers import adamw
from whence.weights.solvers.adamw import gram_loss, score_loss, solve_adamw
from whence.weights.solvers.nnls import _at as at
from whence.weights.solvers.nnls import _descend as descend

F64 = torch.float64
# Sums of some hundred float64 products in another order.
ROUNDED = {"rtol": 1e-10, "atol": 1e-13}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=generator(seed))


def student(*shape, seed=0):
    """Student's t with 3 degrees of freedom: a normal number over the root of a mean of three squares."""
    squares = normal(3, *shape, seed=seed + 10_000).square().mean(0)
    return normal(*shape, seed=seed) / squares.sqrt()


def synthetic(seed, n_query=30, n_train=300, n_groups=8):
    """C[q, i, j] = scale_j (a_j u_qi + v_j n_qij) with heavy-tailed u: gains, noises and scales at random."""
    truth = student(n_query, n_train, seed=seed)
    gains = torch.rand(n_groups, dtype=F64, generator=generator(seed + 1))
    noise = 0.5 + 2 * torch.rand(n_groups, dtype=F64, generator=generator(seed + 2))
    scales = (1.5 * normal(n_groups, seed=seed + 3)).exp()
    return scales * (gains * truth[:, :, None] + noise * normal(n_query, n_train, n_groups, seed=seed + 4))


def found_of(values, names=None):
    n_query, n_train, n_groups = values.shape
    names = tuple(names or (f"g{j}" for j in range(n_groups)))
    groups = ParameterGroups(names, tuple(range(n_groups)), (1,) * n_groups, names)
    return Contributions(values, groups, [f"q{q}" for q in range(n_query)], range(n_train), "grad_dot")


def learned(values, solver="nnls", **options):
    """Weights (n_groups,) with mean 1."""
    return learn_weights(found_of(values), solver, holdout=0, **options).values


def loss_of(weights, values, k=10, center=True):
    """The loss, written down without the package: mean over queries of -mean(top k) / norm."""
    scores = torch.einsum("qij,j->qi", values, weights)
    if center:
        scores = scores - scores.mean(1, keepdim=True)
    best = scores.sort(1, descending=True).values[:, :k]
    return float(-(best.mean(1) / scores.square().sum(1).sqrt()).mean())


# --- the objective ----------------------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    scores = torch.tensor([[3.0, 0.0, 4.0, 0.0], [-1.0, 1.0, 1.0, -1.0]], dtype=F64)
    assert_close(self_supervised_loss(scores, 1), torch.tensor([-4 / 5, -1 / 2], dtype=F64))
    assert_close(self_supervised_loss(scores, 2), torch.tensor([-3.5 / 5, -1 / 2], dtype=F64))
    assert_close(self_supervised_loss(scores, 4), torch.tensor([-7 / 4 / 5, 0.0], dtype=F64))
    others = torch.tensor([[0, 1], [0, 3]])
    assert_close(self_supervised_loss(scores, 2, others), torch.tensor([-1.5 / 5, 1 / 2], dtype=F64))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_loss_is_bounded_and_touches_its_bound(k):
    for scores in (normal(50, 20), student(50, 20), normal(50, 20).abs() + 3):
        assert bool((self_supervised_loss(scores, k) >= -1 / math.sqrt(k) - 1e-15).all())
    energy = torch.zeros(1, 20, dtype=F64)
    energy[0, 20 - k :] = 7.0
    assert_close(float(self_supervised_loss(energy, k)), -1 / math.sqrt(k))
    energy[0, 0] += 1.0  # noise elsewhere, or where k is everything, scores that differ
    assert float(self_supervised_loss(energy, k)) > -1 / math.sqrt(k) + 1e-5


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 3.0, 1e150])
def test_the_scale_of_scores_is_nothing(scale):
    scores = normal(5, 30)
    assert_close(self_supervised_loss(scale * scores, 4), self_supervised_loss(scores, 4))


def test_zero_scores_give_zero_and_no_nan_slope():
    scores = torch.zeros(2, 5, dtype=F64, requires_grad=True)
    loss = self_supervised_loss(scores, 2)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("ratio", [0.5, 2.0, 10.0, 50.0])
def test_the_loss_is_a_signal_to_noise_ratio(ratio):
    """-1 / sqrt(k + N / SNR) for k scores of s among noise of variance s^2 / SNR, where the true set is given."""
    n_query, n_train, k = 400, 2000, 20
    signal = math.sqrt(ratio)
    scores = normal(n_query, n_train, seed=1)
    scores[:, :k] += signal
    sets = torch.arange(k).expand(n_query, k)
    found = float(self_supervised_loss(scores, k, sets).mean())
    # The mean of k noises has standard error 1 / sqrt(k n_query) beside s: four of them, and 1 % for the curvature of
    # the square root.
    tolerance = 4 / math.sqrt(k * n_query) / signal + 0.01
    assert_close(found, -1 / math.sqrt(k + n_train / ratio), rtol=tolerance, atol=0)


def test_pure_noise_has_the_loss_of_its_tail():
    """-z / sqrt(N), z = phi(Phi^-1(1 - k/N)) N / k, the mean of the largest k of N normal numbers."""
    n_train, k = 2000, 20
    share = k / n_train
    at = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - share, dtype=F64))
    z = float(torch.exp(-at.square() / 2)) / math.sqrt(2 * math.pi) / share
    found = float(self_supervised_loss(normal(300, n_train), k).mean())
    assert_close(found, -z / math.sqrt(n_train), rtol=0.01, atol=0)  # 1 / sqrt(k n_query) is 1.3 %, z is 2.7


# --- the prepared problem ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalise", ["rms", "none"])
def test_small_matrices_equal_direct_sums(center, normalise):
    values = synthetic(0, 5, 40, 4) + 0.3
    problem = WeightProblem(values, k=6, center=center, normalise=normalise)
    centered = values - values.mean(1, keepdim=True) if center else values
    rms = centered.square().mean((0, 1)).sqrt()
    assert_close(problem.rms, rms, **ROUNDED)
    scaled = centered / rms if normalise == "rms" else centered
    assert_close(problem.gram, torch.einsum("qij,qik->qjk", scaled, scaled), **ROUNDED)
    x = torch.tensor([0.1, 0.0, 0.5, 0.4], dtype=F64)
    scores = scaled @ x
    assert_close(norms(problem.gram, x), scores.norm(dim=1), **ROUNDED)
    assert_close(problem.scores(problem.weights(x)), scores, **ROUNDED)
    assert_close(problem.centered(torch.tensor([3, 1])), centered[[3, 1]], **ROUNDED)
    top = scores.topk(6, dim=1).indices
    wanted = torch.stack([rows[own].mean(0) for rows, own in zip(scaled, top, strict=True)])
    assert_close(problem.signal(x), wanted, **ROUNDED)
    weights = problem.weights(x)
    assert_close(problem.loss(weights), loss_of(weights, values, 6, center), **ROUNDED)


@pytest.mark.parametrize("center", [True, False])
def test_gram_and_score_losses_have_equal_values_and_slopes(center):
    problem = WeightProblem(synthetic(1, 6, 50, 5), k=5, center=center)
    queries = torch.tensor([4, 0, 5])
    x = torch.softmax(normal(5, seed=3), 0).requires_grad_()
    found, wanted = gram_loss(problem, x, queries), score_loss(problem, x, queries)
    assert_close(found, wanted, **ROUNDED)
    slopes = [torch.autograd.grad(loss, x)[0] for loss in (found, wanted)]
    assert_close(*slopes, **ROUNDED)
    scores = problem.centered(queries) @ problem.weights(x.detach())
    assert_close(wanted.detach(), self_supervised_loss(scores, 5).mean(), **ROUNDED)


def test_adamw_takes_the_same_way_with_either_norm():
    values = synthetic(2, 12, 60, 4)
    found = [learned(values, "adamw", k=5, steps=40, norm_from=norm) for norm in ("gram", "scores")]
    assert_close(*found, rtol=1e-6, atol=0)  # rounding, grown over 40 steps of Adam


def test_adamw_is_descent_on_logits_with_a_cosine_to_zero():
    """Written down with torch alone; one batch holds all queries, so their order is nothing."""
    values = synthetic(16, 10, 60, 4)
    centered = values - values.mean(1, keepdim=True)
    scaled = centered / centered.square().mean((0, 1)).sqrt()
    logits = torch.zeros(4, dtype=F64, requires_grad=True)
    optimizer = torch.optim.AdamW([logits], lr=0.1, weight_decay=0.3)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 20)) / 2
        loss = self_supervised_loss(scaled @ torch.softmax(logits, 0), 5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = torch.softmax(logits.detach(), 0) / centered.square().mean((0, 1)).sqrt()
    found = learned(values, "adamw", k=5, steps=20, lr=0.1, weight_decay=0.3)
    assert_close(found, wanted / wanted.mean(), rtol=1e-6, atol=0)  # rounding, grown over 20 steps of Adam


def test_centring_makes_the_loss_blind_to_constants():
    values = synthetic(3, 10, 60, 4)
    shifted = values + 5 * normal(10, 1, 4, seed=9)
    weights = torch.tensor([0.3, 1.2, 0.5, 2.0], dtype=F64)
    for k in (1, 10):
        wanted = WeightProblem(values, k).loss(weights)
        assert_close(WeightProblem(shifted, k).loss(weights), wanted, **ROUNDED)
        raw = WeightProblem(values, k, center=False).loss(weights)
        assert abs(WeightProblem(shifted, k, center=False).loss(weights) - raw) > 1e-3
    assert_close(learned(shifted), learned(values), rtol=1e-6, atol=1e-9)


# --- solvers against each other and against the truth -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(0, 800, 100))
def test_the_closed_form_and_descent_meet(seed):
    values = synthetic(seed)
    losses = {name: loss_of(learned(values, name), values) for name in ("uniform", "rms", "nnls", "adamw")}
    assert abs(losses["nnls"] - losses["adamw"]) < 0.01 * abs(losses["adamw"])
    assert losses["nnls"] <= losses["rms"]
    assert losses["nnls"] < 0.99 * losses["uniform"]  # there was something to learn


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalise", ["rms", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_the_closed_form_is_never_worse_than_its_start(seed, center, normalise):
    # Normal truth: the loss says nothing about the gains, and there is little to find.
    values = normal(8, 40, 5, seed=seed) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    options = {"k": 5, "center": center}
    start = "rms" if normalise == "rms" else "uniform"
    best = loss_of(learned(values, **options, normalise=normalise, max_rounds=200), values, **options)
    assert best <= loss_of(learned(values, start, **options), values, **options) + 1e-15


def test_a_step_that_goes_too_far_is_halved():
    problem = WeightProblem(synthetic(0), k=10)
    loss = problem.loss(problem.weights(problem.start()))
    best = learned(synthetic(0)) / problem.scale
    way = best / best.sum() - problem.start()
    lower = {
        factor: problem.loss(problem.weights(problem.start() + factor * way)) < loss
        for factor in (64, 32, 16, 8, 4, 2, 1)
    }
    first = next(factor for factor, is_lower in lower.items() if is_lower)
    assert first < 64  # the whole step is too long
    x, top, found = descend(problem, problem.start(), problem.start() + 64 * way, loss)
    assert_close(x, problem.start() + first * way, **ROUNDED)
    assert_close(found, problem.loss(problem.weights(x)))
    assert_close(top, problem.signal(x))
    best_loss = problem.loss(problem.weights(problem.start() + way))
    # From the best back to the start it is uphill, however short the step.
    assert descend(problem, problem.start() + way, problem.start(), best_loss) is None


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_one_ranking_gives_sets_and_loss(center, two_sided):
    problem = WeightProblem(synthetic(1), k=10, center=center, two_sided=two_sided)
    for x in normal(20, 8).abs():
        top, loss = at(problem, x)
        assert_close(loss, problem.loss(problem.weights(x)), **ROUNDED)
        assert_close(top, problem.signal(x), rtol=0, atol=0)


def slope_at(weights, values, k=10):
    """Gradient (n_groups,) of the exact loss in scaled weights, the top-k sets held fixed."""
    scaled = values - values.mean(1, keepdim=True)
    rms = scaled.square().mean((0, 1)).sqrt()
    scaled, x = scaled / rms, (weights * rms / (weights * rms).sum()).requires_grad_()
    scores = scaled @ x
    loss = self_supervised_loss(scores, k, scores.detach().topk(k, dim=1).indices).mean()
    return torch.autograd.grad(loss, x)[0], x.detach()


@pytest.mark.parametrize("seed", range(0, 800, 100))
def test_the_closed_form_is_stationary(seed):
    values = synthetic(seed)
    slope, x = slope_at(learned(values), values)
    start, _ = slope_at(learned(values, "rms"), values)
    # The last round gained less than 1e-7 of the loss, which is about quadratic there: what is left of the slope is of
    # the order of the root of that, 3e-4 of where it began.
    tolerance = 1e-3 * float(start.abs().max())
    used = x > 0
    assert float(slope[used].abs().max()) < tolerance
    assert bool((slope[~used] > -tolerance).all())  # more of an unused group would not lower the loss


def test_a_group_that_only_adds_noise_in_step_with_another_is_dropped():
    """The best weight of the second group is negative (it could subtract the noise of the first), so it gets 0."""
    truth, shared = student(20, 200, seed=5), normal(20, 200, seed=6)
    values = torch.stack([truth + shared, 2 * shared + 0.1 * normal(20, 200, seed=7), truth], dim=2)
    weights = learned(values)
    slope, _ = slope_at(weights, values)
    assert weights[1] == 0
    assert slope[1] > 0


@pytest.mark.parametrize("seed", range(0, 600, 100))
def test_two_groups_against_a_fine_grid(seed):
    values = synthetic(seed, n_groups=2)
    centered = values - values.mean(1, keepdim=True)
    rms = centered.square().mean((0, 1)).sqrt()
    weights = learned(values)
    sets = (centered @ weights).topk(10, dim=1).indices
    angles = torch.linspace(0, math.pi / 2, 721, dtype=F64)  # 1/8 of a degree
    all_scores = torch.einsum("qij,aj->aqi", centered, torch.stack([angles.cos(), angles.sin()], dim=1) / rms)
    found = loss_of(weights, values)
    # For its own sets nothing on the grid is better, but for the 1e-7 of the loss at which rounds end.
    fixed = min(float(self_supervised_loss(scores, 10, sets).mean()) for scores in all_scores)
    assert found <= fixed + 1e-6 * abs(fixed)
    # Over all sets it is a local minimum: other sets may have a deeper one.
    free = min(float(self_supervised_loss(scores, 10).mean()) for scores in all_scores)
    assert found <= free + 0.01 * abs(free)


def test_learned_weights_recover_the_matched_filter():
    """For independent noise the best weights are a_j / v_j, the gain over the variance of the noise."""
    gains, deviations = torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=F64), torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=F64)
    truth = torch.zeros(200, 300, dtype=F64)
    truth[:, :10] = 12.0  # as many as k, far above the noise
    values = truth[:, :, None] * gains + deviations * normal(200, 300, 4, seed=2)
    wanted = gains / deviations.square()
    # Ten true examples of 200 queries: the noise of a gain is 1 / (12 sqrt(2000)), and the norm holds 10 * 144 of
    # signal beside 300 of noise, which the ratio does not mind.
    assert_close(learned(values), wanted / wanted.mean(), rtol=0.05, atol=0.02)


# --- what changes weights and what does not ---------------------------------------------------------------------------


def test_rms_weights_make_all_groups_alike():
    values = synthetic(4) + normal(8, seed=1)
    for center in (True, False):
        centered = values - values.mean(1, keepdim=True) if center else values
        found = learned(values, "rms", center=center) * centered.square().mean((0, 1)).sqrt()
        assert_close(found, found[0].expand(8), **ROUNDED)
    assert torch.equal(learned(values, "uniform"), torch.ones(8, dtype=F64))


@pytest.mark.parametrize("solver", ["rms", "nnls", "adamw"])
@pytest.mark.parametrize("factor", [1e-6, 0.01, 7.0, 1e6])
def test_a_scaled_group_gets_its_weight_divided(solver, factor):
    values = synthetic(6, 12, 100, 4)
    options = {"steps": 30} if solver == "adamw" else {}
    scale = torch.tensor([1.0, factor, 1.0, 1.0], dtype=F64)
    wanted = learned(values, solver, **options) / scale
    # The scale is taken out first, so that both are the same problem but for rounding.
    assert_close(learned(values * scale, solver, **options), wanted / wanted.mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_permuted_groups_get_permuted_weights(solver):
    values, order = synthetic(7, 12, 100, 5), [3, 0, 4, 1, 2]
    options = {"steps": 30} if solver == "adamw" else {}
    wanted = learned(values, solver, **options)[order]
    assert_close(learned(values[:, :, order], solver, **options), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["rms", "nnls", "adamw"])
def test_permuted_train_examples_and_float32_change_nothing(solver):
    values = synthetic(8, 12, 100, 4)
    options = {"steps": 30} if solver == "adamw" else {}
    wanted = learned(values, solver, **options)
    order = torch.randperm(100, generator=generator(0))
    assert_close(learned(values[:, order], solver, **options), wanted, rtol=1e-6, atol=1e-9)
    # Sums are taken in float64: what is left is the rounding of the contributions, 1e-7 of each.
    assert_close(learned(values.float(), solver, **options), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", ["rms", "nnls", "adamw"])
@pytest.mark.parametrize("normalise", ["rms", "none"])
def test_a_dead_group_gets_no_weight_and_is_named(solver, normalise):
    values = synthetic(9, 12, 100, 4)
    values[:, :, 2] = 0
    found = learn_weights(found_of(values), solver, k=5, normalise=normalise)
    assert found.values[2] == 0
    assert bool((found.values[[0, 1, 3]] > 0).any())
    assert found.facts["without_contribution"] == ["g2"]
    assert found.facts["max_over_min"] is None  # JSON has no infinity
    alive = learned(values[:, :, [0, 1, 3]], solver, k=5, normalise=normalise)
    with_dead = learned(values, solver, k=5, normalise=normalise)
    assert_close(with_dead[[0, 1, 3]] * 3 / 4, alive, rtol=1e-6, atol=1e-9)


def test_a_group_of_constants_is_dead_once_it_is_centered():
    values = synthetic(9, 12, 100, 4)
    values[:, :, 1] = 0.5
    assert learn_weights(found_of(values)).facts["without_contribution"] == ["g1"]
    assert "without_contribution" not in learn_weights(found_of(values), center=False).facts


def test_groups_with_one_contribution_share_their_weight():
    values = synthetic(10, 12, 100, 3)
    doubled = torch.cat([values, values[:, :, :1]], dim=2)
    twice = learned(doubled)
    assert_close(twice[0], twice[3], rtol=1e-2, atol=1e-9)
    # The start is another one, and with it the local minimum.
    once = loss_of(learned(values), values)
    assert_close(loss_of(twice, doubled), once, rtol=0.01, atol=0)


@pytest.mark.parametrize("center", [True, False])
def test_groups_that_do_not_support_their_own_sets_fall_back_to_rms(center):
    # k is all there are. Uncentered, every a_j is negative; centered, exactly zero.
    half = torch.randint(1, 9, (6, 15, 3), generator=generator(0)).double()
    values = torch.cat([half, -half], dim=1) if center else -torch.cat([half, half], dim=1)
    with pytest.warns(WhenceWarning, match=r"Weights of 'grad_dot': no group supports the signal \(all a_j <= 0\)"):
        found = learn_weights(found_of(values), k=30, center=center, holdout=0)
    rms = learn_weights(found_of(values), "rms", k=30, center=center, holdout=0)
    assert_close(found.values, rms.values, **ROUNDED)
    assert "the weights are those of the start" in found.facts["note"]
    assert found.facts["rounds"] == 0
    assert found.facts["queries"]["loss"]["weights"] == pytest.approx(rms.facts["queries"]["loss"]["rms"])


def test_too_few_rounds_are_told():
    with pytest.warns(WhenceWarning, match="the loss was still falling after 1 rounds"):
        learn_weights(found_of(synthetic(0)), max_rounds=1)


# --- settings and facts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"solver": "nlns"}, UnknownNameError, "solver 'nlns'. Did you mean 'nnls'"),
        ({"solver": "adamw", "step": 3}, UnknownNameError, "option of the solver 'adamw' 'step'. Did you mean 'steps'"),
        ({"max_round": 3}, UnknownNameError, "option of the solver 'nnls' 'max_round'. Did you mean 'max_rounds'"),
        ({"problem": 3}, UnknownNameError, "Known: max_rounds"),
        ({"solver": "rms", "steps": 3}, UnknownNameError, "Known: none"),
        ({"k": 31}, InputError, "`k` must be at most the 30 train examples; got 31"),
        ({"k": 0}, InputError, "`k` must be an integer of at least 1"),
        ({"holdout": 1.0}, InputError, r"`holdout` must be a share of the queries in \[0, 1\); got 1.0"),
        ({"holdout": -0.1}, InputError, "`holdout`"),
        ({"normalise": "rsm"}, UnknownNameError, "normalisation 'rsm'. Did you mean 'rms'"),
        ({"max_rounds": 0}, InputError, "max_rounds"),
        ({"solver": "adamw", "lr": 0.0}, InputError, "lr"),
        ({"solver": "adamw", "steps": 0}, InputError, "steps"),
        ({"solver": "adamw", "batch_size": 0}, InputError, "batch_size"),
        ({"solver": "adamw", "norm_from": "score"}, UnknownNameError, "Did you mean 'scores'"),
    ],
)
def test_settings_without_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        learn_weights(found_of(synthetic(0, 6, 30, 3)), **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_to_learn_from_is_refused(solver):
    with pytest.raises(InputError, match="No group contributes anything to these queries"):
        learn_weights(found_of(torch.zeros(4, 20, 3)), solver)


@pytest.mark.parametrize(
    "n_query, holdout, count", [(10, 0.2, 2), (30, 0.2, 6), (7, 0.5, 3), (9, 0.99, 8), (4, 0.2, 0)]
)
def test_held_out_queries_are_not_learned_from(n_query, holdout, count, monkeypatch):
    values = synthetic(12, n_query, 30, 3)
    seen, problem = [], learning._InMemory.problem
    monkeypatch.setattr(learning._InMemory, "problem", lambda self, at: seen.append(at) or problem(self, at))
    facts = learn_weights(found_of(values), "rms", k=5, holdout=holdout).facts
    if count == 0:
        assert (seen, facts["queries"]["n"], "held_out" in facts) == ([list(range(n_query))], n_query, False)
        return
    learned_from, held_out = seen
    assert sorted(learned_from + held_out) == list(range(n_query))
    assert (len(held_out), facts["held_out"]["n"], facts["queries"]["n"]) == (count, count, n_query - count)
    # evenly spaced: neighbours are equally far apart, to one
    gaps = [b - a for a, b in itertools.pairwise(held_out)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    wanted = learn_weights(found_of(values[learned_from]), "rms", k=5, holdout=0)
    assert_close(learn_weights(found_of(values), "rms", k=5, holdout=holdout).values, wanted.values, rtol=0, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("center", [True, False])
def test_the_facts_are_json_and_true(solver, center):
    values = synthetic(13, 20, 60, 4)
    options = {"steps": 30} if solver == "adamw" else {}
    found = learn_weights(found_of(values), solver, k=5, center=center, **options)
    facts = json.loads(json.dumps(found.facts, allow_nan=False))
    assert facts == found.facts
    held_out = [0, 5, 10, 15]
    parts = {"held_out": values[held_out], "queries": values[[q for q in range(20) if q % 5]]}
    learned_from = parts["queries"] - parts["queries"].mean(1, keepdim=True) if center else parts["queries"]
    rms = 1 / learned_from.square().mean((0, 1)).sqrt()
    for part, rows in parts.items():
        assert facts[part]["n"] == len(rows)
        for name, weights in (("uniform", torch.ones(4, dtype=F64)), ("rms", rms), ("weights", found.values)):
            assert_close(facts[part]["loss"][name], loss_of(weights, rows, 5, center), **ROUNDED)
    ratio = float(found.values.max() / found.values.min())
    assert facts["max_over_min"] == (pytest.approx(ratio) if math.isfinite(ratio) else None)
    assert_close(facts["entropy"], found.entropy)
    assert (facts["solver"], facts["k"], facts["center"], facts["normalise"]) == (solver, 5, center, "rms")
    assert facts["seconds"] >= 0
    assert (found.name, found.method) == ("learned" if solver in ("nnls", "adamw") else solver, "grad_dot")
    assert found.groups == found_of(values).groups
    if solver == "nnls":
        assert 1 <= facts["rounds"] < 50
    if solver == "adamw":
        assert (facts["steps"], facts["lr"], facts["batch_size"]) == (30, 0.05, 10)


def test_one_group_has_weight_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for solver in SOLVERS:
            assert learned(synthetic(0, 6, 30, 1), solver).tolist() == [1.0]


def test_adamw_repeats_with_its_seed():
    values = synthetic(14, 25, 50, 4)
    options = {"steps": 10, "k": 5}
    first = learned(values, "adamw", **options)
    assert torch.equal(learned(values, "adamw", **options), first)
    assert not torch.equal(learned(values, "adamw", **options, seed=1), first)


def test_weight_decay_pulls_to_equal_scaled_weights():
    values = synthetic(15, 25, 50, 4)
    free, held = (learned(values, "adamw", k=5, weight_decay=decay) for decay in (0.0, 20.0))
    rms = learned(values, "rms", k=5)
    spread = [float((weights / rms / (weights / rms).sum()).std()) for weights in (free, held)]
    assert spread[1] < 0.5 * spread[0]


def test_held_out_queries_without_contributions_have_no_loss():
    values = normal(10, 20, 3, seed=1)
    values[::5] = 0
    facts = learn_weights(found_of(values), holdout=0.2).facts
    assert facts["held_out"] == {"n": 2, "loss": None}
    assert facts["queries"]["n"] == 8


# --- early stopping ---------------------------------------------------------------------------------------------------


def test_early_stopping_takes_the_weights_of_the_lowest_loss_on_watched_queries():
    values = normal(20, 60, 4, seed=3)  # noise alone: descent fits the queries it sees
    problem, options = WeightProblem(values, k=5), {"lr": 0.3, "batch_size": 5, "steps": 40}
    watched, used = [0, 4, 8, 12, 16], [q for q in range(20) if q % 4]
    found = solve_adamw(problem, **options, watch=0.25, patience=40)
    # By hand: the same descent on the other queries, cut off after every pass of three steps.
    path = []
    for step in range(0, 41, 3):
        x = adamw_by_hand(problem, used, step, **options)
        path.append((loss_of(problem.weights(x), values[watched], 5), step, problem.weights(x)))
    _, step, weights = min(path, key=lambda one: one[0])
    assert 0 < step < 39
    assert found.facts["steps"] == step
    assert (found.facts["of_steps"], found.facts["watched"]) == (40, 5)
    assert_close(found.weights, weights, rtol=1e-6, atol=0)  # rounding, grown over 40 steps of Adam
    # Three looks that are no better end it; what was best before them stays.
    losses = [loss for loss, _, _ in path]
    stop = next(i for i in range(len(losses)) if min(losses[: i + 1]) < min(losses[i + 1 : i + 4], default=0))
    assert solve_adamw(problem, **options, watch=0.25).facts["steps"] == path[stop][1]


def adamw_by_hand(problem, used, n_steps, *, lr, batch_size, steps):
    """Scaled weights after some of the steps on the queries at some positions."""
    logits = torch.zeros(4, dtype=F64, requires_grad=True)
    optimizer = torch.optim.AdamW([logits], lr=lr, weight_decay=0.0)
    for step, batch in enumerate(adamw._batches(len(used), batch_size, steps, 0)[:n_steps]):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        score_loss(problem, torch.softmax(logits, 0), torch.tensor(used)[batch]).backward()
        optimizer.step()
    return torch.softmax(logits.detach(), 0)


@pytest.mark.parametrize("watch", [-0.1, 1.0, 0.01, 0.99])
def test_watching_needs_queries_on_both_sides(watch):
    with pytest.raises(InputError, match="`watch` must be a share"):
        learned(normal(10, 30, 3), "adamw", k=3, watch=watch)
