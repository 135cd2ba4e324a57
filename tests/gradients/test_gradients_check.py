"""The self-check of gradients: it passes on good models, and it can fail."""

import pytest
import torch
from torch import nn

from whence.errors import ModeError
from whence.gradients import PATHS, check_gradients
from whence.gradients.loop import pull_back_loop
from whence.task import Task
from whence.testing.problems import PROBLEMS, mlp, mlp_regression


@pytest.mark.parametrize("name", PROBLEMS)
def test_good_models_agree(name):
    problem = PROBLEMS[name]()
    found = check_gradients(problem.task, problem.train)
    assert found.agrees
    assert found.path == ("loop" if name == "branching" else "hooks")
    assert set(found.relative_difference) == {found.path, "loop"}
    assert found.tolerance == 1e-10
    assert f"path {found.path}: agrees" in str(found)
    if name != "frozen":
        assert (found.coverage, found.frozen) == (100.0, ())


def test_frozen_parameters_are_counted_and_named():
    problem = PROBLEMS["frozen"]()
    found = check_gradients(problem.task, problem.train)
    assert found.coverage == pytest.approx(100 * 12 / 32)
    assert found.frozen == ("0.weight", "0.bias")
    assert "coverage 37.5 % of parameters\nfrozen: 0.weight, 0.bias" in str(found)


class Idle(nn.Module):
    """One of its layers is used by nothing."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = mlp(3, 2), mlp(3, 2)

    def forward(self, x):
        return self.used(x)


def test_parameters_without_any_gradient_are_named():
    problem = mlp_regression()
    found = check_gradients(Task.regression(Idle().eval()), problem.train)
    assert found.agrees
    assert found.untouched == ("idle.0.weight", "idle.0.bias")
    assert "zero gradient on all examples looked at: idle.0.weight, idle.0.bias" in str(found)


def test_words_that_do_not_occur_do_not_make_a_table_untouched():
    problem = PROBLEMS["embedding"]()
    assert check_gradients(problem.task, problem.train).untouched == ()


@pytest.mark.parametrize("factor, shown", [(1.001, "DISAGREES"), (torch.nan, "DISAGREES"), (1.0, "agrees")])
def test_a_broken_path_is_found_and_its_parameter_named(monkeypatch, factor, shown):
    problem = mlp_regression()

    def broken(task, *rest):
        rows = pull_back_loop(task, *rest).clone()
        bias = slice(*task.layout.offsets[1:3])  # 0.bias
        rows[..., bias] *= factor
        return rows

    monkeypatch.setitem(PATHS, "hooks", broken)
    found = check_gradients(problem.task, problem.train)
    assert found.agrees == (shown == "agrees")
    assert f"path hooks: {shown}" in str(found)
    assert found.relative_difference["loop"] <= found.tolerance
    if not found.agrees:
        assert found.worst_parameter["hooks"] == "0.bias"


def test_a_model_whose_answer_depends_on_the_batch_disagrees():
    """Centering over the batch: an example alone is centered to zero, which no per-example gradient means."""

    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(3, 2)

        def forward(self, x):
            return self.net(x - x.mean(0))

    found = check_gradients(Task.regression(Centered().eval()), mlp_regression().train)
    assert not found.agrees


def test_float32_has_a_tolerance_of_its_own(monkeypatch):
    monkeypatch.setitem(PATHS, "hooks", lambda *rest: pull_back_loop(*rest) * (1 + 1e-5))
    problem = mlp_regression(dtype=torch.float32)
    found = check_gradients(problem.task, problem.train)
    assert (found.tolerance, found.agrees) == (1e-4, True)
    found = check_gradients(problem.task, problem.train, dtype=torch.float64)
    assert (found.tolerance, found.agrees) == (1e-10, False)


def test_only_the_first_n_are_looked_at(monkeypatch):
    problem = mlp_regression()
    seen = []

    def counting(task, trainable, fixed, batch, cotangents):
        seen.append(len(cotangents))
        return pull_back_loop(task, trainable, fixed, batch, cotangents)

    monkeypatch.setitem(PATHS, "loop", counting)
    check_gradients(problem.task, problem.train, n=5)
    check_gradients(problem.task, problem.train, n=100)
    assert seen == [5, 14]


def test_train_mode_is_refused():
    problem = PROBLEMS["dropout"]()
    problem.task.model.train()
    with pytest.raises(ModeError):
        check_gradients(problem.task, problem.train)
