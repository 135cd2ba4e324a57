"""Learning from a stream is learning from memory."""

import itertools

import pytest
import torch

from whence import Examples, Task
from whence.errors import InputError, NumericalError
from whence.task import GroupWeights, ParameterGroups
from whence.weights import Contributions, ContributionStream, contributions, learn_weights, stream_contributions
from whence.weights import streamed as room
from whence.weights import sums as sums_room
from whence.weights.candidates import Candidates, Found, Strongest
from whence.weights.objective import WeightProblem
from whence.weights.search import Known, Search
from whence.weights.shards import spread_out
from whence.weights.streamed import StreamedContributions
from whence.weights.sums import Sums


def made(values):
    n_query, n_train, n_groups = values.shape
    names = tuple(f"g{j}" for j in range(n_groups))
    groups = ParameterGroups(names, tuple(range(n_groups)), (1,) * n_groups, names)
    return Contributions(values, groups, [f"q{q}" for q in range(n_query)], list(range(n_train)))


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch):
    """With as many as are usual, all examples of these small sets would be candidates."""
    monkeypatch.setattr(room, "KEPT", 4)
    monkeypatch.setattr(room, "LEAST_KEPT", 2)


def drawn(n_query=7, n_train=200, n_groups=5, seed=0, dtype=torch.float64):
    """Groups of very different size and use; their strongest examples differ."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n_query, n_train, n_groups, generator=generator, dtype=torch.float64)
    truth = torch.randn(n_query, n_train, generator=generator, dtype=torch.float64) ** 3
    use = torch.linspace(0, 1, n_groups, dtype=torch.float64)
    values = (values + use * truth[:, :, None]) * torch.logspace(2, -2, n_groups, dtype=torch.float64) + 3.0
    return values.to(dtype)


@pytest.mark.parametrize("solver", ["uniform", "rms", "nnls", "adamw"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalise", ["rms", "none"])
def test_streamed_weights_are_those_of_contributions_in_memory(solver, center, normalise):
    found = made(drawn())
    options = {"k": 6, "center": center, "normalise": normalise, **({"steps": 12} if solver == "adamw" else {})}
    expected = learn_weights(found, solver, **options)
    for block in (17, 500):
        streamed = learn_weights(ContributionStream.of(found, block), solver, **options)
        torch.testing.assert_close(streamed.values, expected.values, rtol=1e-7, atol=1e-9)
        for part in ("queries", "held_out"):
            assert streamed.facts[part]["n"] == expected.facts[part]["n"]
            assert streamed.facts[part]["loss"] == pytest.approx(expected.facts[part]["loss"], rel=1e-9)
        assert streamed.facts["passes"] >= 2


def test_examples_that_the_first_weights_do_not_see_are_found(monkeypatch):
    monkeypatch.setattr(room, "KEPT", 1)
    monkeypatch.setattr(room, "LEAST_KEPT", 1)
    values = drawn(n_train=400, n_groups=8, seed=3)
    # The first block is unlike the rest: weights of equal size in it are no such weights.
    values[:, :20] *= torch.logspace(-3, 3, 8, dtype=torch.float64)
    found = made(values)
    expected = learn_weights(found, "nnls", k=5)
    streamed = learn_weights(ContributionStream.of(found, 20), "nnls", k=5)
    torch.testing.assert_close(streamed.values, expected.values, rtol=1e-7, atol=1e-9)
    assert streamed.facts["passes"] > 2
    assert streamed.facts["rounds"] == expected.facts["rounds"]


def test_single_precision_is_close():
    values = drawn(n_train=600, dtype=torch.float32)
    expected = learn_weights(made(values.double()), "nnls", k=5)
    streamed = learn_weights(ContributionStream.of(made(values), 100), "nnls", k=5)
    torch.testing.assert_close(streamed.values, expected.values, rtol=1e-3, atol=1e-4)


def test_more_candidates_than_passes_are_an_error(monkeypatch):
    monkeypatch.setattr(room, "MOST_PASSES", 1)
    with pytest.raises(NumericalError, match="After 1 passes"):
        learn_weights(ContributionStream.of(made(drawn()), 50), "nnls")


def test_norms_from_scores_need_memory():
    with pytest.raises(InputError, match="in memory"):
        learn_weights(ContributionStream.of(made(drawn()), 50), "adamw", norm_from="scores")


def test_settings_are_refused_before_any_pass():
    def blocks():
        raise AssertionError("walked")
        yield

    found = made(drawn())
    stream = ContributionStream(blocks, found.groups, found.query_ids, found.train_ids)
    with pytest.raises(InputError, match="at most the 200 train examples"):
        learn_weights(stream, k=201)
    with pytest.raises(InputError, match="holdout"):
        learn_weights(stream, holdout=1.0)


def test_nothing_to_learn_from_is_an_error():
    found = made(torch.zeros(5, 30, 2, dtype=torch.float64))
    with pytest.raises(InputError, match="No group contributes"):
        learn_weights(ContributionStream.of(found, 10), k=3)


@pytest.mark.parametrize("center", [True, False])
def test_sums_are_those_of_all_contributions(center, monkeypatch):
    monkeypatch.setattr(sums_room, "CHUNK", 2)  # several pieces of the matrices
    monkeypatch.setattr(sums_room, "QUERIES", 3)  # and of the queries
    values = drawn(n_groups=5)
    values += 1e4  # far from zero: what is summed must be near it
    stream = ContributionStream.of(made(values), 33)
    sums = None
    for _, block in stream.blocks():
        sums = sums or Sums(block)
        sums.add(block)
    dense = WeightProblem(values, 3, center)
    for queries in (None, [4, 1]):
        means, gram = sums.around_means(center, queries)
        chosen = slice(None) if queries is None else queries
        torch.testing.assert_close(means, dense._means[chosen], rtol=1e-12, atol=0)
        torch.testing.assert_close(gram, dense._raw_gram[chosen], rtol=1e-9, atol=1e-5)


def test_candidates_hold_each_pair_once():
    rows = torch.arange(12.0).reshape(6, 2)
    found = Found(torch.tensor([1, 0, 1, 0, 1, 1]), torch.tensor([4, 2, 3, 2, 4, 0]), rows)
    candidates = Candidates.of([found], n_query=3, n_train=9)
    assert candidates.examples.tolist() == [[2, 9, 9], [0, 3, 4], [9, 9, 9]]
    assert candidates.rows[1].tolist() == [[10.0, 11.0], [4.0, 5.0], [0.0, 1.0]]
    more = candidates.with_more([Found(torch.tensor([0]), torch.tensor([7]), torch.tensor([[5.0, 5.0]]))])
    assert more.examples.tolist()[0] == [2, 7, 9]
    assert candidates.with_more([Found(*(x[:0] for x in (found.queries, found.examples, rows)))]) is candidates


def test_the_strongest_of_all_blocks_are_kept():
    values = drawn(n_train=150)
    weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = Strongest(weights, torch.ones(5, dtype=torch.float64), share=0.0, least=4, reach=0.0)
    for part, block in ContributionStream.of(made(values), 40).blocks():
        kept.add(part.start, block)
    parts = kept.found()
    queries, examples, rows = (torch.cat([getattr(p, name) for p in parts]) for name in ("queries", "examples", "rows"))
    scores = values @ weights.T
    wanted = {
        (q, int(i)) for q in range(7) for r in range(2) for i in scores[q, :, r].topk(4).indices
    }  # fmt: skip
    assert sorted(zip(queries.tolist(), examples.tolist(), strict=True)) == sorted(wanted)
    torch.testing.assert_close(rows, values[queries, examples])


def test_examples_are_kept_that_weightings_at_some_distance_rank_first():
    values = drawn(n_train=150)
    sizes = values.square().mean((0, 1)).sqrt()
    weights = torch.rand(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / sizes
    norms = (values / sizes).square().sum(2).sqrt()
    highest = values @ weights[0] + 2 * (weights[0] * sizes).norm() * norms / 5**0.5
    wanted = sorted((q, int(i)) for q in range(7) for i in highest[q].topk(15).indices)
    for block, share, least in ((150, 0.1, 1), (30, 0.0, 15)):
        kept = Strongest(weights, sizes, share=share, least=least, reach=2.0)
        for part, rows in ContributionStream.of(made(values), block).blocks():
            kept.add(part.start, rows)
        pairs = [pair for p in kept.found() for pair in zip(p.queries.tolist(), p.examples.tolist(), strict=True)]
        assert sorted(pairs) == wanted


def test_weights_far_apart_are_chosen():
    rms = torch.tensor([1.0, 10.0], dtype=torch.float64)
    angles = torch.tensor([0.0, 1.5, 1.4, 0.75, 0.2], dtype=torch.float64)
    weights = torch.stack([angles.cos(), angles.sin()], 1) / rms * torch.tensor([[1.0], [3], [1], [7], [2]])
    found = room.far_apart(weights, rms)
    torch.testing.assert_close(found, weights[[0, 1, 3]], rtol=0, atol=0)
    assert len(room.far_apart(weights[:2], rms)) == 2


def searched(center, shift=0.0, k=4):
    """What is known of a few candidates, and what a pass saw of one weighting; all values, and the weighting."""
    values = drawn(n_train=300)
    values[:, :, 4] += shift
    means = values.mean(1) * center
    around = values - means[:, None]
    gram = torch.einsum("qij,qik->qjk", around, around)
    weights = 1 / values.std((0, 1))
    at = (values @ weights).topk(8, dim=1).indices.sort(1).values
    rows = values.gather(1, at[:, :, None].expand(-1, -1, 5))
    search = Search(Candidates(at, rows, 300), {b"": (weights, {0, 1, 2, 3, 4, 6})}, k)
    for part, block in ContributionStream.of(made(values), 70).blocks():
        search.look(part.start, block)
    candidates, seen = search.result()
    return values, weights, Known(300, means, gram, candidates), seen, search.missed


@pytest.mark.parametrize("center", [True, False])
def test_what_a_pass_saw_settles_weightings_near_by(center):
    values, weights, known, seen, missed = searched(center)
    assert not missed
    settled = {}
    for step in (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
        noise = torch.randn(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        near = 7 * weights * (1 + step * noise)
        settled[step] = seen.settles(known, near, 4)
        top = (values @ near).topk(4, dim=1).indices
        known_too = (top[:, :, None] == known.candidates.examples[:, None]).any(2).all(1)
        assert bool((known_too | ~settled[step]).all())
    assert settled[0.0].tolist() == [True] * 5 + [False, True]  # nothing was asked of that query
    assert bool(settled[1e-4].any())
    assert not bool(settled[1.0].any())
    assert not bool(seen.settles(known, -weights, 4).any())


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_weights_that_move_all_scores_alike_are_settled(factor):
    _, weights, known, seen, _ = searched(True, shift=100.0)
    moved = weights * torch.tensor([1.0, 1.0, 1.0, 1.0, factor], dtype=torch.float64)
    assert seen.settles(known, moved, 4).sum() >= 5


def test_an_example_that_is_missed_is_found():
    values = drawn(n_train=300)
    weights = 1 / values.std((0, 1))
    order = (values @ weights).argsort(1, descending=True)
    at = order[:, 1:9].sort(1).values  # without the strongest
    rows = values.gather(1, at[:, :, None].expand(-1, -1, 5))
    search = Search(Candidates(at, rows, 300), {b"": (weights, set(range(7)))}, 4)
    for part, block in ContributionStream.of(made(values), 70).blocks():
        search.look(part.start, block)
    candidates, _ = search.result()
    assert search.missed
    assert candidates.examples.tolist() == [sorted(row) for row in order[:, :9].tolist()]
    torch.testing.assert_close(candidates.rows, values.gather(1, candidates.examples[:, :, None].expand(-1, -1, 5)))


def test_weightings_that_were_seen_need_no_pass():
    found = made(drawn())
    source = StreamedContributions(ContributionStream.of(found, 50), k=3, center=True, normalise="rms")
    problem = source.problem(list(range(7)))
    weights = problem.weights(problem.start())
    passes = []
    for factor in (1.0, 1.0, 1 + 1e-12, torch.tensor([1.0, 0.3, 2.0, 1.0, 0.1])):
        source.problem(list(range(7))).loss(weights * factor)
        source.complete()
        passes.append(source.n_passes)
    assert passes == [2, 2, 2, 3]
    source.problem([2]).loss(weights)
    assert source.complete()


@pytest.mark.parametrize("n", [1, 2, 7, 49, 100])
def test_parts_are_visited_far_apart_and_all(n):
    found = spread_out(range(0, 10 * n, 10))
    assert sorted(found) == list(range(0, 10 * n, 10))
    if n > 7:
        first = sorted(found[:5])
        assert max(b - a for a, b in itertools.pairwise([0, *first, 10 * n])) <= 4 * n


def test_a_stream_of_a_method_is_its_contributions():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double().eval()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    task = Task.classification(model)
    train, queries = Examples((x[:22], y[:22])), Examples((x[22:], y[22:]))
    for method in ("grad_dot", "influence_gn", "ekfac"):
        whole = contributions(task, train, queries, method)
        stream = stream_contributions(task, train, queries, method)
        assert stream.shape == tuple(whole.values.shape)
        found = stream.collect()
        torch.testing.assert_close(found.values, whole.values)
        assert (found.method, found.groups, found.unit) == (whole.method, whole.groups, whole.unit)
        assert found.provenance == whole.provenance
        learned = learn_weights(stream, "nnls", k=3, holdout=0)
        torch.testing.assert_close(learned.values, learn_weights(whole, "nnls", k=3, holdout=0).values)
        assert isinstance(learned, GroupWeights)


def test_candidates_of_some_queries_only_are_checked():
    found = made(drawn())
    source = StreamedContributions(ContributionStream.of(found, 50), k=3, center=True, normalise="rms")
    problem = source.problem([1, 4])
    x = problem.start()
    torch.testing.assert_close(
        problem.signal(x), WeightProblem(found.values[[1, 4]], 3).signal(x), rtol=1e-9, atol=1e-9
    )
    assert source.complete() in (True, False)
    assert problem.shape == (2, 200, 5)
