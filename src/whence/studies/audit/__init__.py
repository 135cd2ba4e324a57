"""Audit: which method to trust on one's own model."""

from whence.studies.audit.candidates import Candidate, default_candidates
from whence.studies.audit.run import audit
from whence.studies.audit.verdict import Audit

__all__ = ["Audit", "Candidate", "audit", "default_candidates"]
