"""Parameters (1, ...) that a module uses itself, such as a class token or a table of positions.

If the examples are the first dimension of what such a parameter is added to or joined with, it may as well have a row
for each of them, whose gradient is then that example's own. The probes see whether this is so: a row that another
example reaches, or a module that cannot run, and the parameter falls back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from whence.gradients.layers.composite import Composite, Part
from whence.gradients.layers.rule import Captured, LayerRule


@final
class Repeated(Part):
    """The parameter, for each row of an input of which only the number of rows matters."""

    def forward(self, x: Tensor) -> Tensor:
        """(n,) to (n, ...)."""
        assert self.weight is not None
        return self.weight.expand(x.shape[0], *self.weight.shape[1:])


@final
class RepeatedRule(LayerRule):
    """The gradient at an example's row."""

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight (n, 1, ...)."""
        out["weight"].copy_(g[:, None])


@final
class BareParameters(Composite):
    """A module whose parameters (1, ...) are repeated; its others are left as they are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.repeated = {name: Repeated(self, {"weight": (module, name)}) for name in _repeatable(module)}
        self.parts = dict.fromkeys(self.repeated.values(), RepeatedRule())

    @classmethod
    def applies(cls, module: nn.Module) -> bool:
        """With a parameter (1, ...) of two dimensions or more."""
        return bool(_repeatable(module))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, with a tensor for each of these parameters that the recorder may give more rows."""
        slots: dict[str, Any] = self.module._parameters
        kept = {name: slots[name] for name in self.repeated}
        slots.update({name: part.run(kept[name].new_zeros(1)) for name, part in self.repeated.items()})
        try:
            return self.own_forward(*args, **kwargs)
        finally:
            slots.update(kept)


def _repeatable(module: nn.Module) -> list[str]:
    return [name for name, p in module._parameters.items() if p is not None and p.ndim > 1 and p.shape[0] == 1]
