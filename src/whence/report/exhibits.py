"""What an example looks like on the page: a text, a picture, or a row of features; and its label."""

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

LONGEST_SIDE: Final = 96  # pixels; larger pictures are averaged down, or a page of photographs would be megabytes
TRAIN: Final = 0  # the two sides of `Exhibits`
QUERY: Final = 1
_SMALLEST_SIDE: Final = 4
_WIDEST_TARGET: Final = 4  # numbers per example up to which a tensor may be a target
_FEATURES_SHOWN: Final = 12
_FEATURES_MARKED: Final = 3


@dataclass(frozen=True, eq=False)
class FeatureRow:
    """One feature of the query and of the examples beside it; a mark where it is among the most different ones.

    `values` are the numbers behind the texts: that of the query, then those of the examples.
    """

    name: str
    query: str
    cells: tuple[tuple[str, Mark], ...]
    values: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Exhibits:
    """How train examples and queries are shown, side by side and alike.

    The input is the first floating-point tensor of a batch (else the first tensor), the target the last other one with
    at most four numbers per example. A side that is None has neither label nor picture nor features. Where a side has
    texts nothing is compared by features: they would be numbers of tokens.
    """

    train: Examples | None
    queries: Examples | None
    class_names: Sequence[str] | None

    @cached_property
    def _sides(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        sides = (self.train, self.queries)
        return tuple((None, None) if examples is None else _parts(examples) for examples in sides)

    @cached_property
    def _inputs(self) -> tuple[Tensor | None, ...]:
        return tuple(inputs for inputs, _ in self._sides)

    @cached_property
    def _targets(self) -> tuple[Tensor | None, ...]:
        return tuple(targets for _, targets in self._sides)

    @cached_property
    def _known_inputs(self) -> list[Tensor]:
        return [x for x in self._inputs if x is not None]

    @cached_property
    def are_pictures(self) -> bool:
        """Whether all sides there are are (n, 1 or 3, h, w) with at least 4 x 4 pixels."""
        return bool(self._known_inputs) and all(_is_picture(x) for x in self._known_inputs)

    @property
    def are_photographs(self) -> bool:
        """Whether they are pictures in color."""
        return self.are_pictures and self._known_inputs[0].shape[1] == 3

    def shows_picture(self, side: int) -> bool:
        """Whether the examples of a side are pictures."""
        return self.are_pictures and self._inputs[side] is not None

    @property
    def are_texts(self) -> bool:
        """Whether a side has texts."""
        return any(examples is not None and examples.texts is not None for examples in (self.train, self.queries))

    def passage(self, side: int, index: int) -> str | None:
        """The text of an example, where its side has texts."""
        examples = self.queries if side == QUERY else self.train
        return None if examples is None or examples.texts is None else examples.texts[index]

    @property
    def have_features(self) -> bool:
        """Whether examples are compared feature by feature: where they are neither pictures nor texts."""
        return not self.are_pictures and not self.are_texts

    @cached_property
    def has_classes(self) -> bool:
        """Whether the targets are classes: whole numbers, or anything that comes with class names."""
        target = self._targets[TRAIN] if self.train is not None else self._targets[QUERY]
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

    def picture(self, side: int, index: int, longest: int = LONGEST_SIDE) -> str:
        """A PNG as a data address, no side longer than `longest` pixels; empty where the examples are no pictures.

        Black and white are 0 and 1 where all pixels lie between, else the lowest and the highest pixel of all.
        """
        inputs = self._inputs[side]
        if inputs is None or not self.are_pictures:
            return ""
        low, high = self._range
        image = inputs[index].detach().float().cpu()
        image = ((image - low) / (high - low)).clamp(0, 1)
        found = max(image.shape[1:])
        if found > longest:
            size = [max(1, round(side * longest / found)) for side in image.shape[1:]]
            image = F.interpolate(image[None], size=size, mode="area")[0]
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        png = encode_png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"

    @cached_property
    def _range(self) -> tuple[float, float]:
        low = min(float(x.min()) for x in self._known_inputs)
        high = max(float(x.max()) for x in self._known_inputs)
        if low >= 0 and high <= 1:
            return 0.0, 1.0
        return low, high if high > low else low + 1

    def shown_features(self, query: int, neighbors: Sequence[int]) -> tuple[int, ...]:
        """Features worth a line: all where they are few, else those in which the neighbors differ most; in order."""
        if not self.have_features or self.train is None or self.queries is None:
            return ()
        n = self.n_features
        if n <= _FEATURES_SHOWN or not neighbors:
            return tuple(range(min(n, _FEATURES_SHOWN)))
        strongest = self._differences(query, neighbors).abs().amax(0).argsort(descending=True, stable=True)
        return tuple(sorted(strongest[:_FEATURES_SHOWN].tolist()))

    def feature_rows(self, query: int, neighbors: Sequence[int], features: Sequence[int]) -> tuple[FeatureRow, ...]:
        """Values of `features` for a query and train examples, the three most different of each example marked."""
        if not features:
            return ()
        at = torch.tensor(list(features))
        differences = self._differences(query, neighbors)[:, at]
        order = differences.abs().argsort(dim=1, descending=True, stable=True)[:, :_FEATURES_MARKED]
        marked = torch.zeros_like(differences, dtype=torch.bool).scatter_(1, order, True) & (differences != 0)
        train, queries = self._features(TRAIN), self._features(QUERY)
        values = torch.cat([queries[query][at][None], train[list(neighbors)][:, at]]).double()
        rows = []
        for j, feature in enumerate(features):
            numbers = values[:, j].tolist()
            texts = aligned(numbers, float(self._scale[feature]))
            marks = [_mark(bool(m), float(d)) for m, d in zip(marked[:, j], differences[:, j], strict=True)]
            cells = tuple(zip(texts[1:], marks, strict=True))
            rows.append(FeatureRow(self._feature_name(feature), texts[0], cells, tuple(numbers)))
        return tuple(rows)

    def key_features(self, indices: Sequence[int]) -> list[str]:
        """The three features in which each of these train examples lies furthest from the mean, in words."""
        if not self.have_features or self.train is None:
            return [""] * len(indices)
        values = self._features(TRAIN)[list(indices)].double()
        away = (values - self._center) / self._scale
        order = away.abs().argsort(dim=1, descending=True, stable=True)[:, :_FEATURES_MARKED]
        return [
            ", ".join(
                f"{self._feature_name(j)} {aligned([float(row[j])], float(self._scale[j]))[0]}" for j in most.tolist()
            )
            for row, most in zip(values, order, strict=True)
        ]

    @cached_property
    def n_features(self) -> int:
        """Features that train examples and queries share; padded texts may differ in length."""
        return min((x[0].numel() * (2 if x.is_complex() else 1) for x in self._known_inputs), default=0)

    def _feature_name(self, feature: int) -> str:
        known = [examples.feature_names for examples in (self.train, self.queries) if examples is not None]
        names = next((names for names in known if names), None)
        return short(names[feature]) if names and len(names) == self.n_features else f"feature {feature}"

    @cached_property
    def _flattened(self) -> dict[int, Tensor]:
        return {side: _flat(x)[:, : self.n_features] for side, x in enumerate(self._inputs) if x is not None}

    def _features(self, side: int) -> Tensor:
        """(n, n_features) of a side that is there."""
        return self._flattened[side]

    @cached_property
    def _scale(self) -> Tensor:
        """Standard deviation of each feature among the train examples; 1 where it is constant."""
        spread = _wide(self._features(TRAIN)).std(0, correction=0).double()
        return torch.where(spread > 0, spread, 1.0)

    @cached_property
    def _center(self) -> Tensor:
        """Mean of each feature among the train examples."""
        return _wide(self._features(TRAIN)).mean(0).double()

    def _differences(self, query: int, neighbors: Sequence[int]) -> Tensor:
        """(len(neighbors), n_features) example minus query, in standard deviations."""
        return (self._features(TRAIN)[list(neighbors)].double() - self._features(QUERY)[query].double()) / self._scale


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


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _mark(is_marked: bool, difference: float) -> Mark:
    if not is_marked:
        return ""
    return "higher" if difference > 0 else "lower"
