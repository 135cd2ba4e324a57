"""Planted label noise: exactly as many as asked, always another class, and the truth kept."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.data import Examples, plant_label_noise
from whence.errors import DataError, InputError, ShapeError


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


def labelled(n: int, n_classes: int, dtype: torch.dtype = torch.int64) -> Examples:
    x = torch.arange(n, dtype=torch.float32)[:, None]
    return Examples((x, (torch.arange(n) % n_classes).to(dtype)), ids=[f"id{k}" for k in range(n)])


@given(n=st.integers(1, 40), n_classes=st.integers(2, 6), fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_exactly_the_asked_share_changes_to_another_class(n, n_classes, fraction, seed):
    examples = labelled(n, n_classes)
    noisy = plant_label_noise(examples, fraction=fraction, n_classes=n_classes, seed=seed)
    x, y = noisy.examples.all()
    assert int(noisy.flipped.sum()) == round(fraction * n)
    assert_close(y != noisy.clean, noisy.flipped)
    assert_close(noisy.clean, examples.all()[1])
    assert_close(x, examples.all()[0])
    assert bool(((y >= 0) & (y < n_classes)).all())
    assert noisy.examples.ids == examples.ids


def test_every_other_class_is_equally_likely():
    examples = Examples((torch.zeros(6000, 1), torch.full((6000,), 2)))
    _, y = plant_label_noise(examples, fraction=1.0, n_classes=4, seed=0).examples.all()
    counts = y.bincount(minlength=4)
    # Binomial(6000, 1/3) has a deviation of 37: five of them.
    assert counts[2] == 0
    assert all(abs(int(counts[k]) - 2000) < 5 * 37 for k in (0, 1, 3))


def test_the_seed_alone_decides():
    def flipped(seed: int) -> list[bool]:
        torch.manual_seed(seed + 100)
        return plant_label_noise(labelled(50, 3), fraction=0.3, n_classes=3, seed=seed).flipped.tolist()

    assert flipped(1) == flipped(1)
    assert flipped(1) != flipped(2)


def test_small_integer_types_do_not_overflow():
    examples = Examples((torch.zeros(3, 1), torch.tensor([199, 198, 150], dtype=torch.uint8)))
    noisy = plant_label_noise(examples, fraction=1.0, n_classes=200, seed=0)
    assert noisy.examples.all()[1].dtype == torch.uint8
    assert bool(noisy.flipped.all())
    assert_close(noisy.examples.all()[1] != noisy.clean, noisy.flipped)
    assert int(noisy.examples.all()[1].max()) < 200


@pytest.mark.parametrize(
    "make, target",
    [(lambda x, y: {"x": x, "label": y}, "label"), (lambda x, y: (y, x), 0), (Record, "y"), (lambda x, y: (x, y), -1)],
    ids=["dict", "first", "dataclass", "last"],
)
def test_labels_may_be_anywhere_in_a_batch(make, target):
    x, y = labelled(10, 3).all()
    noisy = plant_label_noise(Examples(make(x, y)), fraction=0.5, n_classes=3, seed=0, target=target)
    assert type(noisy.examples.all()) is type(make(x, y))
    assert_close(noisy.clean, y)
    assert int(noisy.flipped.sum()) == 5


def test_the_given_examples_stay_clean():
    examples = labelled(10, 2)
    before = examples.all()[1].clone()
    plant_label_noise(examples, fraction=1.0, n_classes=2, seed=0)
    assert_close(examples.all()[1], before)


@pytest.mark.parametrize(
    "options, error, reason",
    [
        ({"fraction": 1.5}, InputError, "fraction"),
        ({"fraction": float("nan")}, InputError, "fraction"),
        ({"n_classes": 1}, InputError, "n_classes"),
        ({"n_classes": 2}, DataError, r"found 0\.\.2"),
        ({"target": 5}, DataError, "no part `target=5`"),
        ({"target": "y"}, DataError, "no part `target='y'`"),
        ({"target": 0}, ShapeError, r"got \(6, 1\)"),
    ],
)
def test_noise_that_cannot_be_planted(options, error, reason):
    with pytest.raises(error, match=reason):
        plant_label_noise(labelled(6, 3), **{"fraction": 0.5, "n_classes": 3, "seed": 0, **options})


def test_labels_must_be_integers_that_hold_every_class():
    with pytest.raises(DataError, match="cannot hold 300 classes"):
        plant_label_noise(labelled(6, 3, torch.uint8), fraction=0.5, n_classes=300, seed=0)
    with pytest.raises(DataError, match="float32"):
        plant_label_noise(Examples((torch.zeros(2, 1), torch.zeros(2))), fraction=0.5, n_classes=2, seed=0)
