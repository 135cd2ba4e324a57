"""How far scores can be trusted: scores against what really happened, one metric a file. Knows no method."""

from whence.evaluation.agreement import Agreement, agreement
from whence.evaluation.brittleness import Brittleness, brittleness
from whence.evaluation.correlation import METRICS, cosine, pearson, spearman
from whence.evaluation.lds import Lds, lds
from whence.evaluation.mislabel import MislabelAuc, MislabelAucs, mislabel_auc, mislabel_aucs
from whence.evaluation.reliability import Reliability, reliability, spearman_brown
from whence.evaluation.removal import Removal, removal
from whence.evaluation.seeds_curve import seeds_curve
from whence.evaluation.tail_patch import TailPatch, tail_patch

__all__ = [
    "METRICS",
    "Agreement",
    "Brittleness",
    "Lds",
    "MislabelAuc",
    "MislabelAucs",
    "Reliability",
    "Removal",
    "TailPatch",
    "agreement",
    "brittleness",
    "cosine",
    "lds",
    "mislabel_auc",
    "mislabel_aucs",
    "pearson",
    "reliability",
    "removal",
    "seeds_curve",
    "spearman",
    "spearman_brown",
    "tail_patch",
]
