"""The training loop itself, for runs that go step by step together: one step function behind every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.batches import Batch, batch_size, map_tensors, take
from whence.errors import NonFiniteError
from whence.task import Task
from whence.training.dropout import set_key
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
        forward: Batch (n_runs, b, ...) -> outputs (n_runs, b, ...) at the current leaves.
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
        self.queries = job.queries.to(job.task.device).all()
        self.exact_queries = map_tensors(lambda x: x.double() if x.is_floating_point() else x, self.queries)
        self.measures: list[Tensor] = []
        self.distances: list[Tensor] = []

    @torch.no_grad()
    def record_until(self, step: int) -> None:
        """Record all points that lie at or before `step` steps of training and are not recorded yet."""
        while len(self.measures) < len(self.job.record_steps) and self.job.record_steps[len(self.measures)] <= step:
            set_key(self.replicas.model, None)
            outputs = self._outputs()
            # Differences of losses of a sure model are far below float32: measure in float64.
            found = torch.stack([self.job.task.measure(run.double(), self.exact_queries) for run in outputs])
            self._require_finite(found, step)
            self.measures.append(found.cpu())
            self.distances.append(self._distance().cpu())

    def _outputs(self) -> Tensor:
        n_runs = len(self.replicas.left_out)
        blocks = []
        for part in torch.arange(batch_size(self.queries)).split(max(1, QUERY_ROWS // n_runs)):  # type: ignore[no-untyped-call]
            rows = take(self.queries, part)
            blocks.append(self.replicas.forward(map_tensors(lambda x: x.expand(n_runs, *x.shape), rows)))
        return torch.cat(blocks, 1)

    def _distance(self) -> Tensor:
        moved = [
            (self.replicas.by_run(x).double() - self.start[name].double()).flatten(1).square().sum(1)
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
    optimizer = job.recipe.make_optimizer(replicas.leaves.values())
    data = job.train.to(job.task.device).all()
    recorder = Recorder(job, replicas, start)
    for batch in job.steps(replicas.left_out):
        recorder.record_until(batch.step)
        set_key(replicas.model, (job.seed, batch.step))
        for group in optimizer.param_groups:
            group["lr"] = job.lr_at(batch.step)
        examples = take(data, batch.indices.to(job.task.device))
        outputs = replicas.forward(examples)
        weights = batch.weights.to(device=outputs.device, dtype=outputs.dtype)
        optimizer.zero_grad(set_to_none=True)
        summed_loss(job.task, outputs, examples, weights).backward()  # type: ignore[no-untyped-call]
        if job.recipe.clip_norm is not None:
            grads = [replicas.by_run(x.grad) for x in replicas.leaves.values() if x.grad is not None]
            clip_runs(grads, job.recipe.clip_norm)
        optimizer.step()
    recorder.record_until(job.record_steps[-1])
    kept = {name: replicas.by_run(x.detach()).clone() for name, x in replicas.leaves.items()}
    return JobResult(
        torch.stack(recorder.measures), torch.stack(recorder.distances), kept if job.keep_parameters else {}
    )


def summed_loss(task: Task, outputs: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Sum of the runs' losses; outputs (n_runs, b, ...), batch (n_runs, b, ...), weights (n_runs, b)."""
    flat = map_tensors(lambda x: x.flatten(0, 1), batch)
    losses = task.loss(outputs.flatten(0, 1), flat)
    return (weights.flatten() * losses).sum()


def clip_runs(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale each run's gradient, in place, to a norm of at most `limit`; tensors (n_runs, ...).

    As `torch.nn.utils.clip_grad_norm_` on each run alone, with its 1e-6 in the denominator.
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    factors = (limit / (norms + 1e-6)).clamp_max(1.0)
    for g in gradients:
        g.mul_(factors.reshape(-1, *[1] * (g.ndim - 1)))
