"""The training loop itself, for runs that go step by step together: one step function behind every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.batches import Batch, batch_size, flatten, map_tensors, take
from whence.errors import NonFiniteError
from whence.training.dropout import keyed_layers, set_key
from whence.training.job import Job, JobResult

QUERY_ROWS = 2**15  # query outputs of all runs computed at once


@dataclass(frozen=True, eq=False)
class Replicas:
    """Some runs of a job, as an engine holds them.

    Attributes:
        left_out: What each run lacks.
        leaves: The tensors an optimizer updates, by name.
        stacked: Whether leaves have a leading dimension of runs; without it there is one run.
        model: Holds the dropout twins.
        forward: Outputs (n_runs * b, ...) at the current leaves of a batch (n_runs * b, ...), run after run.
    """

    left_out: Sequence[Sequence[int]]
    leaves: dict[str, Tensor]
    stacked: bool
    model: nn.Module
    forward: Callable[[Batch], Tensor]

    def by_run(self, x: Tensor) -> Tensor:
        """A leaf or its gradient as (n_runs, ...)."""
        return x if self.stacked else x[None]


class Recorder:
    """Measures of all queries, and distances from the start, at the recorded steps."""

    def __init__(self, job: Job, replicas: Replicas, start: dict[str, Tensor]) -> None:
        self.job, self.replicas, self.start = job, replicas, start
        self.dropout = keyed_layers(replicas.model)
        self.queries = job.queries.to(job.task.device).all()
        self.exact_queries = map_tensors(lambda x: x.double() if x.is_floating_point() else x, self.queries)
        self.measures: list[Tensor] = []
        self.distances: list[Tensor] = []

    @torch.no_grad()
    def record_until(self, step: int) -> None:
        """Record all points that lie at or before `step` steps of training and are not recorded yet."""
        while len(self.measures) < len(self.job.record_steps) and self.job.record_steps[len(self.measures)] <= step:
            set_key(self.dropout, None)
            outputs = self._outputs()
            # Differences of losses of a sure model are far below float32: measure in float64.
            found = torch.stack([self.job.task.measure(run.double(), self.exact_queries) for run in outputs])
            self._require_finite(found, step)
            self.measures.append(found.cpu())
            self.distances.append(self._distance().cpu())

    def _outputs(self) -> Tensor:
        """(n_runs, n_query, ...)."""
        n_runs = len(self.replicas.left_out)
        blocks = []
        for part in torch.arange(batch_size(self.queries)).split(max(1, QUERY_ROWS // n_runs)):  # type: ignore[no-untyped-call]
            outputs = self.replicas.forward(take(self.queries, part.repeat(n_runs)))
            blocks.append(outputs.unflatten(0, (n_runs, len(part))))  # type: ignore[no-untyped-call]
        return torch.cat(blocks, 1)

    def _distance(self) -> Tensor:
        n_runs = len(self.replicas.left_out)
        moved = [
            (self.replicas.by_run(x).double() - self.start[name].double()).reshape(n_runs, -1).square().sum(1)
            for name, x in self.replicas.leaves.items()
        ]
        return torch.stack(moved).sum(0).sqrt()

    def _require_finite(self, measures: Tensor, step: int) -> None:
        if bool(torch.isfinite(measures).all()):
            return
        run, query = (~torch.isfinite(measures)).nonzero()[0].tolist()
        lacks = [self.job.train.ids[i] for i in self.replicas.left_out[run]][:5]
        what = f"without {lacks}" if lacks else "on all data"
        raise NonFiniteError(
            f"Training {what} (seed {self.job.seed}) gave a NaN or infinite measure for query "
            f"{self.job.queries.ids[query]!r} by step {step}. The learning rate {self.job.recipe.lr} may be too large "
            "for this model: lower it, or clip gradients."
        )


def train_in_lockstep(job: Job, replicas: Replicas, start: dict[str, Tensor]) -> JobResult:
    """Train the runs to the last recorded step.

    The gradient of the sum of the runs' losses is, for each run, its own gradient, and every optimizer update is
    elementwise: the runs stay independent.
    """
    leaves = list(replicas.leaves.values())
    optimizer = job.recipe.make_optimizer(leaves)
    data, rebuild = flatten(job.train.to(job.task.device).all())
    dropout = keyed_layers(replicas.model)
    recorder = Recorder(job, replicas, start)
    for step in job.steps(replicas.left_out):
        recorder.record_until(step.step)
        set_key(dropout, (job.seed, step.step))
        for group in optimizer.param_groups:
            group["lr"] = job.lr_at(step.step)
        rows = step.indices.flatten().to(job.task.device)
        batch = rebuild([x[rows] for x in data])
        losses = job.task.loss(replicas.forward(batch), batch)
        weights = step.weights.flatten().to(device=losses.device, dtype=losses.dtype)
        gradients = torch.autograd.grad((weights * losses).sum(), leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = _laid_out_as(leaf, gradient)
        if job.recipe.clip_norm is not None:
            clip_runs([x for x in leaves if x.grad is not None], replicas, job.recipe.clip_norm)
        optimizer.step()
    recorder.record_until(job.record_steps[-1])
    kept = {name: replicas.by_run(x.detach()).clone() for name, x in replicas.leaves.items()}
    return JobResult(
        torch.stack(recorder.measures), torch.stack(recorder.distances), kept if job.keep_parameters else {}
    )


def _laid_out_as(leaf: Tensor, gradient: Tensor | None) -> Tensor | None:
    # Fused optimizers walk memory, not indices: a transposed gradient, such as vmap gives, would update wrong entries.
    if gradient is None or gradient.stride() == leaf.stride():
        return gradient
    return torch.empty_like(leaf).copy_(gradient)


def clip_runs(leaves: Sequence[Tensor], replicas: Replicas, limit: float) -> None:
    """Scale each run's gradient to a norm of at most `limit`.

    As `torch.nn.utils.clip_grad_norm_` on each run alone, with its 1e-6 in the denominator.
    """
    n_runs = len(replicas.left_out)
    gradients = [replicas.by_run(x.grad) for x in leaves if x.grad is not None]
    norms = torch.stack([g.reshape(n_runs, -1).norm(dim=1) for g in gradients]).norm(dim=0)
    factors = (limit / (norms + 1e-6)).clamp_max(1.0)
    for leaf, g in zip(leaves, gradients, strict=True):
        # Not in place: two leaves that are added up get one gradient tensor, which would be scaled twice.
        leaf.grad = (g * factors.reshape(-1, *[1] * (g.ndim - 1))).reshape(leaf.shape)
