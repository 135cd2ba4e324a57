"""Tasks on image classifiers that are called with `pixel_values` and answer with more than a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from whence.adapters.logits import Labels, kind_of, logits, part
from whence.batches import Batch
from whence.task import CrossEntropy, Measure, Pick, SquaredError, Task
from whence.task.losses import PerExample
from whence.task.task import Outputs


def image_classification(
    model: nn.Module,
    *,
    pixel_values: int | str = "pixel_values",
    target: int | str = "labels",
    measure: str | Measure | PerExample = "loss",
    lower_is_better: bool | None = None,
    embedding: Outputs | None = None,
    factory: str | None = None,
) -> Task:
    """A `Task` on a `...ForImageClassification` of transformers, or on any module called as `model(pixel_values=)`.

    For a module that takes one tensor and gives logits, as those of torchvision and timm, use `Task.classification`.
    Loss and attention are those of `sequence_classification`.

    Args:
        model: In eval mode.
        pixel_values, target: Where these are in a batch: key, field or position.
        measure, lower_is_better, embedding, factory: As in `Task`.
    Raises:
        UnsupportedError: Several labels at once, or an attention without the derivatives that methods need.
        InputError: A classifier has one output.
    """
    kind = kind_of(model)
    labels = Labels(Pick(target), kind)
    return Task(
        model,
        outputs=Pixels(Pick(pixel_values)),
        loss=CrossEntropy(labels) if kind == "classification" else SquaredError(labels),
        measure=measure,
        lower_is_better=lower_is_better,
        target=labels,
        embedding=embedding,
        factory=factory,
    )


@dataclass(frozen=True)
class Pixels:
    """`(model, batch) -> (b, classes)` of a model of images (b, c, h, w)."""

    pixel_values: Pick

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return logits(model, {"pixel_values": part(batch, self.pixel_values, "pixel_values")})
