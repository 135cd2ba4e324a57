"""Training: one recipe, one step function, three engines, chosen by a timed probe."""

from whence.training.dropout import refuse_functional_dropout, training_twin
from whence.training.engines import (
    ENGINES,
    Chunk,
    EngineName,
    Execution,
    Timing,
    choose,
    limited_threads,
    probe,
    run_chunks,
)
from whence.training.fitting import train
from whence.training.job import Job, JobResult
from whence.training.loop import run_loop
from whence.training.processes import Problem, WorkerPool
from whence.training.recipe import OPTIMIZERS, PointUnit, Recipe
from whence.training.sampler import StepBatch, batches_per_epoch, epoch_orders, step_batches
from whence.training.stacked import run_stacked

__all__ = [
    "ENGINES",
    "OPTIMIZERS",
    "Chunk",
    "EngineName",
    "Execution",
    "Job",
    "JobResult",
    "PointUnit",
    "Problem",
    "Recipe",
    "StepBatch",
    "Timing",
    "WorkerPool",
    "batches_per_epoch",
    "choose",
    "epoch_orders",
    "limited_threads",
    "probe",
    "refuse_functional_dropout",
    "run_chunks",
    "run_loop",
    "run_stacked",
    "step_batches",
    "train",
    "training_twin",
]
