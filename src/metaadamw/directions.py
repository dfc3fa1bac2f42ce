r"""The direction :math:`\hat u_t` of the last step, made anew from the moments it left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from metaadamw.adamw import update_direction
from metaadamw.tokens import Token

__all__ = ["Directions", "LastStep", "Quotient"]


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
    r"""A direction by its parts: ``exp_avg`` / (√ ``exp_avg_sq`` · ``multiply`` + ``add``)."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    multiply: float
    add: float


class Directions:
    r"""The column of :math:`\hat u_t`, each made when it is asked for.

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
        """Whether a ``quotient`` can be had: ε is outside the root, the counters on the host."""
        return not (self._eps_inside_sqrt or self._capturable)

    def quotient(self, i: int) -> Quotient | None:
        """The same by its parts, where it is ``plain``."""
        if (state := self._state(i)) is None:
            return None
        exp_avg, exp_avg_sq, t = state
        beta1, beta2, eps = self._states[i][-1]
        bias_correction1, bias_correction2 = 1 - beta1 ** float(t), 1 - beta2 ** float(t)
        return Quotient(
            exp_avg,
            exp_avg_sq,
            bias_correction1 / bias_correction2**0.5,
            eps * bias_correction1,
        )
