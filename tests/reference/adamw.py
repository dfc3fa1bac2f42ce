"""Sec. 3.1, Eqs. 1-4, and Algorithm 1: one tensor at a time, out of place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import group_features
from .modulator import ReferenceModulation, ReferenceModulator
from .state import ReferenceGroup, ReferenceState


def first_moment(m: Tensor, g: Tensor, beta1: float) -> Tensor:
    """Eq. 1: m_t = beta_1 m_{t-1} + (1 - beta_1) g."""
    return beta1 * m + (1.0 - beta1) * g


def second_moment(v: Tensor, g: Tensor, beta2: float) -> Tensor:
    """Eq. 2: v_t = beta_2 v_{t-1} + (1 - beta_2) g^2."""
    return beta2 * v + (1.0 - beta2) * g * g


def bias_corrected(moment: Tensor, decay_rate: float, t: int) -> Tensor:
    """Eq. 3: the moment divided by 1 - beta^t."""
    return moment / (1.0 - decay_rate**t)


def adaptive_update(
    m_hat: Tensor, v_hat: Tensor, eps: float, *, eps_inside_sqrt: bool = False
) -> Tensor:
    """The fraction of Eq. 4: m_hat / (sqrt(v_hat) + eps), or as printed / sqrt(v_hat + eps)."""
    if eps_inside_sqrt:
        return m_hat / torch.sqrt(v_hat + eps)
    return m_hat / (torch.sqrt(v_hat) + eps)


def direction(theta: Tensor, update: Tensor, beta: Tensor | float, weight_decay: float) -> Tensor:
    """The parenthesis of Eq. 4: d = u_hat + beta_g lambda theta."""
    return update + beta * weight_decay * theta


@dataclass(frozen=True)
class TensorStep:
    """One tensor after a step, and the direction d along which it moved."""

    theta: Tensor
    m: Tensor
    v: Tensor
    direction: Tensor


def adamw_step(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    alpha: Tensor | float = 1.0,
    beta: Tensor | float = 1.0,
    eps_inside_sqrt: bool = False,
) -> TensorStep:
    """Eqs. 1-4: the t-th step of one tensor, differentiable in alpha and beta.

    Eq. 4: theta_t = theta_{t-1} - eta alpha_g (u_hat + beta_g lambda theta_{t-1}).
    """
    beta1, beta2 = betas
    m = first_moment(m, g, beta1)
    v = second_moment(v, g, beta2)
    m_hat = bias_corrected(m, beta1, t)
    v_hat = bias_corrected(v, beta2, t)
    update = adaptive_update(m_hat, v_hat, eps, eps_inside_sqrt=eps_inside_sqrt)
    d = direction(theta, update, beta, weight_decay)
    return TensorStep(theta=theta - lr * alpha * d, m=m, v=v, direction=d)


def step_tensors(
    state: ReferenceState,
    groups: Sequence[ReferenceGroup],
    gradients: Mapping[str, Tensor | None],
    alpha: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    *,
    eps_inside_sqrt: bool = False,
) -> dict[str, TensorStep]:
    """Algorithm 1, lines 4-7: step every parameter that has a gradient; others are left out."""
    result = {}
    for index, group in enumerate(groups):
        for name in group.names:
            gradient = gradients.get(name)
            if gradient is None:
                continue
            m, v, completed_steps = state.moments(name)
            result[name] = adamw_step(
                state.parameters[name].detach(),
                gradient.detach(),
                m.detach(),
                v.detach(),
                completed_steps + 1,
                lr=group.lr,
                betas=group.betas,
                eps=group.eps,
                weight_decay=group.weight_decay,
                alpha=alpha[index],
                beta=beta[index],
                eps_inside_sqrt=eps_inside_sqrt,
            )
    return result


def reference_step(
    state: ReferenceState,
    groups: Sequence[ReferenceGroup],
    gradients: Mapping[str, Tensor | None],
    alpha: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    *,
    eps_inside_sqrt: bool = False,
) -> ReferenceState:
    """Algorithm 1, lines 4-7: the state after one step with given alpha [G] and beta [G].

    A parameter without a gradient keeps its value, its moments and its step count.
    """
    parameters, steps = dict(state.parameters), dict(state.steps)
    exp_avg, exp_avg_sq = dict(state.exp_avg), dict(state.exp_avg_sq)
    stepped = step_tensors(state, groups, gradients, alpha, beta, eps_inside_sqrt=eps_inside_sqrt)
    for name, tensor in stepped.items():
        parameters[name] = tensor.theta
        exp_avg[name] = tensor.m
        exp_avg_sq[name] = tensor.v
        steps[name] = steps.get(name, 0) + 1
    return ReferenceState(
        parameters=parameters, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, steps=steps
    )


def metaadamw_step(
    state: ReferenceState,
    groups: Sequence[ReferenceGroup],
    gradients: Mapping[str, Tensor | None],
    modulator: ReferenceModulator,
    *,
    step: int,
    feature_set: str = "basic",
    total_steps: int | None = None,
    second_moment_norm: bool = True,
    time_step: bool = True,
    eps_inside_sqrt: bool = False,
) -> tuple[ReferenceState, ReferenceModulation, Tensor]:
    """Algorithm 1, lines 2-7: features, modulation, step number ``step`` (the first is 1).

    Returns:
        The state after the step, the modulation it used and the features behind it.
    """
    features = group_features(
        feature_set,
        groups,
        state.parameters,
        gradients,
        state.exp_avg,
        state.exp_avg_sq,
        step=step,
        total_steps=total_steps,
        second_moment_norm=second_moment_norm,
        time_step=time_step,
        dtype=modulator.output.weight.dtype,
    )
    with torch.no_grad():
        modulation = modulator(features)
    after = reference_step(
        state,
        groups,
        gradients,
        modulation.alpha,
        modulation.beta,
        eps_inside_sqrt=eps_inside_sqrt,
    )
    return after, modulation, features
