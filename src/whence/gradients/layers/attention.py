"""`nn.MultiheadAttention`: linear layers before and after the products of heads, which have no parameters."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whence.gradients.layers.composite import Composite, Part
from whence.gradients.layers.linear import LINEAR
from whence.gradients.layers.rule import Captured, KroneckerRule, LayerRule, positions, sum_of_outer

KNOWN = {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"}


@final
class Projection(Part):
    """A linear layer of some rows of its weight and bias; without a weight the bias alone.

    Attributes:
        rows: Which.
        n_rows: Of how many.
    """

    def __init__(
        self, whole: Composite, sources: Mapping[str, tuple[nn.Module, str]], rows: slice, n_rows: int
    ) -> None:
        super().__init__(whole, sources)
        self.rows, self.n_rows = rows, n_rows

    def forward(self, x: Tensor) -> Tensor:
        """(..., i) to (..., rows)."""
        bias = None if self.bias is None else self.bias[self.rows]
        if self.weight is not None:
            return F.linear(x, self.weight[self.rows], bias)
        return x if bias is None else x + bias


@final
class ProjectionRule(KroneckerRule):
    """As a linear layer with all rows, of which the others get no gradient from this call."""

    def factors(self, module: nn.Module, x: Captured, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Inputs (n, s, i) and output gradients (n, s, all rows)."""
        assert isinstance(module, Projection)
        g = positions(g, n)
        whole = g.new_zeros(*g.shape[:2], module.n_rows)
        whole[..., module.rows] = g
        return positions(x, n), whole

    def fill(self, module: nn.Module, x: Captured, g: Tensor, n: int, out: Mapping[str, Tensor]) -> None:
        """Weight (n, all rows, i) and bias (n, all rows)."""
        assert isinstance(module, Projection)
        a, g = positions(x, n), positions(g, n)
        if "weight" in out:
            sum_of_outer(g, a, out["weight"].zero_()[:, module.rows])
        if "bias" in out:
            out["bias"].zero_()[:, module.rows] = g.sum(1)


PROJECTION = ProjectionRule()


@final
class Attention(Composite):
    """Self- and cross-attention in eval mode, with masks, weights, and keys and values of other sizes.

    The stacked weight of queries, keys and values is one layer of 3 d outputs, called for all three at once if they
    come from one tensor, else for those rows that a tensor needs. Three weights are three layers, and their biases,
    which are one parameter, a fourth.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        assert isinstance(module, nn.MultiheadAttention)
        self.attention = module
        self.stacked = module.in_proj_weight is not None
        own = {"bias": (module, "in_proj_bias"), **({"weight": (module, "in_proj_weight")} if self.stacked else {})}
        d = module.embed_dim
        ends = {"q": (0, 1), "k": (1, 2), "v": (2, 3), "kv": (1, 3), "qkv": (0, 3)}
        self.rows = {
            name: Projection(self, own, slice(first * d, last * d), 3 * d) for name, (first, last) in ends.items()
        }
        three = {} if self.stacked else {name: {"weight": (module, f"{name}_proj_weight")} for name in "qkv"}
        self.three = {name: Projection(self, sources, slice(d), d) for name, sources in three.items()}
        out: dict[str, tuple[nn.Module, str]] = {own: (module.out_proj, own) for own in ("weight", "bias")}
        self.out = Projection(self, out, slice(d), d)
        rules: dict[Part, LayerRule] = dict.fromkeys(self.rows.values(), PROJECTION)
        self.parts = {**rules, **dict.fromkeys((*self.three.values(), self.out), LINEAR)}

    @classmethod
    def applies(cls, module: nn.Module) -> bool:
        """Not with keys and values that no example has: `add_bias_kv`, `add_zero_attn`."""
        return (
            isinstance(module, nn.MultiheadAttention)
            and not module.add_zero_attn
            and module._parameters.keys() == KNOWN  # others with `add_bias_kv`, or under a parametrization
            and module.out_proj._parameters.keys() == {"weight", "bias"}
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        """Outputs (n, s, d), or (s, n, d), and the weights of the keys or None."""
        hint = is_causal and attn_mask is None  # an error, which is torch's to raise
        if self.attention.training or query.ndim != 3 or query.is_nested or hint:
            return self.own_forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if not self.attention.batch_first:
            turned = {id(x): x.transpose(0, 1) for x in (query, key, value)}  # one tensor stays one
            query, key, value = (turned[id(x)] for x in (query, key, value))
        heads = self.attention.num_heads
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in self._projected(query, key, value))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else _merged(attn_mask, key_padding_mask, heads, q.dtype)
        weights = None
        if need_weights:
            scores = q / sqrt(q.shape[-1]) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            attended = weights @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        out = self.out.run(attended.transpose(1, 2).flatten(2))
        if not self.attention.batch_first:
            out = out.transpose(0, 1).contiguous()  # as from torch, for a model that asks for a view of it
        return out, weights.mean(1) if weights is not None and average_attn_weights else weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (n, s, d) of all heads."""
        inputs = dict(zip("qkv", (query, key, value), strict=True))
        if not self.stacked:
            return tuple(self.rows[name].run(self.three[name].run(x)) for name, x in inputs.items())
        if query is key is value:
            return self.rows["qkv"].run(query).chunk(3, -1)
        if key is value:
            return self.rows["q"].run(query), *self.rows["kv"].run(key).chunk(2, -1)
        return tuple(self.rows[name].run(x) for name, x in inputs.items())


def _merged(attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """What to add to scores (n, heads, queries, keys)."""
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(-1, heads, *attn_mask.shape[1:]))
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None, :])
    added = [_added(mask, dtype) for mask in masks]
    return sum(added[1:], added[0]) if added else None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of booleans, True where nothing is seen, as numbers to add."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)
