"""The demo, small: what it promises of its numbers, and that a second run continues from the first."""

from dataclasses import replace

import pytest
import torch

from whence.data import load, plant_label_noise
from whence.evaluation import mislabel_auc
from whence.gradients import outputs_of
from whence.methods import self_influence
from whence.report.demo import case_of, notes_of, suspects_of
from whence.studies.demo import (
    DIABETES,
    DIGITS,
    NOISE,
    TEST_FRACTION,
    Asked,
    accuracy,
    diabetes_net,
    diabetes_part,
    digits_net,
    digits_part,
)
from whence.task import Task
from whence.training import train

SMALL_DIGITS = replace(
    DIGITS,
    points=(1,),
    further=replace(DIGITS.further, epochs=1),
    left_out=12,
    seeds=2,
    n_queries=8,
    n_learning=20,
    kept_sets=4,
)
SMALL_DIABETES = replace(DIABETES, points=(1, 5), further=replace(DIABETES.further, epochs=5), seeds=3, kept_sets=16)


@pytest.mark.parametrize("noise_seed", [0, 1, 2])
def test_self_influence_finds_planted_labels_of_a_well_trained_net(noise_seed):
    split = load("digits", test_fraction=TEST_FRACTION)
    noisy = plant_label_noise(split.train, fraction=NOISE, n_classes=10, seed=noise_seed)
    task = train(Task.classification(digits_net()), noisy.examples, DIGITS.original)
    assert accuracy(task, split.test) >= 0.94
    found = mislabel_auc(self_influence(task, noisy.examples), noisy.flipped)
    assert found.value >= 0.95
    losses = task.loss(outputs_of(task, noisy.examples, dtype=torch.float64), noisy.examples.all())
    by_loss = mislabel_auc(losses.detach(), noisy.flipped)
    assert by_loss.value > 0.9  # the loss alone is as good a detector here: nothing more is claimed


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, diabetes_part(out, plan=SMALL_DIABETES)


def test_gradient_methods_agree_with_further_training_and_random_does_not(diabetes):
    _, part = diabetes
    chance = part.agreement["random"]
    for method in ("grad_dot", "grad_cos", "influence_gn", "horizon", "horizon_ahead"):
        for point, (value, low, high) in part.agreement[method].items():
            assert low <= value <= high
            assert low > chance[point][0]
    assert all(abs(value) < 0.1 for value, _, _ in chance.values())


def test_look_ahead_follows_further_training_best(diabetes):
    _, part = diabetes
    for point in SMALL_DIABETES.points:
        best = max(values[point][0] for method, values in part.agreement.items() if method != "horizon_ahead")
        assert part.agreement["horizon_ahead"][point][0] > best - 0.02


def test_a_second_demo_continues_from_the_first(diabetes):
    out, part = diabetes
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = diabetes_part(out, plan=SMALL_DIABETES)
    assert before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    timed = {"weights_seconds"}
    assert {k: v for k, v in again.summary.items() if k not in timed} == {
        k: v for k, v in part.summary.items() if k not in timed
    }


def test_linear_datamodeling_scores_tell_methods_from_chance(diabetes):
    _, part = diabetes
    summary = part.summary
    assert summary["kept_sets"] == 16
    value, low, high = summary["lds_of_methods"]["random"]
    assert low < 0 < high
    assert summary["lds_of_methods"]["horizon_ahead"][1] > value
    assert list(summary["lds"]) == ["uniform", "rms", "learned"]
    highest = summary["lds_ceiling_interval"][1]
    assert all(limits[1] <= highest for limits in summary["lds_of_methods"].values())
    gap = summary["lds"]["learned"][0] - summary["lds"]["uniform"][0]
    assert summary["lds_differences"]["learned - uniform"][0] == pytest.approx(gap)


def test_weights_are_learned_on_queries_used_for_nothing_else(diabetes):
    _, part = diabetes
    split = load("diabetes")
    asked = Asked.of(Task.regression(diabetes_net()), split.train, split.test, SMALL_DIABETES)
    assert asked.inputs.queries.ids == part.queries.ids
    assert len(asked.learning) == part.weighing.n_learning == 48
    assert not set(asked.learning.ids) & set(part.queries.ids)


def test_digits_part_has_everything_the_report_shows(tmp_path):
    part = digits_part(tmp_path, plan=SMALL_DIGITS)
    assert part.scores.shape == (8, 1078)
    assert set(part.summary["mislabel_auc"]) == {"self_influence", "self_influence_learned", "loss"}
    assert part.summary["weights_seconds"] < 60
    table = suspects_of(part)
    assert table is not None
    wrong = (table["given"] != table["true"]).to_numpy()
    assert wrong.sum() == round(NOISE * 1078)
    assert wrong[table["score"].argsort()[::-1][:20]].mean() > 0.5  # the worst suspects are mostly planted
    case = case_of(part)
    assert case.title == DIGITS.title
    assert [weights.name for weights in case.weights] == ["rms", "learned"]
    assert list(case.group_lds) == list(case.weights[0].groups.names)
    assert "learned on 20 held-out queries" in " ".join(notes_of(part))
    assert any("AUC" in note for note in notes_of(part))
