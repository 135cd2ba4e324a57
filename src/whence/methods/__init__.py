"""Attribution methods, one a file, by the names of their presets."""

from whence.methods.diagonal import self_influence
from whence.methods.horizon import horizon_filter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.scoring import Call, attribute, attribute_with, block_source
from whence.methods.table import METHODS

__all__ = [
    "METHODS",
    "Call",
    "Inputs",
    "Preset",
    "Result",
    "attribute",
    "attribute_with",
    "block_source",
    "horizon_filter",
    "self_influence",
]
