"""Weights of parameter groups: how much each part of a model is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import pandas as pd
import torch
from torch import Tensor

from whence.errors import InputError, ShapeError, StoreError, StoreMismatchError
from whence.storage import read_json, write_json
from whence.task.groups import ParameterGroups
from whence.task.parameters import ParameterLayout

if TYPE_CHECKING:
    import altair

_FORMAT, _VERSION = "whence-group-weights", 1


@final
@dataclass(frozen=True, eq=False)
class GroupWeights:
    """One non-negative weight for each parameter group, normalised to mean 1: uniform weights change nothing.

    Args:
        values: (n_groups,), non-negative, not all zero; any scale.
        groups: What the weights belong to.
        name: "uniform", "rms", "learned", or any other word for tables and charts.
        method: The attribution method they were made for; None where they suit any.
        facts: How they were made, as JSON.
    Raises:
        ShapeError: Not one value for each group.
        InputError: A value is negative or not finite, all are zero, or `facts` is not JSON.
    """

    values: Tensor
    groups: ParameterGroups
    name: str = "given"
    method: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.values).detach().to("cpu", torch.float64)
        if tuple(values.shape) != (len(self.groups),):
            raise ShapeError(f"`values` must be (n_groups,) = ({len(self.groups)},); got {tuple(values.shape)}.")
        if not bool(torch.isfinite(values).all()) or bool((values < 0).any()) or not bool(values.any()):
            raise InputError(
                f"Weights must be finite, non-negative and not all zero; got {[float(f'{v:.4g}') for v in values]}."
            )
        # Already normalised values stay as they are, to the last bit: weights can be saved and loaded again.
        mean = float(values.mean())
        object.__setattr__(self, "values", values if abs(mean - 1) < 1e-12 else values / mean)
        object.__setattr__(self, "facts", _as_json(self.facts))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {weight:.3g}" for name, weight in list(self.by_name().items())[:8])
        more = ", ..." if len(self.groups) > 8 else ""
        return f"GroupWeights({self.name!r}, {len(self.groups)} groups: {shown}{more})"

    @classmethod
    def uniform(cls, groups: ParameterGroups) -> GroupWeights:
        """Every group counts alike."""
        return cls(torch.ones(len(groups)), groups, "uniform")

    @classmethod
    def only(cls, groups: ParameterGroups, group: str) -> GroupWeights:
        """One group alone."""
        if group not in groups.names:
            raise InputError(f"No group {group!r}. Known: {', '.join(groups.names)}.")
        return cls(torch.tensor([float(name == group) for name in groups.names]), groups, group)

    @property
    def is_uniform(self) -> bool:
        """Whether the weights change nothing."""
        return bool((self.values == 1).all())

    @property
    def ratio(self) -> float:
        """Largest weight over smallest; infinite where a group is dropped."""
        smallest = float(self.values.min())
        return float(self.values.max()) / smallest if smallest > 0 else math.inf

    @property
    def entropy(self) -> float:
        """Entropy of the shares over that of uniform weights: 1 for uniform weights, 0 for a single group."""
        if len(self.values) == 1:
            return 1.0
        shares = self.values / self.values.sum()
        return float(torch.special.entr(shares).sum()) / math.log(len(shares))

    def of_parameter(self, layout: ParameterLayout) -> Tensor:
        """The weight of every entry of the flat parameter vector; (n_params,) float64.

        Raises:
            InputError: The weights belong to other parameters.
        """
        return self.values[self.groups.of_parameter(layout)]

    def by_name(self) -> dict[str, float]:
        """{group: weight}, in the model's order."""
        return dict(zip(self.groups.names, self.values.tolist(), strict=True))

    def to_pandas(self) -> pd.DataFrame:
        """Columns group, weight, n_params, in the model's order."""
        columns = {"group": self.groups.names, "weight": self.values.numpy(), "n_params": self.groups.sizes}
        return pd.DataFrame(columns)

    def chart(self) -> altair.Chart:
        """A bar for each group, in the model's order; the rule at 1 is what uniform weights give."""
        import altair as alt

        bars = (
            alt.Chart(self.to_pandas(), title=f"weights: {self.name}")
            .mark_bar()
            .encode(
                x=alt.X("weight:Q", title="weight (mean 1)"),
                y=alt.Y("group:N", sort=list(self.groups.names), title=None),
                tooltip=["group", "weight", "n_params"],
            )
        )
        rule = alt.Chart(pd.DataFrame({"weight": [1.0]})).mark_rule(strokeDash=[4, 4]).encode(x="weight:Q")
        return alt.layer(bars, rule)  # type: ignore[return-value]

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write JSON that `load` reads back exactly.

        Raises:
            StoreError: `path` exists and `overwrite` is False.
            StoreWriteError: It cannot be written; what was there before is still there.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise StoreError(f"{path} exists. Choose another name, or pass `overwrite=True`.")
        content = {"name": self.name, "method": self.method, "values": self.values.tolist(), "facts": dict(self.facts)}
        write_json(path, {"format": _FORMAT, "version": _VERSION, **content, "groups": self.groups.to_dict()})
        return path

    @classmethod
    def load(cls, path: str | Path) -> GroupWeights:
        """Read what `save` wrote.

        Raises:
            StoreError: There is no such file, or it is damaged.
            StoreMismatchError: The file holds something else.
        """
        found = read_json(path)
        if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (_FORMAT, _VERSION):
            raise StoreMismatchError(f"{path} holds no group weights of this whence. Name a file that `save` wrote.")
        try:
            groups = ParameterGroups.from_dict(found["groups"])
            values = torch.tensor(found["values"], dtype=torch.float64)
            return cls(values, groups, found["name"], found["method"], found["facts"])
        except (KeyError, TypeError, AttributeError, InputError) as error:
            raise StoreError(f"{path} is damaged ({error}). Write it again.") from error


def _as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(facts), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"`facts` must be JSON (finite numbers, text, lists, dicts): {error}.") from None
    return plain
