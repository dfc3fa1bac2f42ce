r"""Beyond the paper: the hypergradient that consecutive training gradients give for free.

Step t moves a group along :math:`-\eta\alpha_g d_{t,g}` with
:math:`d_{t,g} = \hat u_{t,g} + \beta_g\lambda\theta_{t,g}`. The next training gradient is already
the gradient at the moved point, on another batch, so

.. math:: \partial L/\partial\alpha_g \approx -\eta\langle g_{t+1}, d_{t,g}\rangle \qquad
          \partial L/\partial\beta_g \approx
          -\eta\alpha_g\lambda\langle g_{t+1}, \theta_{t,g}\rangle

cost inner products only. Each group's signal is normalised to a cosine, which frees it from the
scale of loss, gradient and learning rate.

No buffer is kept: :math:`\hat u_t` follows from the moments, which have not changed since, and with
:math:`r = \eta\alpha_g, w = \beta_g\lambda` Eq. 4 gives
:math:`\theta_t = (\theta_{t+1} + r\hat u_t) / (1 - rw)`. So every product with :math:`d_t` and
:math:`\theta_t` is a sum of products of :math:`g_{t+1}, \hat u_t, \theta_{t+1}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metaadamw.directions import LastStep
from metaadamw.kernels.online import signal
from metaadamw.layout import Layout, Pair, cosines
from metaadamw.modulator import BaseModulator, Modulation

__all__ = [
    "ONLINE_PRODUCTS",
    "modulator_gradient",
    "online_signal",
]


ONLINE_PRODUCTS: list[Pair] = [
    ("grad", "grad"),
    ("grad", "direction"),
    ("direction", "direction"),
    ("param", "direction"),
    ("grad", "param"),
    ("param", "param"),
]
"""The inner products that the signal is made of; the last two only of what moved."""


@torch.no_grad()
def online_signal(
    products: Mapping[Pair, Tensor], last: LastStep, layout: Layout
) -> tuple[Tensor, Tensor]:
    r""":math:`-\cos(g_{t+1}, d_{t,g})` and :math:`-\cos(g_{t+1}, \theta_{t,g})`, each [G].

    A missing gradient counts as zero; a tensor that did not move in step t is left out of
    :math:`d_t` and :math:`\theta_t`.

    Args:
        products: the ``ONLINE_PRODUCTS`` before the moments and parameters change, each [P].
        last: the last step.
        layout: the layout of the groups.
    """
    rates, decays = last.rates, last.decays
    rows = torch.stack([products[pair] for pair in ONLINE_PRODUCTS])
    if not all(last.moved):
        moved = layout.vector(last.moved)
        rows = torch.cat([rows[:4], rows[4:] * moved])
    sums = rows @ layout.sum
    if (signals := signal(sums, rates, decays)) is not None:
        return signals
    (
        grad_square,
        grad_direction,
        direction_square,
        param_direction,
        grad_param,
        param_square,
    ) = sums.unbind(0)
    grad_norm = grad_square.sqrt()

    # From θ_{t+1} to θ_t.
    shrink = 1 - rates * decays
    grad_previous = (grad_param + rates * grad_direction) / shrink
    direction_previous = (param_direction + rates * direction_square) / shrink
    previous_square = (
        param_square + 2 * rates * param_direction + rates.square() * direction_square
    ) / shrink.square()

    # From û_t to d_t.
    step_square = (
        direction_square + 2 * decays * direction_previous + decays.square() * previous_square
    )
    along_step = cosines(
        grad_direction + decays * grad_previous, grad_norm, step_square.clamp_min(0).sqrt()
    )
    along_params = cosines(grad_previous, grad_norm, previous_square.clamp_min(0).sqrt())
    # Of a group that was zero (biases often start so) the differences above leave rounding error,
    # whose "cosine" has any size. Compared this way round, NaN stays NaN.
    noise = 64 * torch.finfo(rates.dtype).eps / shrink.square()
    was_zero = previous_square <= noise * (param_square + rates.square() * direction_square)
    along_params = along_params.clamp(-1, 1).where(~was_zero, 0.0)
    # Without a learning rate nothing moved, and without weight decay β does nothing.
    moving, decaying = rates != 0, decays != 0
    return -along_step.where(moving, 0.0), -along_params.where(moving & decaying, 0.0)


def modulator_gradient(
    modulator: BaseModulator,
    features: Tensor,
    signals: Sequence[Tensor],
    learned: Sequence[Tensor],
    weight_decay: float,
    gate_sparsity: float,
) -> list[Tensor]:
    r"""Gradient of :math:`\sum_g s_{\alpha,g}\alpha_g + s_{\beta,g}\beta_g` and regularisers."""
    with torch.enable_grad():
        modulation: Modulation = modulator(features, once_differentiable=True)
        loss = signals[0] @ modulation.alpha + signals[1] @ modulation.beta
        loss = loss + modulator.penalty(weight_decay, gate_sparsity)
        gradient = torch.autograd.grad(
            loss, list(learned), allow_unused=True, materialize_grads=True
        )
    return list(gradient)
