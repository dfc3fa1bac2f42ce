r"""Beyond the paper: the hypergradient that consecutive training gradients give for free.

Step t moves a group along :math:`-\eta\alpha_g d_{t,g}` with :math:`d_{t,g} = \hat u_{t,g} +
\beta_g\lambda\theta_{t,g}`. The next training gradient is already the gradient at the moved point,
on another batch, so

.. math:: \partial L/\partial\alpha_g \approx -\eta\langle g_{t+1}, d_{t,g}\rangle \qquad
          \partial L/\partial\beta_g \approx -\eta\alpha_g\lambda\langle g_{t+1},
          \theta_{t,g}\rangle

cost inner products only. Nothing is stored for them: :math:`\hat u_t` follows from the moments,
which have not changed since, and
:math:`\theta_t = (\theta_{t+1} + \eta\alpha\hat u_t) / (1 - \eta\alpha\beta\lambda)` from Eq. 4.
Each group's signal is normalised to a cosine, which frees it from the scale of loss, gradient and
learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaadamw.adamw import update_direction
from metaadamw.features import Layout, cosines, dots, norms
from metaadamw.modulator import Modulation, Modulator
from metaadamw.tokens import Token

__all__ = ["LastStep", "modulator_gradient", "online_signal"]


class LastStep(NamedTuple):
    r"""What the step before leaves behind for the signal.

    Attributes:
        features: the features it was modulated by, [G, F].
        rates: :math:`\eta\alpha_g`, [G].
        decays: :math:`\beta_g\lambda`, [G].
        moved: for every tensor whether it had a gradient, length P.
    """

    features: Tensor
    rates: Tensor
    decays: Tensor
    moved: tuple[bool, ...]


@torch.no_grad()
def online_signal(
    tokens: Sequence[Token], last: LastStep, layout: Layout, *, eps_inside_sqrt: bool
) -> tuple[Tensor, Tensor]:
    r""":math:`-\cos(g_{t+1}, d_{t,g})` and :math:`-\cos(g_{t+1}, \theta_{t,g})`, each [G].

    Call it before the moments and parameters change. Tensors without a gradient now or in the last
    step take no part.

    Args:
        tokens: the groups, with the new gradient.
        last: the last step.
        layout: the layout of the groups.
        eps_inside_sqrt: the printed form of Eq. 4.
    """
    moved = iter(last.moved)
    grads: list[Tensor | None] = []
    directions: list[Tensor | None] = []  # d_t
    params: list[Tensor | None] = []  # θ_t
    for g, token in enumerate(tokens):
        group = token.group
        for param, grad, exp_avg, exp_avg_sq, step in zip(
            token.params, token.grads, token.exp_avgs, token.exp_avg_sqs, token.steps, strict=True
        ):
            if (
                not next(moved)
                or grad is None
                or exp_avg is None
                or exp_avg_sq is None
                or step is None
            ):
                for vectors in (grads, directions, params):
                    vectors.append(None)
                continue
            update = update_direction(
                exp_avg,
                exp_avg_sq,
                step.item() if step.is_cpu else step,
                betas=group["betas"],
                eps=group["eps"],
                eps_inside_sqrt=eps_inside_sqrt,
            )
            rate, decay = last.rates[g].to(update), last.decays[g].to(update)
            previous = torch.addcmul(param.to(update), update, rate).div_(1 - rate * decay)
            grads.append(grad)
            params.append(previous)
            directions.append(update.addcmul_(previous, decay))
    grad_norms = _group_norms(grads, layout)
    signals = []
    for vectors in (directions, params):
        product = dots(grads, vectors, layout) @ layout.sum
        signals.append(-cosines(product, grad_norms, _group_norms(vectors, layout)))
    # Without a learning rate nothing moved, and without weight decay β does nothing.
    moving, decaying = last.rates != 0, last.decays != 0
    return signals[0].where(moving, 0.0), signals[1].where(moving & decaying, 0.0)


def _group_norms(tensors: Sequence[Tensor | None], layout: Layout) -> Tensor:
    return (norms(tensors, layout).square() @ layout.sum).sqrt()


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
