"""Runs from a TOML file: settings, a folder that continues, and the commands that fill it."""

from whence.runs.agree import AgreeResult, run_agree
from whence.runs.audit import AuditResult, run_audit
from whence.runs.config import RunConfig, load_config
from whence.runs.evaluate import EvaluateResult, run_evaluate
from whence.runs.folder import RunFolder
from whence.runs.gold import GoldResult, run_gold
from whence.runs.score import ScoreResult, run_score
from whence.runs.score_files import ScoreFiles
from whence.runs.setup import Setup
from whence.runs.weigh import WeighResult, run_weigh

__all__ = [
    "AgreeResult",
    "AuditResult",
    "EvaluateResult",
    "GoldResult",
    "RunConfig",
    "RunFolder",
    "ScoreFiles",
    "ScoreResult",
    "Setup",
    "WeighResult",
    "load_config",
    "run_agree",
    "run_audit",
    "run_evaluate",
    "run_gold",
    "run_score",
    "run_weigh",
]
