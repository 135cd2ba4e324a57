"""What really happens: further training without examples, and retraining on kept sets."""

from whence.gold.further import Gold, further_train
from whence.gold.retraining import Retrained, retrain

__all__ = ["Gold", "Retrained", "further_train", "retrain"]
