"""Adapters: tasks for models of other libraries, known by how they are called; none of these libraries is imported."""

from whence.adapters.causal_lm import causal_language_model
from whence.adapters.images import image_classification
from whence.adapters.sequence_classification import sequence_classification
from whence.adapters.spans import span_queries, token_queries

__all__ = [
    "causal_language_model",
    "image_classification",
    "sequence_classification",
    "span_queries",
    "token_queries",
]
