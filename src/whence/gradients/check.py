"""A self-check: do the fast and the reference path agree on the user's own model, and what do they cover?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from whence.batches import cast_batch
from whence.data import Examples
from whence.gradients.loop import loss_gradients_loop
from whence.gradients.route import choose_path
from whence.gradients.rows import PATHS, outputs_of, slopes
from whence.task import Task, model_state, working_dtype

FLOAT32_TOLERANCE = 1e-4  # of the largest entry: sums of thousands of float32 products in another order
FLOAT64_TOLERANCE = 1e-10


@dataclass(frozen=True)
class GradientCheck:
    """What `check_gradients` found.

    Attributes:
        path: The path that "auto" takes on this model.
        relative_difference: Path name -> largest difference from plain autograd, over the largest entry.
        worst_parameter: Path name -> the parameter with that difference.
        tolerance: What counts as agreement in this precision.
        coverage: Percent of the model's parameters that are attributed.
        frozen: Parameters left out because they do not require a gradient.
        untouched: Tracked parameters with a zero gradient on every example looked at.
    """

    path: str
    relative_difference: dict[str, float]
    worst_parameter: dict[str, str]
    tolerance: float
    coverage: float
    frozen: tuple[str, ...]
    untouched: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """The path that will be used agrees with plain autograd."""
        return self.relative_difference[self.path] <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.agrees else f"DISAGREES (worst: {self.worst_parameter[self.path]})"
        lines = [
            f"path {self.path}: {verdict}, relative difference {self.relative_difference[self.path]:.1e}",
            f"coverage {self.coverage:.1f} % of parameters",
        ]
        if self.frozen:
            lines.append(f"frozen: {', '.join(self.frozen[:5])}{' ...' if len(self.frozen) > 5 else ''}")
        if self.untouched:
            lines.append(f"zero gradient on all examples looked at: {', '.join(self.untouched[:5])}")
        return "\n".join(lines)


def check_gradients(task: Task, examples: Examples, *, n: int = 8, dtype: torch.dtype | None = None) -> GradientCheck:
    """Compare every gradient path with plain autograd on the first `n` examples of the user's own data and model.

    Cost:
        `n` backward passes of one example, and one vectorised one.
    """
    few = examples.subset(range(min(n, len(examples))))
    task.check(few.all(), few.ids)
    dtype = working_dtype(task.model, dtype)
    trainable, fixed = model_state(task.model, dtype)
    batch = cast_batch(few.all(), dtype, task.device)
    reference = loss_gradients_loop(task, trainable, fixed, batch, len(few))
    v = slopes(task.loss, outputs_of(task, few, dtype=dtype), few)[:, None]
    differences, worst = {}, {}
    chosen = choose_path(task, few)
    for name in dict.fromkeys([chosen, "loop"]):
        gap = (PATHS[name](task, trainable, fixed, batch, v)[:, 0] - reference).abs().amax(0)
        gap = gap.masked_fill(gap.isnan(), torch.inf)  # or `max` below would name another parameter
        differences[name] = float(gap.max() / reference.abs().max().clamp_min(torch.finfo(dtype).tiny))
        per_tensor = {key: float(x.max()) for key, x in task.layout.unflatten(gap).items()}
        worst[name] = max(per_tensor, key=lambda key: per_tensor[key])
    total = sum(p.numel() for p in task.model.parameters())
    touched = {key: bool(x.any()) for key, x in task.layout.unflatten(reference.abs().amax(0)).items()}
    return GradientCheck(
        path=chosen,
        relative_difference=differences,
        worst_parameter=worst,
        tolerance=FLOAT64_TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE,
        coverage=100.0 * task.layout.n_params / total,
        frozen=tuple(name for name, p in task.model.named_parameters() if not p.requires_grad),
        untouched=tuple(key for key, hit in touched.items() if not hit),
    )
