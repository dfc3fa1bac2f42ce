"""Beyond the paper: windows, written down with the whole history of the training.

The first window has K steps, each later one a tenth of the steps before it or K, whichever is more.
S, about the sum of the gradients of a window, meets the displacement D of the one before. Every
group has raw outputs of its own, so the Jacobian is the identity. What all of them have in common
follows its signal at a speed of kappa (eta / eta_max)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DAMPING = 0.1


def boundaries(steps: int, first: int) -> list[int]:
    """The steps at which windows begin, as long as they are below ``steps``."""
    found = [0]
    while found[-1] + max(first, int(0.1 * found[-1])) < steps:
        found.append(found[-1] + max(first, int(0.1 * found[-1])))
    return found


def train_in_windows(
    theta: Sequence[Tensor],
    gradient: Callable[[Sequence[Tensor], int], Sequence[Tensor | None]],
    *,
    steps: int,
    window: int,
    lr: float,
    gain: float,
    alpha_range: float,
    alpha_start: float = 1.0,
    mean_preserving: bool = False,
    mean_speed: float = 1.0,
    schedule: Callable[[int], float] = lambda t: 1.0,
    weight_decay: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[list[list[Tensor]], list[list[float]]]:
    """Each tensor is a group; returns theta after, and alpha in, every step.

    A tensor without a gradient takes no step, and does not decay. The learning rate of step t is
    ``lr * schedule(t)``.
    """
    theta = [p.clone() for p in theta]
    m, v = [torch.zeros_like(p) for p in theta], [torch.zeros_like(p) for p in theta]
    raw = [alpha_range * math.atanh(math.log(alpha_start) / alpha_range)] * len(theta)
    alpha = [alpha_start] * len(theta)
    begins = boundaries(steps, window)
    history, alphas = [theta], []
    taken = [0] * len(theta)
    # By window and group: where it began, after how many of its steps, and how far it went.
    starts, taken_before, displacements = [], [], []
    highest = 0.0
    for t in range(1, steps + 1):
        done, eta = t - 1, lr * schedule(t)
        if done in begins:
            highest = max(highest, eta)
            rates = [eta * a for a in alpha]
            landings = [
                _landing(*tensors, betas, eps)
                for tensors in zip(theta, m, v, rates, taken, strict=True)
            ]
            groups = range(len(theta))
            if starts:
                displacements.append([landings[g] - starts[-1][g] for g in groups])
            if len(displacements) > 1:
                cosines = []
                for g in groups:
                    length = taken[g] - taken_before[-1][g]
                    decay = rates[g] * length * weight_decay * theta[g]
                    root = (v[g] / (1 - betas[1] ** max(taken[g], 1))).sqrt() + eps
                    s, d = -(displacements[-1][g] + decay) * root, displacements[-2][g]
                    lengths = s.norm() * d.norm()
                    cosine = float((s * d).sum() / lengths) if lengths > 0 else 0.0
                    cosines.append(cosine)
                told = [cosine for cosine in cosines if cosine != 0]
                speed = mean_speed if mean_preserving else mean_speed * (eta / highest) ** 2
                common = (1 - speed) * sum(told) / max(len(told), 1)
                wanted = [c - common if c != 0 else 0.0 for c in cosines]
                # With the mean held, what all groups have in common changes nothing.
                held = sum(wanted) / len(wanted) if mean_preserving else 0.0
                for g in groups:
                    slope = 1 - math.tanh(raw[g] / alpha_range) ** 2  # of log alpha
                    raw[g] -= gain * (wanted[g] - held) * slope / (1 + DAMPING)
                logs = [alpha_range * math.tanh(x / alpha_range) for x in raw]
                mean = sum(logs) / len(logs) if mean_preserving else 0.0
                alpha = [math.exp(x - mean) for x in logs]
            rates = [eta * a for a in alpha]
            starts.append(
                [
                    _landing(*tensors, betas, eps)
                    for tensors in zip(theta, m, v, rates, taken, strict=True)
                ]
            )
            taken_before.append(list(taken))
        theta, m, v = list(theta), list(m), list(v)
        for i, g in enumerate(gradient(theta, t)):
            if g is None:
                continue
            taken[i] += 1
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            u = m[i] / (1 - betas[0] ** taken[i])
            u = u / ((v[i] / (1 - betas[1] ** taken[i])).sqrt() + eps)
            theta[i] = theta[i] - eta * alpha[i] * (u + weight_decay * theta[i])
        history.append(theta)
        alphas.append(list(alpha))
    return history, alphas


def _landing(
    theta: Tensor,
    m: Tensor,
    v: Tensor,
    rate: float,
    t: int,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """Where momentum alone would carry theta after step t."""
    if t == 0:
        return theta
    u = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
    return theta - rate * betas[0] / (1 - betas[0]) * u
