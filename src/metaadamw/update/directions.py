r"""Directions :math:`\hat u` (Eqs. 3–4), which nobody stores: of the last step and of the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaadamw.state.token import Token
from metaadamw.update.adamw import update_direction

__all__ = ["Directions", "LastDirections", "LastStep", "NextDirections", "Quotient"]


class LastStep(NamedTuple):
    r"""What the step before leaves behind for the signal.

    Attributes:
        features: the features it was modulated by, [G, F].
        rates: :math:`r = \eta\alpha_g`, [G].
        decays: :math:`w = \beta_g\lambda`, [G].
        moved: for every tensor whether it had a gradient, length P.
        hyperparameters: :math:`\beta_1, \beta_2, \epsilon` of each group; a scheduler may have
            changed those in ``param_groups`` since.
    """

    features: Tensor
    rates: Tensor
    decays: Tensor
    moved: tuple[bool, ...]
    hyperparameters: tuple[tuple[float, float, float], ...]


class Quotient(NamedTuple):
    r"""A direction by its parts: ``exp_avg`` / (√ ``exp_avg_sq`` · ``multiply`` + ``add``).

    With ``grad`` the moments are first brought forward, Eqs. 1 and 2.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    multiply: float
    add: float
    grad: Tensor | None = None
    betas: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def corrected(
        cls, exp_avg: Tensor, exp_avg_sq: Tensor, t: float, betas: tuple[float, float], eps: float
    ) -> Quotient:
        """That of moments after t steps, with their bias corrections."""
        correction1, correction2 = 1 - betas[0] ** t, 1 - betas[1] ** t
        return cls(exp_avg, exp_avg_sq, correction1 / correction2**0.5, eps * correction1)


class Directions(ABC):
    """A column of directions, each made when it is asked for."""

    @abstractmethod
    def __call__(self, i: int) -> Tensor | None:
        """The direction of the tensor at a position; None if it does not move."""

    @property
    @abstractmethod
    def plain(self) -> bool:
        """Whether a ``quotient`` can be had: ε is outside the root, the counters on the host."""

    @abstractmethod
    def quotient(self, i: int) -> Quotient | None:
        """The same by its parts, where it is ``plain``."""


class LastDirections(Directions):
    r""":math:`\hat u_t` of the step before, made anew from the moments it left behind.

    Args:
        tokens: the groups' tensors; their moments have not changed since step t.
        last: the last step.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: the step counters stay on the device.
    """

    def __init__(
        self,
        tokens: Sequence[Token],
        last: LastStep,
        *,
        eps_inside_sqrt: bool,
        capturable: bool = False,
    ) -> None:
        self._states = [
            (*state, numbers)
            for token, numbers in zip(tokens, last.hyperparameters, strict=True)
            for state in zip(token.exp_avgs, token.exp_avg_sqs, token.steps, strict=True)
        ]
        self._moved, self._capturable = last.moved, capturable
        self._eps_inside_sqrt = eps_inside_sqrt

    def _state(self, i: int) -> tuple[Tensor, Tensor, float | Tensor] | None:
        exp_avg, exp_avg_sq, step, _ = self._states[i]
        if not self._moved[i] or exp_avg is None or exp_avg_sq is None or step is None:
            return None
        t = step.item() if step.is_cpu and not self._capturable else step
        if isinstance(t, float) and t == 0:  # its state was taken away since
            return None
        return exp_avg, exp_avg_sq, t

    def __call__(self, i: int) -> Tensor | None:
        """The direction of the tensor at a position; None if it did not move."""
        if (state := self._state(i)) is None:
            return None
        *betas, eps = self._states[i][-1]
        return update_direction(
            *state, betas=(betas[0], betas[1]), eps=eps, eps_inside_sqrt=self._eps_inside_sqrt
        )

    @property
    def plain(self) -> bool:
        """Whether ε is outside the root and the counters are on the host."""
        return not (self._eps_inside_sqrt or self._capturable)

    def quotient(self, i: int) -> Quotient | None:
        """The same by its parts."""
        if (state := self._state(i)) is None:
            return None
        exp_avg, exp_avg_sq, t = state
        beta1, beta2, eps = self._states[i][-1]
        return Quotient.corrected(exp_avg, exp_avg_sq, float(t), (beta1, beta2), eps)


class NextDirections(Directions):
    r"""Line 14 of Algorithm 2: :math:`\hat u` from m′ and v′, on the gradient on B1.

    Args:
        tokens: the groups, with the gradients on B1.
        stored_moments: the moments as they are, B1 ignored, as in the authors' code.
        eps_inside_sqrt: the printed form of Eq. 4.
    """

    def __init__(
        self, tokens: Sequence[Token], *, stored_moments: bool, eps_inside_sqrt: bool
    ) -> None:
        self._stored_moments, self._eps_inside_sqrt = stored_moments, eps_inside_sqrt
        self._states = [
            (token.group, *state)
            for token in tokens
            for state in zip(
                token.grads, token.exp_avgs, token.exp_avg_sqs, token.steps, strict=True
            )
        ]

    def __call__(self, i: int) -> Tensor | None:
        """The direction of the tensor at a position; None if it will not move."""
        group, grad, exp_avg, exp_avg_sq, step = self._states[i]
        if grad is None:
            return None
        if grad.dtype in (torch.bfloat16, torch.float16):
            grad = grad.float()  # as the moments
        t: float | Tensor = 0.0
        if exp_avg is None or exp_avg_sq is None or step is None:
            exp_avg, exp_avg_sq = torch.zeros_like(grad), torch.zeros_like(grad)
        else:
            t = step.item() if step.is_cpu else step
        if self._stored_moments:
            if isinstance(t, float) and t == 0:
                return torch.zeros_like(grad)
        else:
            beta1, beta2 = group["betas"]
            exp_avg = torch.lerp(exp_avg, grad, 1 - beta1)
            exp_avg_sq = (exp_avg_sq * beta2).addcmul_(grad, grad, value=1 - beta2)
            t = t + 1
        return update_direction(
            exp_avg,
            exp_avg_sq,
            t,
            betas=group["betas"],
            eps=group["eps"],
            eps_inside_sqrt=self._eps_inside_sqrt,
        )

    @property
    def plain(self) -> bool:
        """Whether there are moments, ε is outside the root, and the counters are on the host."""
        on_host = all(step is not None and step.is_cpu for _, *_, step in self._states)
        return on_host and not (self._eps_inside_sqrt or self._stored_moments)

    def quotient(self, i: int) -> Quotient | None:
        """The same by its parts."""
        group, grad, exp_avg, exp_avg_sq, step = self._states[i]
        if grad is None or exp_avg is None or exp_avg_sq is None or step is None:
            return None
        betas, t = group["betas"], step.item() + 1
        parts = Quotient.corrected(exp_avg, exp_avg_sq, t, betas, group["eps"])
        return parts._replace(grad=grad, betas=betas)
