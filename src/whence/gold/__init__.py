"""What really happens: further training without examples, retraining on kept sets, single steps on one example."""

from whence.gold.class_lead import CLASS_LEAD, ClassLead, class_lead
from whence.gold.further import Gold, further_train
from whence.gold.initialisation import Initialize, reinitialized
from whence.gold.one_step import OneStep, StepEngine, one_step
from whence.gold.retraining import Retrained, retrain

__all__ = [
    "CLASS_LEAD",
    "ClassLead",
    "Gold",
    "Initialize",
    "OneStep",
    "Retrained",
    "StepEngine",
    "class_lead",
    "further_train",
    "one_step",
    "reinitialized",
    "retrain",
]
