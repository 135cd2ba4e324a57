"""Engine: all runs of a chunk at once, their parameters stacked along a leading dimension."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from whence.batches import Batch, flatten
from whence.errors import UnsupportedError
from whence.task import ModelOutputs
from whence.training.job import Job, JobResult, start_of
from whence.training.lockstep import Replicas, train_in_lockstep
from whence.training.stacked_layers import chain_of, run_chain


def run_stacked(job: Job) -> JobResult:
    """Train all runs of a job together.

    Raises:
        UnsupportedError: The model cannot be vmapped.
    Cost:
        Memory n_runs * n_params * (2 + optimizer states) and the activations of n_runs batches.
    """
    start, fixed = start_of(job.task.model)
    leaves = {name: x.expand(job.n_runs, *x.shape).clone().requires_grad_() for name, x in start.items()}
    layers = chain_of(job.task, leaves)

    def chained(batch: Batch) -> Tensor:
        assert layers is not None
        assert isinstance(job.task.outputs, ModelOutputs)
        x = job.task.outputs.inputs(batch)
        return run_chain(layers, leaves, by_run(x)).flatten(0, 1)

    def vectorized(batch: Batch) -> Tensor:
        tensors, rebuild = flatten(batch)

        def one_run(own: dict[str, Tensor], *parts: Tensor) -> Tensor:
            return job.task.call({**own, **fixed}, rebuild(parts))

        try:
            outputs: Tensor = vmap(one_run)(leaves, *(by_run(x) for x in tensors))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedError(
                f"The stacked engine cannot run this model, since torch.func.vmap cannot: {error} "
                'Use engine="loop" or engine="processes".'
            ) from error
        return outputs.flatten(0, 1)

    def by_run(x: Tensor) -> Tensor:
        return x.reshape(job.n_runs, -1, *x.shape[1:])

    forward = vectorized if layers is None else chained
    return train_in_lockstep(job, Replicas(job.left_out, leaves, True, job.task.model, forward), start)
