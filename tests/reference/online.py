"""Beyond the paper: the hypergradient of one step from the training gradient that follows it.

Step t moves theta_t along d_t; the next training gradient g_{t+1} is the gradient at the moved
point. So it already tells how the loss there depends on alpha and beta of step t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .meta import cosine, group_vector
from .modulator import ReferenceModulator, modulator_gradient, regulariser
from .state import ReferenceGroup


class OnlineSignal(NamedTuple):
    """What stands for dL/d alpha_g and dL/d beta_g, each of shape [G]."""

    alpha: Tensor
    beta: Tensor


def group_vectors(
    group: ReferenceGroup,
    theta: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    next_gradients: Mapping[str, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """g_{t+1}, d_t and theta_t of one group, each as a single vector.

    Step t moved only the parameters that have a direction: the others have no influence on the
    loss through alpha or beta, so their d and theta are zero here.
    """
    moved = {name: theta[name] for name in group.names if name in directions}
    return (
        group_vector(group, next_gradients, theta),
        group_vector(group, directions, theta),
        group_vector(group, moved, theta),
    )


def raw_signal(
    groups: Sequence[ReferenceGroup],
    theta: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    next_gradients: Mapping[str, Tensor | None],
    alpha: Tensor | Sequence[float],
) -> OnlineSignal:
    """-eta <g_{t+1}, d_t> and -eta alpha_g lambda <g_{t+1}, theta_t>, group by group.

    Args:
        groups: The groups, with the learning rate and weight decay of step t.
        theta: theta_t, the parameters before step t, by name.
        directions: d_t = u_hat + beta_g lambda theta_t by name; no entry: not moved in step t.
        next_gradients: g_{t+1} by name; a missing name or None is zero.
        alpha: alpha [G] of step t.
    """
    signal_alpha, signal_beta = [], []
    for index, group in enumerate(groups):
        g, d, theta_g = group_vectors(group, theta, directions, next_gradients)
        signal_alpha.append(-group.lr * (g @ d))
        signal_beta.append(-group.lr * alpha[index] * group.weight_decay * (g @ theta_g))
    return OnlineSignal(torch.stack(signal_alpha), torch.stack(signal_beta))


def cosine_signal(
    groups: Sequence[ReferenceGroup],
    theta: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    next_gradients: Mapping[str, Tensor | None],
) -> OnlineSignal:
    """The scale-free form: -cos(g_{t+1}, d_t) and -cos(g_{t+1}, theta_t), group by group."""
    signal_alpha, signal_beta = [], []
    for group in groups:
        g, d, theta_g = group_vectors(group, theta, directions, next_gradients)
        signal_alpha.append(-cosine(g, d))
        signal_beta.append(-cosine(g, theta_g))
    return OnlineSignal(torch.stack(signal_alpha), torch.stack(signal_beta))


def online_gradient(
    modulator: ReferenceModulator,
    features: Tensor,
    signal: OnlineSignal,
    *,
    weight_decay: float = 0.0,
    gate_sparsity: float | None = None,
) -> dict[str, Tensor]:
    """The gradient of sum_g (signal_alpha_g alpha_g + signal_beta_g beta_g) + regulariser.

    Args:
        modulator: Phi.
        features: The features of step t, from which alpha and beta of step t came.
        signal: The two signals, constants.
        weight_decay: The coefficient of the regulariser; 0 leaves it out.
        gate_sparsity: The coefficient of the gate logits; by default ``weight_decay``.

    Returns:
        The gradient for every modulator weight, in the library's layout.
    """
    modulation = modulator(features.detach())
    surrogate = (signal.alpha.detach() * modulation.alpha).sum()
    surrogate = surrogate + (signal.beta.detach() * modulation.beta).sum()
    return modulator_gradient(
        surrogate + regulariser(modulator, weight_decay, gate_sparsity), modulator
    )
