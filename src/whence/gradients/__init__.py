"""Per-example gradients: a reference loop, a vectorised and a layer-wise path, and a check against the reference."""

from whence.gradients.check import GradientCheck, check_gradients
from whence.gradients.layer_pass import LayerGradient
from whence.gradients.pairs import gradient_products
from whence.gradients.passes import Block, Cotangents, blocks, slope_of
from whence.gradients.plan import HookPlan
from whence.gradients.products import loss_products
from whence.gradients.route import HookCoverage, can_vmap, choose_path, hook_coverage, layer_plan, n_outputs
from whence.gradients.rows import (
    PATHS,
    chunk_size,
    loss_gradients,
    measure_gradients,
    moved_outputs,
    output_blocks,
    outputs_of,
    pull_back,
    slopes,
)

__all__ = [
    "PATHS",
    "Block",
    "Cotangents",
    "GradientCheck",
    "HookCoverage",
    "HookPlan",
    "LayerGradient",
    "blocks",
    "can_vmap",
    "check_gradients",
    "choose_path",
    "chunk_size",
    "gradient_products",
    "hook_coverage",
    "layer_plan",
    "loss_gradients",
    "loss_products",
    "measure_gradients",
    "moved_outputs",
    "n_outputs",
    "output_blocks",
    "outputs_of",
    "pull_back",
    "slope_of",
    "slopes",
]
