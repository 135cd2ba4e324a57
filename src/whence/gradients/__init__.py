"""Per-example gradients: a reference loop, a vectorised path, and a check of one against the other."""

from whence.gradients.check import GradientCheck, check_gradients
from whence.gradients.rows import (
    PATHS,
    cast_batch,
    chunk_size,
    loss_gradients,
    measure_gradients,
    moved_outputs,
    outputs_of,
    pull_back,
    slopes,
)

__all__ = [
    "PATHS",
    "GradientCheck",
    "cast_batch",
    "check_gradients",
    "chunk_size",
    "loss_gradients",
    "measure_gradients",
    "moved_outputs",
    "outputs_of",
    "pull_back",
    "slopes",
]
