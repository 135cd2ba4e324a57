"""K-FAC and EK-FAC: curvatures with one Kronecker product a layer."""

from whence.curvature.kronecker.checked import checked_blocks
from whence.curvature.kronecker.cotangents import FISHERS
from whence.curvature.kronecker.fit import fit_kronecker
from whence.curvature.kronecker.spectrum import KroneckerSpectrum

__all__ = ["FISHERS", "KroneckerSpectrum", "checked_blocks", "fit_kronecker"]
