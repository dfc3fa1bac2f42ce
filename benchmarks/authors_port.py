"""The algorithm as the paper's authors run it: what MetaAdamW is measured against.

Written from the published facts about their code, not from the code: every norm and product of
every tensor is read to the host, the encoder is ``nn.TransformerEncoder``, the meta-update works on
a copy of the model, keeps an autograd graph through θ′ and evaluates the model anew for every term.
Their departures from their paper (``as_run``) are kept. Where the facts leave a choice, the cheaper
form is taken: nothing here is slow on purpose.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaadamw import Attention, LookAhead
from metaadamw.grouping.fine_grained import is_bias

LossFunction = Callable[[Any, Any], Tensor]


class AuthorsMetaAdamW(torch.optim.Optimizer):
    """MetaAdamW as its authors run it.

    Args:
        groups: from ``fine_grained_groups(model, kinds="paper")``.
        modulator: layers, heads, hidden dimension, gating; features "basic", or "basic_plus", for
            which their code takes the columns of "enhanced" instead.
        meta: priorities, learning rate and regulariser.
        lr: learning rate η.
        betas: decay rates of the moments.
        eps: ε.
        weight_decay: λ.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        modulator: Attention,
        meta: LookAhead,
        *,
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.config, self.meta, self.steps = modulator, meta, 0
        self.columns = 6 if modulator.features == "basic" else 10
        self.dim = -(-self.columns // modulator.heads) * modulator.heads
        layer = nn.TransformerEncoderLayer(
            self.dim,
            modulator.heads,
            modulator.hidden_dim,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, modulator.layers, enable_nested_tensor=False)
        self.output = nn.Linear(self.dim, 4)
        self.gate_logits = torch.ones(self.columns)
        self.log_variances = nn.Parameter(torch.zeros(3))
        for param in (*self.encoder.parameters(), self.output.weight):
            if param.dim() > 1:
                nn.init.xavier_uniform_(param)
        nn.init.zeros_(self.output.bias)

    # Features and modulation ---------------------------------------------------------------------

    def _row(self, group: dict[str, Any], grads: Sequence[Tensor]) -> list[float]:
        """One group's statistics, number by number."""
        states = [self.state[p] for p in group["params"]]
        exp_avgs = [state["exp_avg"] for state in states]
        time = 2 / (1 + math.exp(-(self.steps + 1) / 1000)) - 1
        if self.config.features == "basic":
            grad_norms = [g.norm().item() for g in grads]
            exp_avg_norms = [m.norm().item() for m in exp_avgs]
            param_norms = [p.norm().item() for p in group["params"]]
            cosines = [
                torch.dot(g.flatten(), m.flatten()).item() / max(x * y, 1e-30)
                for g, m, x, y in zip(grads, exp_avgs, grad_norms, exp_avg_norms, strict=True)
            ]
            second = [state["exp_avg_sq"].norm().item() for state in states]
            columns = (grad_norms, exp_avg_norms, param_norms, cosines, second)
            return [*(sum(column) / len(column) for column in columns), time]
        numel = sum(p.numel() for p in group["params"])
        biases = [is_bias(n, p) for n, p in zip(group["param_names"], group["params"], strict=True)]
        return [
            *_mean_and_variance([g.norm().item() for g in grads]),
            *_mean_and_variance([m.norm().item() for m in exp_avgs]),
            sum((g == 0).sum().item() for g in grads) / numel,
            sum((m == 0).sum().item() for m in exp_avgs) / numel,
            math.log(numel),
            sum(biases) / len(biases),
            group["depth"],
            time,
        ]

    def _modulation(self, features: Tensor) -> list[Tensor]:
        """α, β, λ₁, λ₂, each [G]."""
        if self.config.feature_gating:
            features = features * torch.sigmoid(self.gate_logits)
        padded = nn.functional.pad(features, (0, self.dim - self.columns))
        raw = self.output(self.encoder(padded.unsqueeze(0)).squeeze(0))
        alpha, beta, lambda1, lambda2 = torch.sigmoid(raw).unbind(1)
        alpha = 1 + self.config.alpha_range * (alpha - 0.5)
        beta = 1 + self.config.beta_range * (beta - 0.5)
        return [alpha, beta, lambda1, lambda2]

    # Algorithm 1 ---------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; every parameter has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p] = {
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
        rows = [self._row(group, [p.grad for p in group["params"]]) for group in self.param_groups]
        alpha, beta, *_ = self._modulation(torch.tensor(rows))
        self.steps += 1
        for g, group in enumerate(self.param_groups):
            beta1, beta2 = group["betas"]
            a, b = alpha[g].item(), beta[g].item()
            for p in group["params"]:
                exp_avg, exp_avg_sq = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
                exp_avg.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                exp_avg_sq.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                denom = (exp_avg_sq.sqrt() / math.sqrt(1 - beta2**self.steps)).add_(group["eps"])
                update = exp_avg / denom
                update.add_(p, alpha=group["weight_decay"] * b)
                p.add_(update, alpha=-group["lr"] * a / (1 - beta1**self.steps))

    # Algorithm 2 ---------------------------------------------------------------------------------

    def update_attention(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batch1: Any,
        batch2: Any,
        val_batch: Any,
        gap_batch: Any,
    ) -> float:
        """One meta-update with the combined objective; the two validation terms have a batch each.

        Returns:
            The meta-loss without the regulariser.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in self.param_groups for name in group["param_names"]]
        twin = copy.deepcopy(model)
        here = dict(zip(names, params, strict=True))

        grads = torch.autograd.grad(loss_fn(_At(twin, here), batch1), params)
        rows, position = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            rows.append(self._row(group, grads[position : position + count]))
            position += count
        alpha, beta, lambda1, lambda2 = self._modulation(torch.tensor(rows))

        updated = self._updated(alpha, beta.detach())
        there = dict(zip(names, updated, strict=True))
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            loss2 = loss_fn(_At(twin, there), batch2)
            new_grads = torch.autograd.grad(loss2, updated, create_graph=True)
        alignment = self._alignment(grads, new_grads, lambda1, lambda2)
        val_loss_there = loss_fn(_At(twin, there), val_batch)
        with torch.no_grad():
            decrease_from = loss_fn(_At(twin, here), val_batch)
            gap = (loss_fn(_At(twin, here), batch1) - loss_fn(_At(twin, here), gap_batch)).abs()

        terms = torch.stack([alignment, val_loss_there - decrease_from, gap])
        priorities = torch.tensor(self.meta.priorities)
        s = self.log_variances
        total = 0.5 * (torch.exp(-s) * terms + priorities * s).sum()
        encoder = [*self.encoder.parameters(), self.output.weight]
        regulariser = torch.stack([w.norm() for w in encoder]).sum()
        learned = [*encoder, self.output.bias, self.log_variances]
        gradient = torch.autograd.grad(total + self.meta.weight_decay * regulariser, learned)
        with torch.no_grad():
            for p, g in zip(learned, gradient, strict=True):
                p.sub_(g, alpha=self.meta.lr or 1e-4)
        return total.item()

    def _updated(self, alpha: Tensor, beta: Tensor) -> list[Tensor]:
        """θ′ from the stored moments, with a graph back to α."""
        updated = []
        for g, group in enumerate(self.param_groups):
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                denom = (state["exp_avg_sq"] / (1 - beta2**self.steps)).sqrt() + group["eps"]
                correction1 = 1 - beta1**self.steps
                decay = group["weight_decay"] * beta[g] * p.detach() / correction1
                update = state["exp_avg"] / correction1 / denom + decay
                updated.append(p.detach() - group["lr"] * alpha[g] * update)
        return updated

    def _alignment(
        self,
        grads: Sequence[Tensor],
        new_grads: Sequence[Tensor],
        lambda1: Tensor,
        lambda2: Tensor,
    ) -> Tensor:
        """Eq. 10."""
        terms, position = [], 0
        for g, group in enumerate(self.param_groups):
            old = grads[position : position + len(group["params"])]
            new = new_grads[position : position + len(group["params"])]
            position += len(group["params"])
            dot = torch.stack([(x * y).sum() for x, y in zip(old, new, strict=True)]).sum()
            square = torch.stack([x.square().sum() for x in old]).sum()
            new_square = torch.stack([y.square().sum() for y in new]).sum()
            cosine = dot / (square.sqrt() * new_square.sqrt()).clamp_min(1e-30)
            terms.append(lambda1[g] * new_square - lambda2[g] * cosine)
        return torch.stack(terms).mean()


class _At:
    """A model called with other parameters."""

    def __init__(self, model: nn.Module, params: dict[str, Tensor]) -> None:
        self.model, self.params = model, params

    def __call__(self, *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(self.model, self.params, inputs)


def _mean_and_variance(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / len(values)
