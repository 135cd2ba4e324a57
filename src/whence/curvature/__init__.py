"""Curvatures fitted to a task: Gauss-Newton in three forms, and the Hessian of small models."""

from whence.curvature.gauss_newton import FORMS, GaussNewton, choose_form, fit_gauss_newton
from whence.curvature.hessian import fit_hessian, hessian_matrix, hessian_products
from whence.curvature.krylov import KrylovForm
from whence.curvature.linearized import LinearizedTrain

__all__ = [
    "FORMS",
    "GaussNewton",
    "KrylovForm",
    "LinearizedTrain",
    "choose_form",
    "fit_gauss_newton",
    "fit_hessian",
    "hessian_matrix",
    "hessian_products",
]
