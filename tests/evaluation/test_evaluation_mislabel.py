"""Area under the ROC curve against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from whence.errors import InputError, NonFiniteError, ShapeError
from whence.evaluation import mislabel_auc

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
