"""Small problems, dense per-example gradients, and the derivative of a real run of training.

A fixture here returns a function: these rooms have no package to import from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev

from whence.data import Examples
from whence.task import Task

F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    """A task with its train set and queries."""

    task: Task
    train: Examples
    queries: Examples

    def __iter__(self):
        return iter((self.task, self.train, self.queries))


@dataclass(frozen=True)
class Dense:
    """A problem in dense matrices: gradients of the measures (m, p) and of the losses (n, p), C and H (p, p)."""

    measures: Tensor
    losses: Tensor
    gauss_newton: Tensor
    hessian: Tensor


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(n_features: int, n_outputs: int, hidden: int | None, seed: int, bias: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hidden is None:
            return nn.Linear(n_features, n_outputs, bias=bias).double().eval()
        layers = nn.Linear(n_features, hidden), nn.Tanh(), nn.Linear(hidden, n_outputs)
        return nn.Sequential(*layers).double().eval()


@pytest.fixture(scope="session")
def regression() -> Callable[..., Problem]:
    """Linear where `hidden` is None, one hidden layer otherwise. The parameters are random: not stationary."""

    def build(
        n_train: int = 12,
        n_query: int = 4,
        n_features: int = 3,
        n_outputs: int = 1,
        hidden: int | None = None,
        seed: int = 0,
        bias: bool = True,
        **options: object,
    ) -> Problem:
        model = network(n_features, n_outputs, hidden, seed, bias)
        truth, noise = draw(n_features, n_outputs, seed=seed + 1), draw(n_train + n_query, n_outputs, seed=seed + 2)
        x = draw(n_train + n_query, n_features, seed=seed + 3)
        y = x @ truth + 0.3 * noise
        return Problem(
            Task.regression(model, **options),
            Examples((x[:n_train], y[:n_train]), ids=[f"t{k}" for k in range(n_train)]),
            Examples((x[n_train:], y[n_train:]), ids=[f"q{k}" for k in range(n_query)]),
        )

    return build


@pytest.fixture(scope="session")
def classification() -> Callable[..., Problem]:
    """As `regression`; labels follow a linear rule with some noise."""

    def build(
        n_train: int = 12,
        n_query: int = 4,
        n_features: int = 3,
        n_classes: int = 3,
        hidden: int | None = None,
        seed: int = 0,
        **options: object,
    ) -> Problem:
        model = network(n_features, n_classes, hidden, seed, True)
        x = draw(n_train + n_query, n_features, seed=seed + 3)
        truth, noise = draw(n_features, n_classes, seed=seed + 1), draw(n_train + n_query, n_classes, seed=seed + 2)
        y = (x @ truth + noise).argmax(1)
        return Problem(
            Task.classification(model, **options),
            Examples((x[:n_train], y[:n_train]), ids=[f"t{k}" for k in range(n_train)]),
            Examples((x[n_train:], y[n_train:]), ids=[f"q{k}" for k in range(n_query)]),
        )

    return build


def start_of(task: Task) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


def outputs_at(task: Task, x: Tensor, flat: Tensor) -> Tensor:
    """Outputs of the real model at other parameters, given as one vector."""
    named = dict(task.model.named_parameters())
    pieces = flat.split([p.numel() for p in named.values()])
    state = {name: piece.reshape(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
    return functional_call(task.model, state, (x,))


def losses_of(outputs: Tensor, y: Tensor) -> Tensor:
    """(n,), written with torch's own losses."""
    if y.is_floating_point():
        return nn.functional.mse_loss(outputs, y, reduction="none").flatten(1).mean(1)
    return nn.functional.cross_entropy(outputs, y, reduction="none")


@pytest.fixture(scope="session")
def dense() -> Callable[[Problem], Dense]:
    """Dense gradients and curvatures by `torch.func` on whole batches."""

    def compute(problem: Problem) -> Dense:
        task, (x, y), batch = problem.task, problem.train.all(), problem.queries.all()
        start = start_of(task)
        jacobian = jacrev(lambda flat: outputs_at(task, x, flat))(start)
        now = outputs_at(task, x, start)
        v = torch.stack(
            [hessian(lambda z, t=t: losses_of(z[None], t[None])[0])(z) for z, t in zip(now, y, strict=True)]
        )
        return Dense(
            measures=jacrev(lambda flat: task.measure(outputs_at(task, batch[0], flat), batch))(start).detach(),
            losses=jacrev(lambda flat: losses_of(outputs_at(task, x, flat), y))(start).detach(),
            gauss_newton=torch.einsum("iap,iab,ibq->pq", jacobian, v, jacobian).detach() / len(x),
            hessian=hessian(lambda flat: losses_of(outputs_at(task, x, flat), y).mean())(start).detach(),
        )

    return compute


def rates(lr: float, n_steps: int, total: int, schedule: str, warmup: int) -> list[float]:
    """Learning rates of the first `n_steps` of a run of `total`."""
    shape = {
        "constant": lambda share: 1.0,
        "linear": lambda share: 1.0 - share,
        "cosine": lambda share: 0.5 + 0.5 * math.cos(math.pi * share),
    }[schedule]
    shares = [max(0.0, (t - warmup) / (total - warmup)) for t in range(n_steps)]
    return [lr * min(1.0, (t + 1) / warmup if warmup else 1.0) * shape(share) for t, share in enumerate(shares)]


@dataclass(frozen=True)
class Run:
    """Full-batch SGD that can be differentiated in the weight of each example, 1/n kept fixed."""

    lr: Sequence[float]
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def parameters(self, mean_loss: Callable[[Tensor, Tensor], Tensor], start: Tensor, weights: Tensor) -> Tensor:
        """Where the run ends. `mean_loss` maps parameters and weights to a scalar."""
        flat, buffer = start, torch.zeros_like(start)
        for lr in self.lr:
            slope = grad(mean_loss)(flat, weights) + self.weight_decay * flat
            buffer = self.momentum * buffer + slope
            flat = flat - lr * (slope + self.momentum * buffer if self.nesterov else buffer)
        return flat

    def scores(self, problem: Problem, *, linearised: bool = False) -> Tensor:
        """The definition of a score by autograd through the run: -o_q d measure_q / d weight_i, (m, n)."""
        task, (x, y), batch = problem.task, problem.train.all(), problem.queries.all()
        start = start_of(task)

        def outputs(inputs: Tensor, flat: Tensor) -> Tensor:
            if not linearised:
                return outputs_at(task, inputs, flat)
            now, slope = torch.func.jvp(lambda p: outputs_at(task, inputs, p), (start,), (flat - start,))
            return now + slope

        def mean_loss(flat: Tensor, weights: Tensor) -> Tensor:
            return (weights * losses_of(outputs(x, flat), y)).sum() / len(x)

        def measures(weights: Tensor) -> Tensor:
            return task.measure(outputs(batch[0], self.parameters(mean_loss, start, weights)), batch)

        return -task.measure.orientation * jacrev(measures)(torch.ones(len(x), dtype=F64)).detach()


@pytest.fixture(scope="session")
def run_of() -> Callable[..., Run]:
    """The reference run of a recipe's options, up to `at` of `total` steps."""

    def build(
        lr: float,
        at: int,
        total: int | None = None,
        schedule: str = "constant",
        warmup_steps: int = 0,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> Run:
        return Run(rates(lr, at, total or at, schedule, warmup_steps), momentum, nesterov, weight_decay)

    return build


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Tensor, Tensor, float], None]:
    """Equal to a tolerance times the largest entry wanted."""

    def check(found: Tensor, wanted: Tensor, tolerance: float) -> None:
        assert found.shape == wanted.shape
        gap, size = float((found - wanted).abs().max()), float(wanted.abs().max())
        assert gap <= tolerance * size, f"largest difference {gap:.3e}, largest entry {size:.3e}"

    return check
