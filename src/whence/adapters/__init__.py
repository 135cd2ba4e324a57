"""Adapters: tasks for models of other libraries, known by how they are called; none of these libraries is imported."""

from whence.adapters.images import image_classification
from whence.adapters.sequence_classification import sequence_classification

__all__ = ["image_classification", "sequence_classification"]
