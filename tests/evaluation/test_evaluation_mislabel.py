"""Area under the ROC curve against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from whence.errors import InputError, NonFiniteError, ShapeError, UnknownNameError
from whence.evaluation import mislabel_auc, mislabel_aucs

examples = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({flipped for _, flipped in pairs}) == 2
)


@settings(deadline=None, max_examples=50)
@given(examples)
def test_equals_scikit_learn_with_ties(pairs):
    scores = torch.tensor([float(s) for s, _ in pairs])
    flipped = torch.tensor([f for _, f in pairs])
    assert mislabel_auc(scores, flipped, n_bootstrap=2).value == pytest.approx(roc_auc_score(flipped, scores))


def test_extremes_by_hand():
    flipped = torch.tensor([True, False, True, False])
    assert mislabel_auc(torch.tensor([3.0, 1.0, 2.0, 0.0]), flipped) == (1.0, 1.0, 1.0)
    assert mislabel_auc(torch.tensor([-3.0, -1.0, -2.0, 0.0]), flipped) == (0.0, 0.0, 0.0)
    assert mislabel_auc(torch.ones(4), flipped) == (0.5, 0.5, 0.5)


def test_interval_has_the_known_width():
    # Hanley and McNeil (1982), equation 1, at area 1/2 with 100 of each kind: sqrt((1/4 + 2 * 99/12) / 100^2) = 0.0409
    generator = torch.Generator().manual_seed(0)
    flipped = torch.arange(200) < 100
    result = mislabel_auc(torch.randn(200, generator=generator), flipped, n_bootstrap=2000)
    assert result.low < result.value < result.high
    assert result.high - result.low == pytest.approx(2 * 1.96 * 0.0409, rel=0.15)


def test_what_has_no_area_is_refused():
    with pytest.raises(InputError, match="0 of 3 labels are flipped"):
        mislabel_auc(torch.rand(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(InputError, match="3 of 3"):
        mislabel_auc(torch.rand(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(InputError, match="bool"):
        mislabel_auc(torch.rand(3), torch.ones(3))
    with pytest.raises(ShapeError, match=r"\(3,\) and \(4,\)"):
        mislabel_auc(torch.rand(3), torch.ones(4, dtype=torch.bool))
    with pytest.raises(NonFiniteError, match="train example 1"):
        mislabel_auc(torch.tensor([0.0, torch.nan]), torch.tensor([True, False]))


def suspicions(n=200, seed=0):
    """Half of the labels flipped; two kinds of suspicion that see the same signal through much common noise."""
    generator = torch.Generator().manual_seed(seed)
    flipped = torch.arange(n) < n // 2
    common, one, other = (torch.randn(n, generator=generator) for _ in range(3))
    base = flipped + common
    return {"plain": base + 0.3 * one, "weighted": 1.5 * flipped + common + 0.3 * other}, flipped


def test_several_at_once_are_each_alone():
    scores, flipped = suspicions()
    found = mislabel_aucs(scores, flipped, n_bootstrap=100)
    for name, values in scores.items():
        assert tuple(found.to_dict()[name]) == mislabel_auc(values, flipped, n_bootstrap=100)
    assert found.table[["n_flipped", "n_clean"]].to_numpy().tolist() == [[100, 100], [100, 100]]


def test_differences_are_paired_and_have_the_width_of_delong():
    scores, flipped = suspicions()
    found = mislabel_aucs(scores, flipped, n_bootstrap=2000)
    value, low, high = found.difference("weighted", "plain")
    areas = {name: roc_auc_score(flipped, values) for name, values in scores.items()}
    assert value == pytest.approx(areas["weighted"] - areas["plain"])
    assert low < value < high
    # DeLong et al. (1988): each example's mean win over the other kind, and the variance of its differences.
    parts = []
    for kind in (flipped, ~flipped):
        wins = []
        for values in scores.values():
            gaps = values[flipped][:, None] - values[~flipped][None, :]
            won = (gaps > 0).double() + 0.5 * (gaps == 0).double()
            wins.append(won.mean(1) if bool(kind[0]) else won.mean(0))
        parts.append(float((wins[1] - wins[0]).var()) / 100)
    assert high - low == pytest.approx(2 * 1.96 * sum(parts) ** 0.5, rel=0.1)
    alone = [found.to_dict()[name] for name in scores]
    assert high - low < 0.8 * min(a[2] - a[1] for a in alone)  # common noise cancels
    assert found.difference("plain", "plain") == [0.0, 0.0, 0.0]
    back = found.difference("plain", "weighted")
    assert back == pytest.approx([-value, -high, -low])


def test_ties_count_half_in_differences_too():
    flipped = torch.tensor([True, True, False, False])
    scores = {"tied": torch.ones(4), "right": torch.tensor([2.0, 2.0, 1.0, 1.0])}
    assert mislabel_aucs(scores, flipped, n_bootstrap=20).difference("right", "tied") == [0.5, 0.5, 0.5]


def test_several_are_refused_by_name():
    flipped = torch.tensor([True, False, False])
    with pytest.raises(InputError, match="is empty"):
        mislabel_aucs({}, flipped)
    with pytest.raises(ShapeError, match=r"`b` .* \(4,\) and \(3,\)"):
        mislabel_aucs({"a": torch.rand(3), "b": torch.rand(4)}, flipped)
    with pytest.raises(NonFiniteError, match=r"`b`.* train example 2"):
        mislabel_aucs({"a": torch.rand(3), "b": torch.tensor([0.0, 1.0, torch.inf])}, flipped)
    with pytest.raises(UnknownNameError, match="'c'"):
        mislabel_aucs({"a": torch.rand(3)}, flipped, n_bootstrap=2).difference("a", "c")
