"""Per-example gradients: a reference loop, a vectorised and a layer-wise path, and a check against the reference."""

from whence.gradients.check import GradientCheck, check_gradients
from whence.gradients.hooks import HookCoverage, hook_coverage
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
    "HookCoverage",
    "cast_batch",
    "check_gradients",
    "chunk_size",
    "hook_coverage",
    "loss_gradients",
    "measure_gradients",
    "moved_outputs",
    "outputs_of",
    "pull_back",
    "slopes",
]
