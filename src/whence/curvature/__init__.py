"""Curvatures fitted to a task: Gauss-Newton and Fisher matrices in three forms, K-FAC and EK-FAC, and the Hessian."""

from whence.curvature.fisher import fit_fisher
from whence.curvature.gauss_newton import FORMS, GaussNewton, choose_form, fit_gauss_newton
from whence.curvature.hessian import fit_hessian, hessian_matrix, hessian_products
from whence.curvature.kronecker import KroneckerSpectrum, fit_kronecker
from whence.curvature.krylov import KrylovForm
from whence.curvature.linearized import LinearizedTrain
from whence.curvature.low_rank import hessian_operator
from whence.curvature.matrix_free import matrix_free_product
from whence.curvature.preconditioned import adam_preconditioner

__all__ = [
    "FORMS",
    "GaussNewton",
    "KroneckerSpectrum",
    "KrylovForm",
    "LinearizedTrain",
    "adam_preconditioner",
    "choose_form",
    "fit_fisher",
    "fit_gauss_newton",
    "fit_hessian",
    "fit_kronecker",
    "hessian_matrix",
    "hessian_operator",
    "hessian_products",
    "matrix_free_product",
]
