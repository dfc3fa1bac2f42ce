r"""A meta-update measured by what it does to the factors, not to the modulator's weights.

A gradient step moves the raw outputs r of the groups by :math:`-\eta J J^\top \nabla_r`, J their
Jacobian: by how much, and whether one group drags all others with it, is up to the weights. Here
the raw outputs are asked to move by :math:`-\eta \nabla_r` itself, and the smallest change of the
weights that does so is taken (Gauss–Newton, damped):

.. math:: \Delta\phi = -\eta J^\top (J J^\top + \mu I)^{-1} \nabla_r, \qquad
          \nabla_{r} = s_g\, \partial\log\alpha_g / \partial r_g

for signals s about :math:`\log\alpha` and :math:`\log\beta`. The matrix is [2G, 2G], small. Damping
keeps outputs from being forced apart that the features hardly tell apart: those move together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from metaadamw.modulators.base import Modulator
from metaadamw.state.precision import full_precision

__all__ = ["DAMPING", "gauss_newton", "gauss_newton_gradient"]

DAMPING = 0.1
"""μ in units of the mean of the diagonal of :math:`J J^\top`."""


_anomaly = threading.RLock()


@contextmanager
def _without_looking_for_nan() -> Iterator[None]:
    """Anomaly detection asks every gradient for NaN, which cannot be asked of a batch of them.

    The switch is one of the process: under a lock, and only where somebody has turned it on.
    """
    if not torch.is_anomaly_enabled():
        yield
        return
    with _anomaly, torch.autograd.set_detect_anomaly(True, check_nan=False):
        yield


def gauss_newton_gradient(
    modulator: Modulator, features: Tensor, signals: Sequence[Tensor], learned: Sequence[Tensor]
) -> list[Tensor]:
    r""":math:`J^\top (J J^\top + \mu I)^{-1} \nabla_r`, what SGD takes in place of a gradient.

    Args:
        modulator: the modulator.
        features: the features it is asked about, [G, F].
        signals: s, for :math:`\log\alpha` and :math:`\log\beta`, each [G].
        learned: where the change is wanted.
    """
    with torch.enable_grad(), full_precision(features.device):
        raw = modulator.raw_outputs(features)
        factors = modulator.factors(raw)
        logs = torch.cat([factors.alpha.log(), factors.beta.log()])
        (slopes,) = torch.autograd.grad(logs @ torch.cat(list(signals)), raw, retain_graph=True)
        return gauss_newton(raw[:, :2].T.flatten(), slopes[:, :2].T.flatten(), learned)


def gauss_newton(outputs: Tensor, change: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    r""":math:`J^\top (J J^\top + \mu I)^{-1} c`: about the smallest change that does c to outputs.

    Args:
        outputs: numbers that depend on ``params``, [n], with a graph.
        change: c, [n].
        params: where the change is wanted; those that ``outputs`` does not depend on get zeros.
    """
    n = len(outputs)
    identity = torch.eye(n, dtype=outputs.dtype, device=outputs.device)
    with _without_looking_for_nan():
        found = torch.autograd.grad(
            outputs, list(params), grad_outputs=identity, is_grads_batched=True, allow_unused=True
        )
    jacobian = [
        p.new_zeros(n, *p.shape) if rows is None else rows
        for rows, p in zip(found, params, strict=True)
    ]
    flat = torch.cat([rows.reshape(n, -1) for rows in jacobian], dim=1)
    square = flat @ flat.T
    tiny = torch.finfo(square.dtype).tiny
    damped = square + (DAMPING * square.diagonal().mean() + tiny) * identity
    # A Cholesky factorisation that does not ask the host whether it worked.
    factor, _ = torch.linalg.cholesky_ex(damped)
    weights = torch.cholesky_solve(change.unsqueeze(1), factor).squeeze(1)
    return [torch.tensordot(weights, rows, dims=1) for rows in jacobian]
