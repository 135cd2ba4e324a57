"""Modules that use parameters without calling a layer: while recorded they run in parts, each a layer of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from whence.gradients.layers.rule import LayerRule


class Part(nn.Module):
    """A layer inside a module that never calls it as one.

    Its parameters belong to other modules, and are in place only during a call.

    Attributes:
        whole: What it is a part of.
        sources: Own parameter -> the module that holds it, and its name there.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, whole: Composite, sources: Mapping[str, tuple[nn.Module, str]]) -> None:
        super().__init__()
        self.whole = whole
        self.sources = {own: (at, slot) for own, (at, slot) in sources.items() if at._parameters[slot] is not None}
        self._parameters.update({"weight": None, "bias": None})

    @property
    def in_place(self) -> dict[str, nn.Parameter]:
        """Own parameter -> what its holder has for it now."""
        found = {own: at._parameters[slot] for own, (at, slot) in self.sources.items()}
        return {own: p for own, p in found.items() if p is not None}

    def run(self, x: Tensor) -> Tensor:
        """One call, seen by hooks."""
        self._parameters.update(self.in_place)
        try:
            out: Tensor = self(x)
        finally:
            self._parameters.update(dict.fromkeys(self.sources))
        return out


class Composite(ABC):
    """A module, and how it does what it does by calls of parts.

    Attributes:
        module: The module.
        own_forward: Its own way.
        parts: Each part with its rule.
    """

    parts: Mapping[Part, LayerRule]

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own_forward = module.forward

    @classmethod
    @abstractmethod
    def applies(cls, module: nn.Module) -> bool:
        """Whether the settings of this module are known."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `own_forward` gives, up to rounding.

        For calls of an unknown form `own_forward` itself: its use of the parameters is then seen and they fall back.
        """

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, calls of the module run in parts."""
        vars(self.module)["forward"] = self.forward
        try:
            yield
        finally:
            del vars(self.module)["forward"]
