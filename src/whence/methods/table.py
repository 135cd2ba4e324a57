"""The table of methods; a new one is a new file and one line here."""

from __future__ import annotations

from whence.methods.arnoldi import ARNOLDI
from whence.methods.datainf import DATAINF
from whence.methods.ekfac import EKFAC, KFAC
from whence.methods.embedding_cosine import EMBEDDING_COSINE
from whence.methods.grad_cos import GRAD_COS
from whence.methods.grad_dot import GRAD_DOT
from whence.methods.horizon import HORIZON
from whence.methods.horizon_ahead import HORIZON_AHEAD
from whence.methods.influence_cg import INFLUENCE_CG
from whence.methods.influence_fisher import INFLUENCE_FISHER
from whence.methods.influence_gn import INFLUENCE_GN
from whence.methods.influence_hessian import INFLUENCE_HESSIAN
from whence.methods.lissa import LISSA, LISSA_HESSIAN
from whence.methods.logra import LOGRA
from whence.methods.preset import Preset
from whence.methods.random import RANDOM
from whence.methods.representer import REPRESENTER
from whence.methods.tracin import TRACIN
from whence.methods.trackstar import TRACKSTAR
from whence.methods.trak import TRAK
from whence.methods.unrolled import UNROLLED

METHODS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        GRAD_DOT,
        GRAD_COS,
        INFLUENCE_GN,
        INFLUENCE_HESSIAN,
        INFLUENCE_CG,
        INFLUENCE_FISHER,
        ARNOLDI,
        LISSA,
        LISSA_HESSIAN,
        DATAINF,
        KFAC,
        EKFAC,
        HORIZON,
        HORIZON_AHEAD,
        UNROLLED,
        TRAK,
        LOGRA,
        TRACKSTAR,
        TRACIN,
        EMBEDDING_COSINE,
        REPRESENTER,
        RANDOM,
    )
}
