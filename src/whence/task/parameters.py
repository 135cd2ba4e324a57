"""Which parameters are attributed, and how they lie in one long vector."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from whence.checks import require_finite
from whence.errors import InputError


@dataclass(frozen=True)
class ParameterLayout:
    """Trainable parameters of a model, in the order of `named_parameters()`; a tied tensor counts once.

    Attributes:
        names: Parameter names.
        shapes: Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """The layout of all parameters with `requires_grad`."""
        tracked = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
        if not tracked:
            raise InputError("The model has no parameter with requires_grad=True: nothing can be attributed to it.")
        names, shapes = zip(*tracked, strict=True)
        return cls(names, shapes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Start of each parameter in the flat vector, and the end."""
        return (0, *itertools.accumulate(self.sizes))

    @property
    def n_params(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor], n_leading: int = 0) -> Tensor:
        """One vector from named tensors that share `n_leading` leading dimensions: (..., n_params)."""
        # Not `flatten`, which has no dimension to start at in a parameter without dimensions.
        parts = [tensors[name].reshape(*tensors[name].shape[:n_leading], -1) for name in self.names]
        return torch.cat(parts, dim=-1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Named tensors from vectors (..., n_params), as views."""
        leading = flat.shape[:-1]
        pieces = torch.split(flat, list(self.sizes), dim=-1)
        return {
            name: piece.reshape((*leading, *shape))
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }


def working_dtype(model: nn.Module, dtype: torch.dtype | None = None) -> torch.dtype:
    """The dtype gradients are computed in: `dtype`, or the parameters' own but never below float32."""
    if dtype is not None:
        return dtype
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return torch.float64 if own == {torch.float64} else torch.float32


def model_state(model: nn.Module, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached trainable parameters, and everything else (frozen parameters, buffers), floats cast to `dtype`.

    Raises:
        NonFiniteError: A parameter or buffer holds NaN or infinity; the message names it.
    """

    def cast(name: str, x: Tensor) -> Tensor:
        require_finite(x, f"Parameter or buffer {name!r}")
        return x.detach().to(dtype) if x.is_floating_point() else x.detach()

    trainable = {name: cast(name, p) for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: cast(name, p) for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= {name: cast(name, b) for name, b in model.named_buffers()}
    return trainable, fixed


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"{name}|{x.dtype}|{tuple(x.shape)}|".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
