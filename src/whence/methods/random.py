"""Random scores: what a method that knows nothing reaches."""

from __future__ import annotations

import torch

from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.rng import torch_generator


def random(inputs: Inputs, *, seed: int = 0) -> Result:
    """Independent standard normal scores."""
    shape = (len(inputs.queries), inputs.n_train)
    values = torch.randn(shape, generator=torch_generator(seed, "random scores"), dtype=torch.float64)
    return whole(values, {"seed": seed})


RANDOM = Preset(
    "random",
    "random scores",
    random,
    curvature="none",
    filter="none",
    train_side="none",
    linear_in_w=False,
    baseline=True,
)
