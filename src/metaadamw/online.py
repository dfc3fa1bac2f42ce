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

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaadamw.adamw import update_direction
from metaadamw.layout import Layout, cosines, inner_product
from metaadamw.modulator import Modulation, Modulator
from metaadamw.tokens import Token

__all__ = ["LastStep", "modulator_gradient", "online_signal"]


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


@torch.no_grad()
def online_signal(
    tokens: Sequence[Token], last: LastStep, layout: Layout, *, eps_inside_sqrt: bool
) -> tuple[Tensor, Tensor]:
    r""":math:`-\cos(g_{t+1}, d_{t,g})` and :math:`-\cos(g_{t+1}, \theta_{t,g})`, each [G].

    Call it before the moments and parameters change. A missing gradient counts as zero; a tensor
    that did not move in step t is left out of :math:`d_t` and :math:`\theta_t`.

    Args:
        tokens: the groups, with the new gradient.
        last: the last step.
        layout: the layout of the groups.
        eps_inside_sqrt: the printed form of Eq. 4.
    """
    grads = [grad for token in tokens for grad in token.grads]
    params = [
        param if moved else None
        for param, moved in zip((p for t in tokens for p in t.params), last.moved, strict=True)
    ]
    grad_direction, direction_norm, direction_param = _with_directions(
        tokens, grads, params, last, layout, eps_inside_sqrt
    )
    rates, decays = last.rates, last.decays
    shrink = 1 - rates * decays
    grad_param, param_norm, grad_square = layout.group_products(
        (grads, params), (params, params), (grads, grads)
    )
    grad_previous = (grad_param + rates * grad_direction) / shrink
    direction_previous = (direction_param + rates * direction_norm) / shrink
    previous_norm = (
        param_norm + 2 * rates * direction_param + rates.square() * direction_norm
    ) / shrink.square()
    grad_norm = grad_square.sqrt()
    along_step = cosines(
        grad_direction + decays * grad_previous,
        grad_norm,
        (direction_norm + 2 * decays * direction_previous + decays.square() * previous_norm)
        .clamp_min(0)
        .sqrt(),
    )
    along_params = cosines(grad_previous, grad_norm, previous_norm.clamp_min(0).sqrt())
    # Without a learning rate nothing moved, and without weight decay β does nothing.
    moving, decaying = rates != 0, decays != 0
    return -along_step.where(moving, 0.0), -along_params.where(moving & decaying, 0.0)


def _with_directions(
    tokens: Sequence[Token],
    grads: Sequence[Tensor | None],
    params: Sequence[Tensor | None],
    last: LastStep,
    layout: Layout,
    eps_inside_sqrt: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    r""":math:`\langle g, \hat u\rangle, \lVert\hat u\rVert^2, \langle\hat u, \theta\rangle`, [G].

    One direction exists at a time.
    """
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    zero = torch.zeros((), device=layout.device, dtype=layout.dtype)
    states = (
        entry
        for token, numbers in zip(tokens, last.hyperparameters, strict=True)
        for entry in zip(
            token.exp_avgs,
            token.exp_avg_sqs,
            token.steps,
            [numbers] * len(token.params),
            strict=True,
        )
    )
    for grad, param, state in zip(grads, params, states, strict=True):
        exp_avg, exp_avg_sq, step, (beta1, beta2, eps) = state
        if param is None or exp_avg is None or exp_avg_sq is None or step is None:
            products.append((zero, zero, zero))
            continue
        direction = update_direction(
            exp_avg,
            exp_avg_sq,
            step.item() if step.is_cpu else step,
            betas=(beta1, beta2),
            eps=eps,
            eps_inside_sqrt=eps_inside_sqrt,
        )
        products.append(
            (
                zero if grad is None else inner_product(grad, direction),
                inner_product(direction, direction),
                inner_product(param, direction),
            )
        )
    sums = [layout.stack(column) @ layout.sum for column in zip(*products, strict=True)]
    return sums[0], sums[1], sums[2]


def modulator_gradient(
    modulator: Modulator,
    features: Tensor,
    signal_alpha: Tensor,
    signal_beta: Tensor,
    learned: Sequence[Tensor],
    weight_decay: float,
    gate_sparsity: float,
) -> list[Tensor]:
    r"""Gradient of :math:`\sum_g s_{\alpha,g}\alpha_g + s_{\beta,g}\beta_g` and regularisers."""
    with torch.enable_grad():
        modulation: Modulation = modulator(features)
        loss = signal_alpha @ modulation.alpha + signal_beta @ modulation.beta
        if weight_decay:
            loss = loss + weight_decay * modulator.regulariser()
        if modulator.config.feature_gating and gate_sparsity:
            loss = loss + gate_sparsity * modulator.gate_logits.abs().sum()
        gradient = torch.autograd.grad(
            loss, list(learned), allow_unused=True, materialize_grads=True
        )
    return list(gradient)
