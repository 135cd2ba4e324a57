"""What an example looks like on the page: a picture, or a row of features; and its label."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from whence.batches import named_leaves
from whence.data import Examples
from whence.report.png import encode_png
from whence.report.wording import aligned, number, short

Mark = Literal["", "higher", "lower"]

_LONGEST_SIDE: Final = 48  # pixels; larger pictures are averaged down, or a page of photographs would be megabytes
_SMALLEST_SIDE: Final = 4
_WIDEST_TARGET: Final = 4  # numbers per example up to which a tensor may be a target
_FEATURES_SHOWN: Final = 12
_FEATURES_MARKED: Final = 3


@dataclass(frozen=True, eq=False)
class FeatureRow:
    """One feature of the query and of the examples beside it; a mark where it is among the most different ones."""

    name: str
    query: str
    cells: tuple[tuple[str, Mark], ...]


@dataclass(frozen=True, eq=False)
class Exhibits:
    """How train examples and queries are shown, side by side and alike.

    The input is the first floating-point tensor of a batch (else the first tensor), the target the last other one with
    at most four numbers per example.
    """

    train: Examples
    queries: Examples
    class_names: Sequence[str] | None

    @cached_property
    def _inputs(self) -> tuple[Tensor, Tensor]:
        return _parts(self.train)[0], _parts(self.queries)[0]

    @cached_property
    def _targets(self) -> tuple[Tensor | None, Tensor | None]:
        return _parts(self.train)[1], _parts(self.queries)[1]

    @cached_property
    def are_pictures(self) -> bool:
        """Whether both sides are (n, 1 or 3, h, w) with at least 4 x 4 pixels."""
        return all(_is_picture(x) for x in self._inputs)

    @cached_property
    def has_classes(self) -> bool:
        """Whether the targets are classes: whole numbers, or anything that comes with class names."""
        target = self._targets[0]
        return target is not None and (bool(self.class_names) or not target.is_floating_point())

    def label(self, side: int, index: int) -> str:
        """The label or target of a train example (`side` 0) or a query (1); empty where there is none."""
        targets = self._targets[side]
        if targets is None:
            return ""
        values = targets[index].flatten().tolist()
        if targets.is_floating_point() and not self.has_classes:
            return ", ".join(aligned(values, self._target_spread))
        return ", ".join(self.label_text(value) for value in values)

    @cached_property
    def _target_spread(self) -> float:
        targets = self._targets[0] if self._targets[0] is not None else self._targets[1]
        return 0.0 if targets is None else float(targets.double().std(correction=0))

    def label_text(self, value: object) -> str:
        """A class by its name, a number as a number, anything else as it is."""
        names = self.class_names or ()
        if isinstance(value, (int, float, np.integer)) and value in range(len(names)):
            return short(names[int(value)])
        return number(value) if isinstance(value, float) else short(value)

    def picture(self, side: int, index: int) -> str:
        """A PNG as a data address; empty where the examples are no pictures.

        Black and white are 0 and 1 where all pixels lie between, else the lowest and the highest pixel of all.
        """
        if not self.are_pictures:
            return ""
        low, high = self._range
        image = self._inputs[side][index].detach().float().cpu()
        image = ((image - low) / (high - low)).clamp(0, 1)
        longest = max(image.shape[1:])
        if longest > _LONGEST_SIDE:
            size = [max(1, round(side * _LONGEST_SIDE / longest)) for side in image.shape[1:]]
            image = F.interpolate(image[None], size=size, mode="area")[0]
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        png = encode_png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"

    @cached_property
    def _range(self) -> tuple[float, float]:
        low = min(float(x.min()) for x in self._inputs)
        high = max(float(x.max()) for x in self._inputs)
        if low >= 0 and high <= 1:
            return 0.0, 1.0
        return low, high if high > low else low + 1

    def shown_features(self, query: int, neighbors: Sequence[int]) -> tuple[int, ...]:
        """Features worth a line: all where they are few, else those in which the neighbors differ most; in order."""
        if self.are_pictures:
            return ()
        n = len(self._scale)
        if n <= _FEATURES_SHOWN or not neighbors:
            return tuple(range(min(n, _FEATURES_SHOWN)))
        strongest = self._differences(query, neighbors).abs().amax(0).argsort(descending=True, stable=True)
        return tuple(sorted(strongest[:_FEATURES_SHOWN].tolist()))

    def feature_rows(self, query: int, neighbors: Sequence[int], features: Sequence[int]) -> tuple[FeatureRow, ...]:
        """Values of `features` for a query and train examples, the three most different of each example marked."""
        if not features:
            return ()
        at = torch.tensor(list(features))
        train, queries = self._features
        differences = self._differences(query, neighbors)[:, at]
        order = differences.abs().argsort(dim=1, descending=True, stable=True)[:, :_FEATURES_MARKED]
        marked = torch.zeros_like(differences, dtype=torch.bool).scatter_(1, order, True) & (differences != 0)
        values = torch.cat([queries[query][at][None], train[list(neighbors)][:, at]]).double()
        rows = []
        for j, feature in enumerate(features):
            texts = aligned(values[:, j].tolist(), float(self._scale[feature]))
            marks = [_mark(bool(m), float(d)) for m, d in zip(marked[:, j], differences[:, j], strict=True)]
            cells = tuple(zip(texts[1:], marks, strict=True))
            rows.append(FeatureRow(self._feature_name(feature), texts[0], cells))
        return tuple(rows)

    @property
    def n_features(self) -> int:
        """Features that train examples and queries share."""
        return len(self._scale)

    def _feature_name(self, feature: int) -> str:
        names = self.train.feature_names or self.queries.feature_names
        return short(names[feature]) if names and len(names) == self.n_features else f"feature {feature}"

    @cached_property
    def _features(self) -> tuple[Tensor, Tensor]:
        train, queries = (_flat(x) for x in self._inputs)
        shared = min(train.shape[1], queries.shape[1])  # padded texts may differ in length
        return train[:, :shared], queries[:, :shared]

    @cached_property
    def _scale(self) -> Tensor:
        """Standard deviation of each feature among the train examples; 1 where it is constant."""
        train = self._features[0]
        wide = train if train.dtype == torch.float64 else train.float()
        spread = wide.std(0, correction=0).double()
        return torch.where(spread > 0, spread, 1.0)

    def _differences(self, query: int, neighbors: Sequence[int]) -> Tensor:
        """(len(neighbors), n_features) example minus query, in standard deviations."""
        train, queries = self._features
        return (train[list(neighbors)].double() - queries[query].double()) / self._scale


def _parts(examples: Examples) -> tuple[Tensor, Tensor | None]:
    """Input and target of a batch."""
    leaves = [leaf for _, leaf in named_leaves(examples.all())]
    at = next((k for k, leaf in enumerate(leaves) if leaf.is_floating_point()), 0)
    if at == len(leaves) - 1 and at > 0 and leaves[at][0].numel() <= _WIDEST_TARGET < leaves[0][0].numel():
        at = 0  # whole-number inputs (tokens, codes) and a floating target
    others = [leaf for k, leaf in enumerate(leaves) if k != at and leaf[0].numel() <= _WIDEST_TARGET]
    return leaves[at], others[-1] if others else None


def _is_picture(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= _SMALLEST_SIDE and not x.is_complex()


def _flat(x: Tensor) -> Tensor:
    real = torch.view_as_real(x) if x.is_complex() else x
    return real.detach().cpu().reshape(len(x), -1)


def _mark(is_marked: bool, difference: float) -> Mark:
    if not is_marked:
        return ""
    return "higher" if difference > 0 else "lower"
