"""Engine: one run after the other, each an ordinary training loop over tensors in memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from whence.batches import Batch
from whence.training.job import Job, JobResult, start_of
from whence.training.lockstep import Replicas, train_in_lockstep


def run_loop(job: Job) -> JobResult:
    """Train the runs of a job one by one: the reference for the stacked engine, and faster for larger models.

    Cost:
        Memory of one run; time of n_runs ordinary trainings without a DataLoader.
    """
    results = [_run_one(job, lacks) for lacks in job.left_out]
    return JobResult(
        torch.cat([r.measures for r in results], 1),
        torch.cat([r.distances for r in results], 1),
        {name: torch.cat([r.parameters[name] for r in results]) for name in results[0].parameters},
    )


def _run_one(job: Job, lacks: tuple[int, ...]) -> JobResult:
    model = copy.deepcopy(job.task.model)
    leaves: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def forward(batch: Batch) -> Tensor:
        return job.task.outputs(model, batch)

    start, _ = start_of(job.task.model)
    return train_in_lockstep(job, Replicas([lacks], leaves, False, model, forward), start)
