r"""Algorithm 2, lines 12–17: one hypothetical step, and how a loss at its end depends on α and β.

:math:`\theta'` is linear in α and bilinear in (α, β), so for any loss :math:`\ell` with
:math:`d_g = \hat u_g + \beta_g\lambda\theta_g`

.. math:: \partial\ell/\partial\alpha_g = -\eta\langle\nabla\ell(\theta')_g, d_g\rangle \qquad
          \partial\ell/\partial\beta_g
          = -\eta\alpha_g\lambda\langle\nabla\ell(\theta')_g, \theta_g\rangle

No graph through AdamW is built. A term that is a loss at θ′ costs one ordinary gradient; the
alignment term costs one product with the Hessian at θ′ (see ``alignment``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaadamw.learning.lookahead.evaluation import Evaluation
from metaadamw.learning.lookahead.objective import MetaObjective
from metaadamw.learning.lookahead.objectives import generalization_gap, loss_decrease
from metaadamw.modulators.base import Modulation
from metaadamw.state.token import Token, real_view
from metaadamw.statistics.layout import Layout
from metaadamw.update.directions import NextDirections

__all__ = ["Lookahead", "Term"]


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


class Lookahead:
    r"""The step :math:`\theta \to \theta'`, taken in place; m′ and v′ exist one tensor at a time.

    Args:
        evaluation: the model's losses and gradients.
        tokens: the groups, with the gradients on B1.
        original: the parameters at θ, aligned with all parameters of ``tokens``.
        modulation: α, β, λ₁, λ₂ (no graph needed).
        layout: the layout of the groups.
        config: the objective.
        eps_inside_sqrt: the printed form of Eq. 4.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        tokens: Sequence[Token],
        original: Sequence[Tensor | None],
        modulation: Modulation,
        layout: Layout,
        config: MetaObjective,
        *,
        eps_inside_sqrt: bool = False,
    ) -> None:
        self.evaluation, self.layout, self.config = evaluation, layout, config
        self.modulation = Modulation(*(factor.detach() for factor in modulation))
        self.params = [p for token in tokens for p in token.params]
        self.grads = [g for token in tokens for g in token.grads]  # g, on B1
        self.directions = NextDirections(  # û
            tokens,
            stored_moments="stored_moments" in config.as_run,
            eps_inside_sqrt=eps_inside_sqrt,
        )
        self.original = [None if p is None else real_view(p) for p in original]  # θ
        # A parameter that the step does not move takes no part in ∂ℓ/∂α, ∂ℓ/∂β.
        self.moved = [
            None if g is None else p for p, g in zip(self.original, self.grads, strict=True)
        ]
        self.rates = layout.vector([token.group["lr"] for token in tokens])  # η, [G]
        self.decays = layout.vector([self._decay(token) for token in tokens])  # λ, [G]
        self.move()

    def _decay(self, token: Token) -> float:
        decay: float = token.group["weight_decay"]
        if "bias_corrected_decay" in self.config.as_run:
            t = max((float(step) for step in token.steps if step is not None), default=0.0) + 1
            decay = decay / (1 - token.group["betas"][0] ** t)
        return decay

    @torch.no_grad()
    def move(self) -> None:
        """Line 15: put the parameters to θ′."""
        for i, moved in enumerate(self.moved):
            updated = self.updated(i)
            if moved is not None and updated is not None:
                self.params[i].copy_(updated)

    @torch.no_grad()
    def put_back(self) -> None:
        """Put every parameter to θ′, also those that the step does not move."""
        for i, param in enumerate(self.params):
            updated = self.updated(i)
            if updated is not None:
                param.copy_(updated)

    def updated(self, i: int) -> Tensor | None:
        """θ′ of one tensor, which is θ where the step does not move it; None for a frozen one."""
        theta, direction = self.original[i], self.directions(i)
        if theta is None or direction is None:
            return theta
        g = self.layout.groups[i]
        rate = (self.rates[g] * self.modulation.alpha[g]).to(direction)
        decay = (self.decays[g] * self.modulation.beta[g]).to(direction)
        direction.addcmul_(theta, decay)  # in place: nobody else has it
        return torch.addcmul(theta, direction, rate, value=-1, out=direction)  # Eq. 4

    @torch.no_grad()
    def along(self, gradient: Sequence[Tensor | None]) -> Tensor:
        r"""Products with :math:`\hat u_g` and with :math:`\theta_g`, [2, G]."""
        reals = [None if g is None else real_view(g) for g in gradient]
        products = self.layout.group_products(
            {"gradient": reals, "direction": self.directions, "param": self.moved},
            [("gradient", "direction"), ("gradient", "param")],
        )
        return torch.stack(products)

    def slopes(self, along: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives with respect to α and β, each [G], from ``along`` of the gradient."""
        along_direction, along_params = along
        alpha, beta = self.modulation.alpha, self.modulation.beta
        grad_alpha = -self.rates * (along_direction + beta * self.decays * along_params)
        grad_beta = -self.rates * alpha * self.decays * along_params
        if "detached_beta" in self.config.as_run:
            grad_beta = torch.zeros_like(grad_beta)
        return grad_alpha, grad_beta

    def _loss_term(self, value: Tensor, along: Tensor) -> Term:
        """A term without λ₁, λ₂."""
        zero = torch.zeros_like(self.rates)
        return Term(value.to(self.rates), *self.slopes(along), zero, zero)

    def losses(
        self, batch1: Any, val_batch: Any, training_loss: Tensor, val_loss: Tensor
    ) -> dict[str, Term]:
        """The terms that are losses: Eq. 11, and Eq. 12 at θ or θ′, as the objective needs them."""
        wanted = self.config.terms
        gap_moves = "generalization_gap" in wanted and self.config.gap_at == "theta_prime"
        terms: dict[str, Term] = {}
        if "generalization_gap" in wanted and not gap_moves:
            nothing = torch.zeros_like(self.rates).expand(2, -1)
            gap = generalization_gap(training_loss, val_loss)
            terms["generalization_gap"] = self._loss_term(gap, nothing)
        if "loss_decrease" not in wanted and not gap_moves:
            return terms
        updated_val_loss, gradient = self.evaluation.gradient("val_batch", val_batch)
        along_val = self.along(gradient)
        del gradient
        if "loss_decrease" in wanted:
            decrease = loss_decrease(updated_val_loss, val_loss)
            terms["loss_decrease"] = self._loss_term(decrease, along_val)
        if gap_moves:
            updated_loss, gradient = self.evaluation.gradient("batch1", batch1)
            gap = generalization_gap(updated_loss, updated_val_loss)
            sign = torch.sign(updated_loss - updated_val_loss).to(self.rates)
            along = sign * (self.along(gradient) - along_val)
            terms["generalization_gap"] = self._loss_term(gap, along)
        return terms
