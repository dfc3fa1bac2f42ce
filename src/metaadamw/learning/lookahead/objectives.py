r"""Sec. 3.5: the three terms of the meta-objective, as pure functions.

The alignment term needs one vector back: :math:`q = \partial\mathcal L_{grad} / \partial g'`, whose
product with the Hessian at θ′ carries the gradient to θ′ (see ``lookahead``).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from metaadamw.statistics.layout import cosines

__all__ = ["Alignment", "generalization_gap", "gradient_alignment", "loss_decrease"]


class Alignment(NamedTuple):
    r"""Eq. 10 and its derivatives in closed form; vectors have shape [G].

    Attributes:
        value: :math:`\mathcal L_{grad}`.
        grad_lambda1: :math:`\partial\mathcal L_{grad}/\partial\lambda_{1,g} = \lVert g'_g\rVert^2 /
            G`.
        grad_lambda2: :math:`\partial\mathcal L_{grad}/\partial\lambda_{2,g} = -\cos(g_g, g'_g) /
            G`.
        on_updated: coefficient of :math:`g'_g` in :math:`q_g`.
        on_original: coefficient of :math:`g_g` in :math:`q_g`.
    """

    value: Tensor
    grad_lambda1: Tensor
    grad_lambda2: Tensor
    on_updated: Tensor
    on_original: Tensor


def gradient_alignment(
    dot: Tensor, norm: Tensor, norm_updated: Tensor, lambda1: Tensor, lambda2: Tensor
) -> Alignment:
    r"""Eq. 10.

    .. math:: \mathcal L_{grad} = \frac1G\sum_g
              \left(\lambda_{1,g}\lVert g'_g\rVert^2 - \lambda_{2,g}\cos(g_g, g'_g)\right)

    With :math:`c_g = \cos(g_g, g'_g)`, its derivative is
    :math:`q_g = \frac1G\left(2\lambda_{1,g} g'_g - \lambda_{2,g}\left(\frac{g_g}{\lVert
    g_g\rVert\lVert g'_g\rVert} - c_g\frac{g'_g}{\lVert g'_g\rVert^2}\right)\right)`. Where a norm
    is 0 the cosine counts as 0, with derivative 0.

    Args:
        dot: :math:`\langle g_g, g'_g\rangle`, shape [G].
        norm: :math:`\lVert g_g\rVert`, shape [G].
        norm_updated: :math:`\lVert g'_g\rVert`, shape [G].
        lambda1: shape [G].
        lambda2: shape [G].
    """
    groups = len(dot)
    cosine = cosines(dot, norm, norm_updated)
    defined = (norm > 0) & (norm_updated > 0)
    safe, safe_updated = norm.where(defined, 1.0), norm_updated.where(defined, 1.0)
    turn = lambda2.where(defined, 0.0) / groups
    return Alignment(
        value=(lambda1 * norm_updated.square() - lambda2 * cosine).sum() / groups,
        grad_lambda1=norm_updated.square() / groups,
        grad_lambda2=-cosine / groups,
        on_updated=2 * lambda1 / groups + turn * cosine / safe_updated / safe_updated,
        on_original=-turn / safe / safe_updated,
    )


def loss_decrease(updated_loss: Tensor, loss: Tensor) -> Tensor:
    r"""Eq. 11: :math:`L_{val}(\theta') - L_{val}(\theta)`, negative where the step helps."""
    return updated_loss - loss


def generalization_gap(training_loss: Tensor, validation_loss: Tensor) -> Tensor:
    r"""Eq. 12: :math:`|L_{train}(\cdot, B_1) - L_{val}(\cdot)|`, at θ as printed, or at θ′."""
    return (training_loss - validation_loss).abs()
