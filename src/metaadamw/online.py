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
from typing import NamedTuple

import torch
from torch import Tensor

from metaadamw.adamw import update_direction
from metaadamw.layout import Column, Layout, Pair, cosines
from metaadamw.modulator import BaseModulator, Modulation
from metaadamw.tokens import Token

__all__ = [
    "ONLINE_PRODUCTS",
    "LastStep",
    "directions",
    "modulator_gradient",
    "online_signal",
]


class LastStep(NamedTuple):
    r"""What the step before leaves behind for the signal.

    Attributes:
        features: the features it was modulated by, [G, F].
        rates: :math:`r = \eta\alpha_g`, [G].
        decays: :math:`w = \beta_g\lambda`, [G].
        moved: for every tensor whether it had a gradient, length P.
        hyperparameters: :math:`\beta_1, \beta_2, \epsilon` of each group; a scheduler may have
            changed those in ``param_groups`` since.
    """

    features: Tensor
    rates: Tensor
    decays: Tensor
    moved: tuple[bool, ...]
    hyperparameters: tuple[tuple[float, float, float], ...]


ONLINE_PRODUCTS: list[Pair] = [
    ("grad", "grad"),
    ("grad", "param"),
    ("param", "param"),
    ("grad", "direction"),
    ("direction", "direction"),
    ("param", "direction"),
]
"""The inner products that the signal is made of."""


def directions(
    tokens: Sequence[Token], last: LastStep, *, eps_inside_sqrt: bool, capturable: bool = False
) -> Column:
    r"""The column of :math:`\hat u_t`, each made when it is asked for."""
    states = [
        (*state, numbers)
        for token, numbers in zip(tokens, last.hyperparameters, strict=True)
        for state in zip(token.exp_avgs, token.exp_avg_sqs, token.steps, strict=True)
    ]

    def direction(i: int) -> Tensor | None:
        exp_avg, exp_avg_sq, step, (beta1, beta2, eps) = states[i]
        if not last.moved[i] or exp_avg is None or exp_avg_sq is None or step is None:
            return None
        t = step.item() if step.is_cpu and not capturable else step
        if isinstance(t, float) and t == 0:  # its state was taken away since
            return None
        return update_direction(
            exp_avg,
            exp_avg_sq,
            t,
            betas=(beta1, beta2),
            eps=eps,
            eps_inside_sqrt=eps_inside_sqrt,
        )

    return direction


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
    moved = 1.0 if all(last.moved) else layout.vector(last.moved)
    rates, decays = last.rates, last.decays
    grad_norm = (products["grad", "grad"] @ layout.sum).sqrt()
    grad_direction = products["grad", "direction"] @ layout.sum
    direction_square = products["direction", "direction"] @ layout.sum
    param_direction = products["param", "direction"] @ layout.sum
    grad_param = (products["grad", "param"] * moved) @ layout.sum
    param_square = (products["param", "param"] * moved) @ layout.sum

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
        modulation: Modulation = modulator(features)
        loss = signals[0] @ modulation.alpha + signals[1] @ modulation.beta
        loss = loss + modulator.penalty(weight_decay, gate_sparsity)
        gradient = torch.autograd.grad(
            loss, list(learned), allow_unused=True, materialize_grads=True
        )
    return list(gradient)
