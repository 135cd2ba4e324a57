"""What really happens: further training without examples, and retraining on kept sets."""

from whence.gold.further import Gold, further_train
from whence.gold.initialisation import Initialize, reinitialized
from whence.gold.retraining import Retrained, retrain

__all__ = ["Gold", "Initialize", "Retrained", "further_train", "reinitialized", "retrain"]
