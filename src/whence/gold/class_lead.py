"""How far a classifier's logit of the right class leads the others: its sign says what is predicted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from whence.batches import Batch
from whence.errors import UnsupportedError
from whence.task import CrossEntropy, Measure, Task
from whence.task.losses import Target

CLASS_LEAD = "class_lead"


@dataclass(frozen=True)
class ClassLead(Measure):
    """`z_y - max_{k != y} z_k`: positive exactly where class y is predicted.

    Reference:
        Ilyas et al. (2022), arXiv:2202.00622, the correct-class margin.
    """

    target: Target
    name = CLASS_LEAD
    lower_is_better = False

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        own = self.target(batch)[:, None]
        others = outputs.scatter(1, own, float("-inf")).amax(1)
        lead: Tensor = outputs.gather(1, own)[:, 0] - others
        return lead


def class_lead(task: Task) -> Task:
    """The same task with `ClassLead` as its measure, which `brittleness` needs.

    Raises:
        UnsupportedError: The task is no classifier with cross-entropy: there is no prediction that could flip.
    """
    if not isinstance(task.loss, CrossEntropy):
        raise UnsupportedError(
            f"A prediction can flip only in classification; this task's loss is {task.loss.name!r}, not cross-entropy. "
            "Use `removal` with the task's own measure."
        )
    twin = task.with_model(task.model)
    twin.measure = ClassLead(task.loss.target)
    twin.factory = None  # it would build the task with the measure it had
    return twin
