"""Any layer without a rule of its own: `vmap` through this one layer, not through the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from whence.gradients.layers.rule import Captured, LayerRule, per_example


@final
class LocalRule(LayerRule):
    """A module without children, called with one tensor and returning one: PReLU, a library's own RMS norm, ...

    Cost:
        One more forward and backward pass of the layer, vectorised.
    """

    def applies(self, module: nn.Module) -> bool:
        """Not with children, whose calls are seen by themselves, nor with hooks, which would run a second time."""
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        return not module.training and not hooked and next(module.children(), None) is None

    def capture(self, module: nn.Module, x: Tensor) -> Captured:
        """The input, and the parameters and buffers that are in place during the call."""
        state = {**module._parameters, **module._buffers}
        return x.detach(), {name: t.detach() for name, t in state.items() if t is not None}

    def of_examples(self, x: Captured, first: int, stop: int, n: int) -> Captured:
        """Of the input; the parameters are the same for all."""
        inputs, state = x
        return super().of_examples(inputs, first, stop, n), state

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """All wanted parameters, (n, *shape)."""
        inputs, state = _cast(x[0], g.dtype), {name: _cast(t, g.dtype) for name, t in x[1].items()}
        wanted = {name: state[name] for name in out}

        def one_example(x: Tensor, g: Tensor) -> dict[str, Tensor]:
            def run(parameters: dict[str, Tensor]) -> Tensor:
                return functional_call(module, {**state, **parameters}, (x,))  # type: ignore[no-any-return]

            grads: dict[str, Tensor] = vjp(run, wanted)[1](g)[0]
            return grads

        rows: dict[str, Tensor] = vmap(one_example)(per_example(inputs, n), per_example(g, n))
        for name, tensor in out.items():
            tensor.copy_(rows[name])


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
