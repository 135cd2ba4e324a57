"""Lists by other weights: what the page holds decides every rank that it calls certain, within a budget."""

import base64
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import contributed, data_of, groups, pictures, table, texts, texts_of, write

from whence.report import write_report
from whence.report.album import Album
from whence.report.views.reranking import BUDGET, reranking
from whence.report.views.shown import Shown
from whence.task import GroupWeights
from whence.weights import Contributions


def numbers(text, n_groups):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, n_groups).astype(float)


def case_with(case=pictures, names=("h.0", "h.1", "h.2"), **options):
    plain = case(n_query=3, n_train=60, k=4, **options)
    found = contributed(plain, *names)
    weights = [GroupWeights(torch.arange(1.0, len(names) + 1), found.groups, "learned", "trak")]
    return replace(plain, contributions=found, weights=weights)


def block_of(case):
    return Shown(case, Album()), case.contributions, case.weights


def ranked(query, weights, sign, n_groups):
    """What the page's script does: ids in order, and how many of them no other example can displace."""
    values, end = (numbers(text, n_groups) for text in (query.values, query.above if sign > 0 else query.below))
    used = np.flatnonzero(weights)
    scores = values[:, used] @ weights[used]
    order = [i for i in np.argsort(-sign * scores, kind="stable") if sign * scores[i] > 0]
    bound = sign * float(end[0, used] @ weights[used])
    return [query.examples[i] for i in order], sum(sign * scores[i] >= bound for i in order)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 6), st.data())
def test_ranks_called_certain_are_those_of_all_examples(n_train, n_groups, k, data):
    plain = pictures(n_query=2, n_train=n_train, k=k)
    case = replace(plain, contributions=contributed(plain, *(f"g{j}" for j in range(n_groups))))
    shown, found, weights = block_of(case)
    block = reranking(shown, found, weights)
    picked = np.array(data.draw(st.lists(st.booleans(), min_size=n_groups, max_size=n_groups)), dtype=float)
    if not picked.any():
        picked[0] = 1.0
    ones = np.ones(n_groups)
    for q, query in enumerate(block.queries):
        for sign in (1, -1):
            for weights, exact in ((picked, picked.sum() == 1), (ones, True)):
                scores = sign * (found.values[q].numpy() @ weights)
                wanted = [shown.train(found.train_ids[i]) for i in np.argsort(-scores) if scores[i] > 0]
                ids, certain = ranked(query, weights, sign, n_groups)
                assert ids[:certain] == wanted[:certain]
                assert not exact or ids[:k] == wanted[:k]  # one group alone, or all alike


def test_lists_of_weightings_and_of_single_groups_are_those_of_python():
    case = case_with()
    shown, found, weights = block_of(case)
    block = reranking(shown, found, weights)
    assert block.groups == ("h.0", "h.1", "h.2")
    assert [(one.name, one.values) for one in block.weightings] == [("learned", tuple(weights[0].values.tolist()))]
    lists = [weights[0], *(GroupWeights.only(found.groups, name) for name in found.groups.names)]
    for sign, name in ((1, "supports"), (-1, "opposes")):
        for one in lists:
            top = found.scores(one).top(4, sign=name)
            for query, id in zip(block.queries, found.query_ids, strict=True):
                wanted = [shown.train(train) for train in top[top["query"] == id]["train"]]
                assert ranked(query, one.values.numpy(), sign, 3)[0][:4] == wanted


def test_the_numbers_are_those_of_the_contributions_and_others_are_bounded():
    shown, found, weights = block_of(case_with())
    for q, query in enumerate(reranking(shown, found, weights).queries):
        inside = [i for i, id in enumerate(found.train_ids) if shown.train(id) in query.examples]
        np.testing.assert_array_equal(numbers(query.values, 3), found.values[q][inside].float().numpy())
        rest = np.delete(found.values[q].numpy(), inside, axis=0)
        assert 0 < len(rest) < 60
        np.testing.assert_allclose(numbers(query.above, 3)[0], rest.max(0), rtol=1e-6)
        np.testing.assert_allclose(numbers(query.below, 3)[0], rest.min(0), rtol=1e-6)


def test_where_all_examples_are_there_nothing_bounds_them():
    plain = pictures(n_query=1, n_train=5)
    shown, found, _ = block_of(replace(plain, contributions=contributed(plain, "a")))
    query = reranking(shown, found, []).queries[0]
    assert len(query.examples) == 5
    assert numbers(query.above, 1)[0, 0] == -math.inf
    assert numbers(query.below, 1)[0, 0] == math.inf


def test_weights_of_other_groups_or_methods_rank_nothing(tmp_path):
    case = case_with()
    others = [
        GroupWeights(torch.ones(3), case.contributions.groups, "theirs", "ekfac"),
        GroupWeights(torch.ones(2), groups("a", "b"), "cut", "trak"),
        GroupWeights(torch.ones(3), case.contributions.groups, "any"),
    ]
    _, data = write(tmp_path / "report.html", replace(case, weights=others))
    block = next(b for b in data["cases"][0]["views"]["groups"]["blocks"] if b["kind"] == "reranking")
    assert [one["name"] for one in block["weightings"]] == ["any"]


def test_only_queries_that_are_shown_are_ranked():
    case = replace(case_with(), n_queries=2)
    assert [query.key for query in reranking(*block_of(case)).queries] == ["q-0", "q-1"]
    without_scores = replace(case, scores=None)
    assert len(reranking(*block_of(without_scores)).queries) == 3


@pytest.mark.parametrize("make", [pictures, table, texts])
def test_many_groups_and_queries_stay_within_the_budget_and_say_so(tmp_path, make):
    plain = make(n_query=40, n_train=1000)
    case = replace(plain, contributions=contributed(plain, *(f"h.{k}" for k in range(60))))
    path = write_report(tmp_path / "with.html", case)
    more = path.stat().st_size - write_report(tmp_path / "without.html", plain).stat().st_size
    assert 0.3 * BUDGET < more < 1.2 * BUDGET
    data = data_of(path.read_text("utf-8"))
    block = next(b for b in data["cases"][0]["views"]["groups"]["blocks"] if b["kind"] == "reranking")
    assert 12 <= len(block["queries"]) < 40
    assert f"The first {len(block['queries'])} of 40 queries" in block["summary"]
    assert re.search(r"or among the [125] strongest by a group alone\.$", block["summary"])


def test_more_groups_than_a_page_can_hold_are_said(tmp_path):
    plain = pictures(n_query=1, n_train=1500)
    values = torch.randn(1, 1500, 1500, generator=torch.Generator().manual_seed(0))
    found = Contributions(values, groups(*(f"g{k}" for k in range(1500))), plain.queries.ids, plain.train.ids)
    _, data = write(tmp_path / "report.html", replace(plain, contributions=found))
    assert "so many groups" in texts_of(data["cases"][0]["views"]["groups"])


def test_contributions_of_queries_that_are_not_shown_are_said(tmp_path):
    case = case_with()
    found = case.contributions.rows([2])
    _, data = write(tmp_path / "report.html", replace(case, contributions=found, n_queries=2))
    assert "None of the queries shown" in texts_of(data["cases"][0]["views"]["groups"])


def test_without_contributions_the_view_says_what_keeps_them(tmp_path):
    _, data = write(tmp_path / "report.html", replace(case_with(), contributions=None))
    assert "pass `contributions` of the queries" in texts_of(data["cases"][0]["views"]["groups"])
