"""Per-example gradients layer by layer: `LAYER_RULES` says how each kind of layer makes them.

`COMPOSITES` are modules that use parameters without calling a layer, and run in parts that have rules.
"""

from __future__ import annotations

from torch import nn

from whence.gradients.layers.attention import Attention
from whence.gradients.layers.bare import BareParameters
from whence.gradients.layers.composite import Composite, Part
from whence.gradients.layers.conv import ConvRule
from whence.gradients.layers.conv1d_hf import TransposedLinearRule, is_conv1d_hf
from whence.gradients.layers.embedding import EmbeddingRule
from whence.gradients.layers.linear import LINEAR
from whence.gradients.layers.local import LocalRule
from whence.gradients.layers.norms import BatchNormRule, GroupNormRule, LastDimsNormRule
from whence.gradients.layers.rule import Captured, KroneckerRule, LayerRule

LAYER_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LINEAR,
    nn.Conv1d: ConvRule(),
    nn.Conv2d: ConvRule(),
    nn.Conv3d: ConvRule(),
    nn.Embedding: EmbeddingRule(),
    nn.LayerNorm: LastDimsNormRule(),
    nn.RMSNorm: LastDimsNormRule(),
    nn.GroupNorm: GroupNormRule(),
    nn.BatchNorm1d: BatchNormRule(),
    nn.BatchNorm2d: BatchNormRule(),
    nn.BatchNorm3d: BatchNormRule(),
}
COMPOSITES: dict[type[nn.Module], type[Composite]] = {
    nn.MultiheadAttention: Attention,
}
TRANSPOSED = TransposedLinearRule()
LOCAL = LocalRule()


def rule_for(module: nn.Module) -> LayerRule | None:
    """The rule of its class, where it knows the module's settings; for other classes the local rule; else None."""
    # Others, as of the older weight norm, are known to no rule of the table.
    usual = module._parameters.keys() <= {"weight", "bias"}
    if is_conv1d_hf(module) and usual:
        return TRANSPOSED
    for cls, rule in LAYER_RULES.items():
        if isinstance(module, cls) and _runs_like(module, cls):
            return rule if usual and rule.applies(module) else None
    return LOCAL if LOCAL.applies(module) else None


def composite_for(module: nn.Module) -> Composite | None:
    """How a module without a rule runs in parts: by its class, or for the sake of its bare parameters; else None."""
    if "forward" in vars(module) or isinstance(module, tuple(LAYER_RULES)):
        return None
    for cls, composite in COMPOSITES.items():
        if isinstance(module, cls):
            return composite(module) if _runs_like(module, cls) and composite.applies(module) else None
    return BareParameters(module) if BareParameters.applies(module) else None


def layers_of(module: nn.Module) -> list[tuple[nn.Module, LayerRule, dict[str, nn.Parameter]]]:
    """The layers that use a module's parameters, their rules and parameters: itself, its parts, or none."""
    rule = rule_for(module)
    if rule is not None:
        return [(module, rule, {own: p for own, p in module._parameters.items() if p is not None})]
    whole = composite_for(module)
    return [] if whole is None else [(part, rule, part.in_place) for part, rule in whole.parts.items()]


def _runs_like(module: nn.Module, cls: type[nn.Module]) -> bool:
    """A subclass, or a module with a `forward` of its own, may compute something else."""
    methods = ("forward", "_conv_forward", "__call__")
    same = all(getattr(type(module), name, None) is getattr(cls, name, None) for name in methods)
    return same and "forward" not in vars(module)


__all__ = [
    "COMPOSITES",
    "LAYER_RULES",
    "BareParameters",
    "Captured",
    "KroneckerRule",
    "LayerRule",
    "LocalRule",
    "Part",
    "layers_of",
    "rule_for",
]
