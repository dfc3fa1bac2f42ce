"""The optimizer of the modulator: SGD (paper) or Adam, able to skip without asking the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["BETAS", "EPS", "META_RATES", "Kind", "MetaOptimizer"]

Kind = Literal["sgd", "adam", "gauss_newton"]

BETAS, EPS = (0.9, 0.999), 1e-8

META_RATES: dict[str, float] = {"sgd": 1e-4, "adam": 1e-3, "gauss_newton": 2.0}
"""Learning rates that None stands for, and all kinds there are."""


class MetaOptimizer:
    r"""Moves the modulator's parameters φ and the log-variances.

    "sgd": :math:`\phi \leftarrow \phi - \eta_{meta}\nabla\phi`. "adam": Adam with betas (0.9,
    0.999), no decay. "gauss_newton": the same step as "sgd", along another gradient
    (``gauss_newton.py``).

    Args:
        kind: "sgd", "adam" or "gauss_newton".
        lr: :math:`\eta_{meta}`.
    """

    def __init__(self, kind: Kind, lr: float) -> None:
        self.kind, self.lr = kind, lr
        self.step_count: Tensor | None = None
        self.exp_avgs: list[Tensor] = []
        self.exp_avg_sqs: list[Tensor] = []

    def prepared(self, params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """First moments, second moments and the step count of Adam, for these parameters."""
        if self.step_count is None:
            self.step_count = torch.zeros((), device=params[0].device, dtype=params[0].dtype)
            self.exp_avgs = [torch.zeros_like(p) for p in params]
            self.exp_avg_sqs = [torch.zeros_like(p) for p in params]
        return self.exp_avgs, self.exp_avg_sqs, self.step_count

    @property
    def moments(self) -> list[Tensor]:
        """What Adam keeps, so far."""
        count = [] if self.step_count is None else [self.step_count]
        return [*self.exp_avgs, *self.exp_avg_sqs, *count]

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Go where the parameters went."""
        if self.step_count is not None:
            self.step_count = self.step_count.to(device, dtype)
        self.exp_avgs = [m.to(device, dtype) for m in self.exp_avgs]
        self.exp_avg_sqs = [v.to(device, dtype) for v in self.exp_avg_sqs]

    @torch.no_grad()
    def step(self, params: Sequence[Tensor], grads: Sequence[Tensor], ok: Tensor) -> None:
        """One update in place if ``ok``, a boolean scalar on the device; nothing at all if not."""
        params = list(params)
        grads = [g.contiguous() for g in grads]  # the fused kernel does not look at strides
        if self.kind != "adam":
            torch._foreach_add_(params, [torch.where(ok, g, 0.0) for g in grads], alpha=-self.lr)
            return
        exp_avgs, exp_avg_sqs, step_count = self.prepared(params)
        step_count += ok
        t = step_count.float().clamp_min(1.0)
        torch._fused_adam_(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            [t] * len(params),
            lr=self.lr,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPS,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=(~ok).float(),  # leaves everything as it is, without asking the host
        )

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Step count and moments, plain tensors; empty but for Adam."""
        if self.kind != "adam":
            return {}
        exp_avgs, exp_avg_sqs, step_count = self.prepared(params)
        return {
            "step": step_count.clone(),
            "exp_avg": [m.clone() for m in exp_avgs],
            "exp_avg_sq": [v.clone() for v in exp_avg_sqs],
        }

    def load_state_dict(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Take over the result of ``state_dict``, on the device of ``params``."""
        if not state:
            self.step_count, self.exp_avgs, self.exp_avg_sqs = None, [], []
            return
        self.step_count = state["step"].detach().to(params[0], copy=True)
        self.exp_avgs, self.exp_avg_sqs = (
            [m.detach().to(p, copy=True) for m, p in zip(state[key], params, strict=True)]
            for key in ("exp_avg", "exp_avg_sq")
        )
