"""whence: which training examples made this model do that, and how far can the answer be trusted?

Importing this package imports nothing heavy: each name is loaded when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whence.algebra import Damping as Damping
    from whence.algebra import Steps as Steps
    from whence.algebra import damped_inverse as damped_inverse
    from whence.algebra import first_order as first_order
    from whence.algebra import flow as flow
    from whence.data import Examples as Examples
    from whence.data import LeftOutSets as LeftOutSets
    from whence.data import load as load
    from whence.data import plant_label_noise as plant_label_noise
    from whence.data import random_kept_sets as random_kept_sets
    from whence.evaluation import mislabel_auc as mislabel_auc
    from whence.evaluation import mislabel_aucs as mislabel_aucs
    from whence.evaluation.agreement import agreement as agreement
    from whence.evaluation.brittleness import brittleness as brittleness
    from whence.evaluation.lds import lds as lds
    from whence.evaluation.reliability import reliability as reliability
    from whence.evaluation.removal import removal as removal
    from whence.evaluation.seeds_curve import seeds_curve as seeds_curve
    from whence.evaluation.tail_patch import tail_patch as tail_patch
    from whence.gold import Gold as Gold
    from whence.gold import further_train as further_train
    from whence.gold import reinitialized as reinitialized
    from whence.gold import retrain as retrain
    from whence.gold.class_lead import class_lead as class_lead
    from whence.gradients import check_gradients as check_gradients
    from whence.methods import METHODS as METHODS
    from whence.methods import Inputs as Inputs
    from whence.methods import attribute as attribute
    from whence.methods import attribute_with as attribute_with
    from whence.methods import horizon_filter as horizon
    from whence.methods import self_influence as self_influence
    from whence.report import ReportCase as ReportCase
    from whence.report import write_report as write_report
    from whence.runs import Setup as Setup
    from whence.scores import Outcomes as Outcomes
    from whence.scores import ScoreMatrix as ScoreMatrix
    from whence.scores import TopK as TopK
    from whence.studies.audit import Audit as Audit
    from whence.studies.audit import Candidate as Candidate
    from whence.studies.audit import audit as audit
    from whence.task import GroupWeights as GroupWeights
    from whence.task import Task as Task
    from whence.task import load_checkpoint as load_checkpoint
    from whence.training import Recipe as Recipe
    from whence.training import train as train
    from whence.weights import Contributions as Contributions
    from whence.weights import contributions as contributions
    from whence.weights import contributions_with as contributions_with
    from whence.weights import distill_weights as distill_weights
    from whence.weights import fit_weights as fit_weights
    from whence.weights import gradient_norms as gradient_norms
    from whence.weights import group_table as group_table
    from whence.weights import learn_weights as learn_weights
    from whence.weights import mixed_with_uniform as mixed_with_uniform
    from whence.weights import relative_to_norms as relative_to_norms

__version__ = "0.1.0"

_ROOMS = {
    "METHODS": "methods",
    "Audit": "studies.audit",
    "Candidate": "studies.audit",
    "Contributions": "weights",
    "Damping": "algebra",
    "Examples": "data",
    "Gold": "gold",
    "GroupWeights": "task",
    "Inputs": "methods",
    "LeftOutSets": "data",
    "Outcomes": "scores",
    "Recipe": "training",
    "ReportCase": "report",
    "ScoreMatrix": "scores",
    "Setup": "runs",
    "Steps": "algebra",
    "Task": "task",
    "TopK": "scores",
    "agreement": "evaluation",
    "attribute": "methods",
    "attribute_with": "methods",
    "audit": "studies.audit",
    "brittleness": "evaluation",
    "check_gradients": "gradients",
    "class_lead": "gold",
    "contributions": "weights",
    "contributions_with": "weights",
    "damped_inverse": "algebra",
    "distill_weights": "weights",
    "first_order": "algebra",
    "fit_weights": "weights",
    "flow": "algebra",
    "further_train": "gold",
    "gradient_norms": "weights",
    "group_table": "weights",
    "horizon": "methods.horizon:horizon_filter",
    "lds": "evaluation",
    "learn_weights": "weights",
    "load": "data",
    "load_checkpoint": "task",
    "mislabel_auc": "evaluation",
    "mislabel_aucs": "evaluation",
    "mixed_with_uniform": "weights",
    "plant_label_noise": "data",
    "random_kept_sets": "data",
    "reinitialized": "gold",
    "relative_to_norms": "weights",
    "reliability": "evaluation",
    "removal": "evaluation",
    "retrain": "gold",
    "seeds_curve": "evaluation",
    "self_influence": "methods",
    "tail_patch": "evaluation",
    "train": "training",
    "write_report": "report",
}
__all__ = [
    "METHODS",
    "Audit",
    "Candidate",
    "Contributions",
    "Damping",
    "Examples",
    "Gold",
    "GroupWeights",
    "Inputs",
    "LeftOutSets",
    "Outcomes",
    "Recipe",
    "ReportCase",
    "ScoreMatrix",
    "Setup",
    "Steps",
    "Task",
    "TopK",
    "agreement",
    "attribute",
    "attribute_with",
    "audit",
    "brittleness",
    "check_gradients",
    "class_lead",
    "contributions",
    "contributions_with",
    "damped_inverse",
    "distill_weights",
    "first_order",
    "fit_weights",
    "flow",
    "further_train",
    "gradient_norms",
    "group_table",
    "horizon",
    "lds",
    "learn_weights",
    "load",
    "load_checkpoint",
    "mislabel_auc",
    "mislabel_aucs",
    "mixed_with_uniform",
    "plant_label_noise",
    "random_kept_sets",
    "reinitialized",
    "relative_to_norms",
    "reliability",
    "removal",
    "retrain",
    "seeds_curve",
    "self_influence",
    "tail_patch",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'whence' has no attribute {name!r}; it has {', '.join(__all__)}")
    room, _, own = _ROOMS[name].partition(":")
    value = getattr(importlib.import_module(f"whence.{room}"), own or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
