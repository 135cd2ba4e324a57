"""Task: what a model computes, what it was trained on, and what is explained."""

from whence.task.checkpoint import load_checkpoint
from whence.task.groupings import GROUPINGS, Along, Channels, Grouping, Heads, NameOf
from whence.task.groups import ParameterGroups
from whence.task.losses import LOSSES, CallableLoss, CrossEntropy, Loss, SquaredError
from whence.task.measures import MEASURES, Measure
from whence.task.parameters import ParameterLayout, fingerprint, model_state, working_dtype
from whence.task.task import ModelOutputs, Pick, Task
from whence.task.weights import GroupWeights

__all__ = [
    "GROUPINGS",
    "LOSSES",
    "MEASURES",
    "Along",
    "CallableLoss",
    "Channels",
    "CrossEntropy",
    "GroupWeights",
    "Grouping",
    "Heads",
    "Loss",
    "Measure",
    "ModelOutputs",
    "NameOf",
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
