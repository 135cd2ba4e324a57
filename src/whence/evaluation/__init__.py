"""How far scores can be trusted: scores against outcomes, one metric a file. Knows no method."""

from whence.evaluation.agreement import Agreement, agreement
from whence.evaluation.correlation import METRICS, cosine, pearson, spearman
from whence.evaluation.lds import Lds, lds
from whence.evaluation.mislabel import MislabelAuc, mislabel_auc
from whence.evaluation.reliability import Reliability, reliability, spearman_brown
from whence.evaluation.seeds_curve import seeds_curve

__all__ = [
    "METRICS",
    "Agreement",
    "Lds",
    "MislabelAuc",
    "Reliability",
    "agreement",
    "cosine",
    "lds",
    "mislabel_auc",
    "pearson",
    "reliability",
    "seeds_curve",
    "spearman",
    "spearman_brown",
]
