"""Groupings: which group a parameter belongs to, as a whole or entry by entry along one axis."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from torch import nn

from whence.checks import require_count
from whence.errors import InputError

NameOf = Callable[[str], str]  # parameter name -> group name

# How libraries call the projections into the heads, those that hold queries, keys and values in turn, and those out.
INTO_HEADS: Final = (
    r"(^|\.)(q|k|v|query|key|value|[qkv]_proj|to_[qkv]|[qkv]_lin|qkv|c_attn|query_key_value|qkv_proj|in_proj)$"
)
IN_TURN: Final = r"(^|\.)(qkv|c_attn|qkv_proj|in_proj)$"
OUT_OF_HEADS: Final = r"(^|\.)(o|out|o_proj|out_proj|to_out\.0|out_lin|attn\.c_proj|attention\.(output\.)?dense)$"
HEAD_COUNTS: Final = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")


@dataclass(frozen=True)
class Along:
    """A tensor whose entry k along `axis` belongs to the group `labels[k]`."""

    axis: int
    labels: tuple[str, ...]


class Grouping(ABC):
    """A grouping that may take a tensor apart."""

    @abstractmethod
    def parts(self, name: str, shape: tuple[int, ...]) -> str | Along:
        """The group of a tensor, or those of its entries along an axis."""


def by_tensor(name: str) -> str:
    """Every parameter tensor is a group of its own."""
    return name


def by_module(name: str) -> str:
    """Weight and bias of one module together: `conv1.weight` -> `conv1`."""
    return name.rpartition(".")[0] or name


def by_block(name: str) -> str:
    """Up to and including the first number: `layers.3.attn.q.weight` -> `layers.3`; else the first word."""
    words = name.split(".")
    for k, word in enumerate(words):
        if word.isdigit():
            return ".".join(words[: k + 1])
    return words[0]


def by_depth_and_function(name: str) -> str:
    """The block, and the last two words of the module that are no numbers, whatever stands between.

    `down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight` -> `down_blocks.0: attn1.to_q`.
    """
    depth = by_block(name)
    inside = by_module(name).removeprefix(depth).strip(".").split(".")
    function = [word for word in inside if word and not word.isdigit()][-2:]
    return f"{depth}: {'.'.join(function)}" if function else depth


GROUPINGS: dict[str, NameOf] = {
    "tensor": by_tensor,
    "module": by_module,
    "block": by_block,
    "depth_and_function": by_depth_and_function,
}


@dataclass(frozen=True)
class Channels(Grouping):
    """Blocks of `size` output channels: weight and bias of a module together, `conv1[0:16]`, `conv1[16:32]`, ...

    The first axis of a tensor is taken for its outputs, as torch has it for linear layers and convolutions; tensors
    with no more than `size` entries along it stay whole.
    """

    size: int

    def __post_init__(self) -> None:
        require_count(self.size, "size")

    def parts(self, name: str, shape: tuple[int, ...]) -> str | Along:
        """See `Grouping`."""
        module = by_module(name)
        if not shape or shape[0] <= self.size:
            return module
        starts = [k - k % self.size for k in range(shape[0])]
        return Along(0, tuple(f"{module}[{k}:{min(k + self.size, shape[0])}]" for k in starts))


@dataclass(frozen=True)
class Heads(Grouping):
    """Attention heads: the parts of all projections that belong to one head are one group, `layer.3.attn head 5`.

    Projections into the heads are split along their outputs, the projection out of them along its inputs; its bias
    is a group of its own. What is no projection is grouped by module.

    Args:
        n_heads: Of every layer. Where several query heads share one of keys and values (grouped-query attention), the
            number of the latter: a group then holds all that read them.
        transposed: Names of modules whose weight is (inputs, outputs), as Hugging Face's `Conv1D`.
        into, out: Regular expressions searched in a module's name.
        in_turn: The same, of projections that hold queries, keys and values of all heads one after the other.
    """

    n_heads: int
    transposed: frozenset[str] = frozenset()
    into: str = INTO_HEADS
    out: str = OUT_OF_HEADS
    in_turn: str = IN_TURN

    def __post_init__(self) -> None:
        require_count(self.n_heads, "n_heads")

    @classmethod
    def of(cls, model: nn.Module) -> Heads:
        """Read the number of heads from the model's configuration or its modules, and which weights are transposed.

        Raises:
            InputError: It is not told, or differs between layers.
        """
        counts = set(_head_counts(model))
        if len(counts) != 1:
            raise InputError(
                f"The number of attention heads must be one; found {sorted(counts) or 'none'}. Give "
                "`Heads(n_heads=...)`, or a callable from parameter names to groups."
            )
        transposed = frozenset(name for name, module in model.named_modules() if type(module).__name__ == "Conv1D")
        return cls(counts.pop(), transposed)

    def parts(self, name: str, shape: tuple[int, ...]) -> str | Along:
        """See `Grouping`."""
        module, _, kind = name.rpartition(".")
        is_bias = "bias" in kind
        if kind.startswith("in_proj_"):  # `nn.MultiheadAttention` owns it itself
            return self._split(module, 0, shape, in_turn=True)
        if re.search(self.into, module):
            axis = int(module in self.transposed and not is_bias)
            return self._split(module.rpartition(".")[0], axis, shape, bool(re.search(self.in_turn, module)))
        if re.search(self.out, module):
            if is_bias:
                return f"{module} bias"
            return self._split(_attention_of(module), int(module not in self.transposed), shape, in_turn=False)
        return by_module(name)

    def _split(self, attention: str, axis: int, shape: tuple[int, ...], in_turn: bool) -> str | Along:
        """Equal slices along the axis, three times over where queries, keys and values follow each other."""
        width, rest = divmod(shape[axis], (3 if in_turn else 1) * self.n_heads)
        if rest:
            raise InputError(
                f"A projection of {attention!r} has {shape[axis]} entries, which {self.n_heads} heads do not divide. "
                "Give the number of heads, or a callable from parameter names to groups."
            )
        heads = [k // width % self.n_heads for k in range(shape[axis])]
        return Along(axis, tuple(f"{attention.removesuffix('.self')} head {k}" for k in heads))


def _attention_of(out_module: str) -> str:
    """The attention that a projection out of its heads belongs to: `attention.output.dense` -> `attention`."""
    return out_module.removesuffix(".0").rpartition(".")[0].removesuffix(".output")


def _head_counts(model: nn.Module) -> Iterator[int]:
    config = getattr(model, "config", None)
    for name in ("num_key_value_heads", *HEAD_COUNTS):
        if isinstance(count := getattr(config, name, None), int):
            yield count
            return
    for module in model.modules():
        for name in HEAD_COUNTS:
            if isinstance(count := getattr(module, name, None), int):
                yield count
                break
