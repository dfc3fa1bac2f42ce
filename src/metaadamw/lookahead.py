r"""Algorithm 2: the meta-gradient through one hypothetical step, without a graph through AdamW.

:math:`\theta'` is linear in α and bilinear in (α, β), so for any loss :math:`\ell` with
:math:`d_g = \hat u_g + \beta_g\lambda\theta_g`

.. math:: \partial\ell/\partial\alpha_g = -\eta\langle\nabla\ell(\theta')_g, d_g\rangle \qquad
          \partial\ell/\partial\beta_g = -\eta\alpha_g\lambda\langle\nabla\ell(\theta')_g,
          \theta_g\rangle

A term that is a loss at θ′ costs one ordinary gradient; the alignment term costs one product of the
Hessian at θ′ with
:math:`q = \partial\mathcal L_{grad}/\partial g'`, for all groups together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metaadamw.adamw import update_direction
from metaadamw.config import MetaConfig
from metaadamw.evaluation import Evaluation, once_differentiable, twice_differentiable
from metaadamw.layout import Layout
from metaadamw.modulator import Modulation
from metaadamw.objectives import (
    Alignment,
    generalization_gap,
    gradient_alignment,
    loss_decrease,
)
from metaadamw.tokens import Token, real_view

__all__ = ["Lookahead", "Term", "needed_batches"]

TERMS = ("gradient_alignment", "loss_decrease", "generalization_gap")


def terms_of(config: MetaConfig) -> tuple[str, ...]:
    """The terms that the objective is made of."""
    return TERMS if config.objective == "combined" else (config.objective,)


def needed_batches(config: MetaConfig) -> tuple[str, ...]:
    """Names of the batches that the objective needs."""
    terms = terms_of(config)
    names = ["batch1"]
    if "gradient_alignment" in terms:
        names.append("batch2")
    if "loss_decrease" in terms or "generalization_gap" in terms:
        names.append("val_batch")
    return tuple(names)


@dataclass
class Term:
    """One term of the meta-objective: its value, and its derivatives, each [G]."""

    value: Tensor
    alpha: Tensor
    beta: Tensor
    lambda1: Tensor
    lambda2: Tensor

    def at(self, modulation: Modulation) -> Tensor:
        """The value as a function of the modulation, exact to first order."""
        value = self.value
        for factor, slope in zip(
            modulation, (self.alpha, self.beta, self.lambda1, self.lambda2), strict=True
        ):
            # factor - factor.detach() is zero with derivative one.
            value = value + (slope * (factor - factor.detach())).sum()
        return value


_NO_SECOND_DERIVATIVE = ("is not implemented", "double backward", "differentiate twice")


_NEEDS = (
    "hvp='exact' needs a second derivative that this model does not have ({}); "
    "hvp='finite_difference' needs none"
)


class NoSecondDerivative(RuntimeError):
    """The model has a kernel without second derivative, or is compiled."""


class Lookahead:
    r"""One hypothetical step :math:`\theta \to \theta'` and the terms of the meta-objective.

    Args:
        evaluation: the model's losses and gradients.
        tokens: the groups, with the gradients on B1.
        original: the parameters at θ, aligned with all parameters of ``tokens``.
        modulation: α, β, λ₁, λ₂ (no graph needed).
        layout: the layout of the groups.
        config: the meta-learning configuration.
        eps_inside_sqrt: the printed form of Eq. 4.
        hvp: "exact" or "finite_difference"; "auto" tries exact first.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        tokens: Sequence[Token],
        original: Sequence[Tensor],
        modulation: Modulation,
        layout: Layout,
        config: MetaConfig,
        *,
        eps_inside_sqrt: bool = False,
        hvp: Literal["auto", "exact", "finite_difference"] = "auto",
    ) -> None:
        self.evaluation, self.layout, self.config = evaluation, layout, config
        self.modulation = Modulation(*(factor.detach() for factor in modulation))
        self.params = [p for token in tokens for p in token.params]
        self.grads = [g for token in tokens for g in token.grads]  # g, on B1
        # θ where the step moves a parameter, None where it does not: those take no part in ∂ℓ/∂α,
        # ∂ℓ/∂β.
        self.original = [
            None if g is None else real_view(p) for p, g in zip(original, self.grads, strict=True)
        ]
        self.hvp = hvp
        self._prepare(tokens, eps_inside_sqrt)

    @torch.no_grad()
    def _prepare(self, tokens: Sequence[Token], eps_inside_sqrt: bool) -> None:
        """Line 14: m′, v′ from the gradient on B1, the directions û, and θ′ in place."""
        layout = self.layout
        stored = "stored_moments" in self.config.as_run
        self.directions: list[Tensor | None] = []
        rates, decays = [], []
        position = 0
        for g, token in enumerate(tokens):
            group = token.group
            betas, lr, decay = group["betas"], group["lr"], group["weight_decay"]
            rates.append(torch.as_tensor(lr, device=layout.device, dtype=layout.dtype))
            if "bias_corrected_decay" in self.config.as_run:
                t = max((float(s) for s in token.steps if s is not None), default=0.0) + 1
                decay = decay / (1 - betas[0] ** t)
            decays.append(torch.tensor(decay, device=layout.device, dtype=layout.dtype))
            alpha, beta = self.modulation.alpha[g], self.modulation.beta[g]
            for param, grad, exp_avg, exp_avg_sq, step in zip(
                token.params,
                token.grads,
                token.exp_avgs,
                token.exp_avg_sqs,
                token.steps,
                strict=True,
            ):
                direction = None
                if grad is not None:
                    direction = self._direction(
                        grad, exp_avg, exp_avg_sq, step, group, eps_inside_sqrt, stored
                    )
                    theta = self.original[position]
                    assert theta is not None
                    rate = (rates[-1] * alpha).to(direction)
                    shrink = (decays[-1] * beta).to(direction)
                    param.copy_(theta - rate * (direction + shrink * theta))  # Eq. 4
                self.directions.append(direction)
                position += 1
        self.rates, self.decays = torch.stack(rates), torch.stack(decays)  # η and λ, each [G]

    @staticmethod
    def _direction(
        grad: Tensor,
        exp_avg: Tensor | None,
        exp_avg_sq: Tensor | None,
        step: Tensor | None,
        group: dict[str, Any],
        eps_inside_sqrt: bool,
        stored: bool,
    ) -> Tensor:
        beta1, beta2 = group["betas"]
        dtype = grad.dtype if exp_avg is None else exp_avg.dtype
        grad = grad.to(dtype)
        if exp_avg is None or exp_avg_sq is None or step is None:
            exp_avg, exp_avg_sq = torch.zeros_like(grad), torch.zeros_like(grad)
            t: float | Tensor = 0.0
        else:
            t = step if not step.is_cpu else step.item()
        if stored:  # the authors' code: the moments as they are, B1 ignored
            if isinstance(t, float) and t == 0:
                return torch.zeros_like(grad)
        else:
            exp_avg = torch.lerp(exp_avg, grad, 1 - beta1)
            exp_avg_sq = torch.addcmul(exp_avg_sq * beta2, grad, grad, value=1 - beta2)
            t = t + 1
        return update_direction(
            exp_avg,
            exp_avg_sq,
            t,
            betas=group["betas"],
            eps=group["eps"],
            eps_inside_sqrt=eps_inside_sqrt,
        )

    def _through_step(self, gradient: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        r"""The derivatives with respect to α and β, each [G], from :math:`\nabla\ell(\theta')`."""
        reals = [None if g is None else real_view(g) for g in gradient]
        layout = self.layout
        along_direction, along_params = layout.group_products(
            {"gradient": reals, "direction": self.directions, "param": self.original},
            [("gradient", "direction"), ("gradient", "param")],
        )
        alpha, beta = self.modulation.alpha, self.modulation.beta
        grad_alpha = -self.rates * (along_direction + beta * self.decays * along_params)
        grad_beta = -self.rates * alpha * self.decays * along_params
        if "detached_beta" in self.config.as_run:
            grad_beta = torch.zeros_like(grad_beta)
        return grad_alpha, grad_beta

    def _loss_term(self, value: Tensor, gradient: Sequence[Tensor | None]) -> Term:
        """A term without λ₁, λ₂ from its value and its gradient at θ′."""
        value = value.to(self.rates)
        zero = torch.zeros_like(self.rates)
        return Term(value, *self._through_step(gradient), zero, zero)

    def losses(
        self, batch1: Any, val_batch: Any, training_loss: Tensor, val_loss: Tensor
    ) -> dict[str, Term]:
        """The terms that are losses: Eq. 11, and Eq. 12 at θ or θ′, as the objective needs them."""
        wanted = terms_of(self.config)
        gap_moves = "generalization_gap" in wanted and self.config.gap_at == "theta_prime"
        terms: dict[str, Term] = {}
        if "generalization_gap" in wanted and not gap_moves:
            terms["generalization_gap"] = self._loss_term(
                generalization_gap(training_loss, val_loss), [None] * len(self.params)
            )
        if "loss_decrease" not in wanted and not gap_moves:
            return terms
        updated_val_loss, val_gradient = self.evaluation.gradient("val_batch", val_batch)
        if "loss_decrease" in wanted:
            decrease = loss_decrease(updated_val_loss, val_loss)
            terms["loss_decrease"] = self._loss_term(decrease, val_gradient)
        if gap_moves:
            updated_loss, gradient = self.evaluation.gradient("batch1", batch1)
            gap = generalization_gap(updated_loss, updated_val_loss)
            sign = torch.sign(updated_loss - updated_val_loss).to(self.rates)
            train, val = self._through_step(gradient), self._through_step(val_gradient)
            zero = torch.zeros_like(self.rates)
            terms["generalization_gap"] = Term(
                gap.to(self.rates),
                sign * (train[0] - val[0]),
                sign * (train[1] - val[1]),
                zero,
                zero,
            )
        return terms

    def gradient_alignment(self, batch2: Any) -> Term:
        """Eq. 10 on B2; afterwards ``hvp`` names the method used, and the parameters have moved."""
        if self.hvp != "finite_difference":
            try:
                return self._alignment_exact(batch2)
            except NoSecondDerivative:
                if self.hvp == "exact":
                    raise
        self.hvp = "finite_difference"
        return self._alignment_finite_difference(batch2)

    def _alignment(self, updated: Sequence[Tensor | None]) -> tuple[Alignment, list[Tensor | None]]:
        """Eq. 10 from g and g′, and the vector q."""
        layout = self.layout
        reals = [None if g is None else real_view(g.detach()) for g in updated]
        dot, square, square_updated = layout.group_products(
            {"g": self.grads, "updated": reals},
            [("g", "updated"), ("g", "g"), ("updated", "updated")],
        )
        alignment = gradient_alignment(
            dot,
            square.sqrt(),
            square_updated.sqrt(),
            self.modulation.lambda1,
            self.modulation.lambda2,
        )
        q: list[Tensor | None] = []
        for g, grad, new in zip(layout.group_of.tolist(), self.grads, reals, strict=True):
            if new is None:
                q.append(None)
                continue
            vector = new * alignment.on_updated[g].to(new)
            if grad is not None:
                vector.addcmul_(grad, alignment.on_original[g].to(new))
            q.append(vector)
        return alignment, q

    def _alignment_term(self, alignment: Alignment, product: Sequence[Tensor | None]) -> Term:
        return Term(
            alignment.value,
            *self._through_step(product),
            alignment.grad_lambda1,
            alignment.grad_lambda2,
        )

    def _alignment_exact(self, batch2: Any) -> Term:
        r"""The product :math:`H(\theta')q` by double backward."""
        with twice_differentiable():
            _, updated = self.evaluation.gradient("batch2", batch2, create_graph=True)
            if once_differentiable(updated):
                raise NoSecondDerivative(_NEEDS.format("a kernel is marked once_differentiable"))
            alignment, q = self._alignment(updated)
            pairs = [
                (g, torch.view_as_complex(v) if g.is_complex() else v)
                for g, v in zip(updated, q, strict=True)
                if g is not None and v is not None and g.requires_grad
            ]
            if not pairs:  # the loss is linear in the parameters
                return self._alignment_term(alignment, [None] * len(updated))
            try:
                trained = [p for p in self.evaluation.params if p.requires_grad]
                found = iter(
                    torch.autograd.grad(
                        [g for g, _ in pairs],
                        trained,
                        grad_outputs=[v for _, v in pairs],
                        allow_unused=True,
                    )
                )
                product = [next(found) if p.requires_grad else None for p in self.evaluation.params]
            except RuntimeError as error:
                if any(phrase in str(error) for phrase in _NO_SECOND_DERIVATIVE):
                    raise NoSecondDerivative(_NEEDS.format(error)) from error
                raise
        return self._alignment_term(alignment, product)

    @torch.no_grad()
    def _alignment_finite_difference(self, batch2: Any) -> Term:
        r"""The product by central differences.

        .. math:: H(\theta')q \approx
                  (\nabla L(\theta' + \epsilon q) - \nabla L(\theta' - \epsilon q)) / 2\epsilon
        """
        _, updated = self.evaluation.gradient("batch2", batch2)
        alignment, q = self._alignment(updated)
        (square,) = self.layout.group_products({"q": q}, [("q", "q")])
        norm = square.sum().sqrt()
        if norm == 0:
            return self._alignment_term(alignment, [None] * len(q))
        # ‖εq‖ at the balance of truncation and rounding error: 0.01 in float32, 1e-5 in float64.
        unit = max(torch.finfo(p.dtype).eps for p in self.params) ** (1 / 3) * 2
        epsilon = unit / norm.item()
        targets = [p for p, v in zip(self.params, q, strict=True) if v is not None]
        vectors = [v for v in q if v is not None]

        torch._foreach_add_(targets, vectors, alpha=epsilon)
        _, plus = self.evaluation.gradient("batch2", batch2)
        torch._foreach_add_(targets, vectors, alpha=-2 * epsilon)
        _, minus = self.evaluation.gradient("batch2", batch2)
        product = [
            None if a is None or b is None else (a - b).div_(2 * epsilon)
            for a, b in zip(plus, minus, strict=True)
        ]
        return self._alignment_term(alignment, product)
