"""Task: what a model computes, what it was trained on, and what is explained."""

from whence.task.checkpoint import load_checkpoint
from whence.task.groups import GROUPINGS, ParameterGroups
from whence.task.losses import LOSSES, CallableLoss, CrossEntropy, Loss, SquaredError
from whence.task.measures import MEASURES, Measure
from whence.task.parameters import ParameterLayout, fingerprint, model_state, working_dtype
from whence.task.task import ModelOutputs, Pick, Task
from whence.task.weights import GroupWeights

__all__ = [
    "GROUPINGS",
    "LOSSES",
    "MEASURES",
    "CallableLoss",
    "CrossEntropy",
    "GroupWeights",
    "Loss",
    "Measure",
    "ModelOutputs",
    "ParameterGroups",
    "ParameterLayout",
    "Pick",
    "SquaredError",
    "Task",
    "fingerprint",
    "load_checkpoint",
    "model_state",
    "working_dtype",
]
