"""Beyond the paper: windows, written down with the whole history of the parameters.

A window of K steps begins at steps 0, K, 2K, …; the displacement of the one before meets the first
moment at its end. Every group has raw outputs of its own, so the Jacobian is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DAMPING = 0.1


def train_in_windows(
    theta: Sequence[Tensor],
    gradient: Callable[[Sequence[Tensor], int], Sequence[Tensor]],
    *,
    steps: int,
    window: int,
    lr: float,
    gain: float,
    alpha_range: float,
    weight_decay: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[list[list[Tensor]], list[list[float]]]:
    """Each tensor is a group; returns theta after, and alpha in, every step."""
    theta = [p.clone() for p in theta]
    m, v = [torch.zeros_like(p) for p in theta], [torch.zeros_like(p) for p in theta]
    raw = [0.0] * len(theta)
    history, alphas = [theta], []
    for t in range(1, steps + 1):
        done = t - 1
        if done % window == 0 and done >= 2 * window:
            for g in range(len(theta)):
                # D of the window that ended K steps ago, and m after the K steps since.
                displacement = history[done - window][g] - history[done - 2 * window][g]
                lengths = displacement.norm() * m[g].norm()
                cosine = (m[g] * displacement).sum() / lengths if lengths > 0 else 0.0
                slope = 1 - math.tanh(raw[g] / alpha_range) ** 2  # of log alpha
                raw[g] -= gain * float(cosine) * slope / (1 + DAMPING)
        alpha = [math.exp(alpha_range * math.tanh(r / alpha_range)) for r in raw]
        grads = gradient(theta, t)
        m = [betas[0] * x + (1 - betas[0]) * g for x, g in zip(m, grads, strict=True)]
        v = [betas[1] * x + (1 - betas[1]) * g * g for x, g in zip(v, grads, strict=True)]
        theta = [
            p
            - lr * a * ((x / (1 - betas[0] ** t)) / ((y / (1 - betas[1] ** t)).sqrt() + eps))
            - lr * a * weight_decay * p
            for p, a, x, y in zip(theta, alpha, m, v, strict=True)
        ]
        history.append(theta)
        alphas.append(alpha)
    return history, alphas
