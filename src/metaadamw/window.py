r"""Beyond the paper: the free hypergradient with a horizon that grows with the run.

One step is mostly noise, and so is what the next gradient says of it. Over a window of K steps the
noise averages out while progress adds up. A window is measured between landing points, where
momentum alone would carry the parameters of a group (r is its rate :math:`\eta\alpha_g`):

.. math:: P_t = \theta_t - r\frac{\beta_1}{1-\beta_1}\hat u_t, \qquad
          D = P_{t+K} - P_t
            \approx -r\sum\frac{g}{\sqrt{\hat v} + \epsilon} - rK\beta_g\lambda\theta

K counts the steps that the tensor took. Its own gradients have made D, and no others. So D is a
direction, and with :math:`S = -(D + rK\beta_g\lambda\theta)(\sqrt{\hat v} + \epsilon)`, about
their sum, also the gradient that judges the direction of the window before, with noise of its own:

.. math:: \partial L/\partial\log\alpha_g \approx \cos(S, D_{before})

is negative as long as going on where the last window went would lower the loss. It costs nothing
between windows, and two copies of the parameters. Rates count as those of a window's end, an
approximation where ``consecutive_lr`` changes them within it.

*Horizon.* A factor that is best for the next K steps is too low for the rest of the run: less noise
now, less progress later. So K grows, to a tenth of the steps taken so far; and what all groups have
in common, the part that this concerns, may follow the signal more slowly than the differences
between groups do (``mean_speed``).

*Schedule.* What a schedule turns a rate down for, less noise at the end, lies beyond any window:
the signal would turn it up again. So the mean follows it the less, the lower the rate is
(``mean_speed``).

Source: what this does on a quadratic with noise, for runs of two lengths and base learning rates
over two orders of magnitude, is in ``benchmarks/short_horizon.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.adamw import update_direction
from metaadamw.layout import Column, Layout, Pair, cosines
from metaadamw.master_weights import float32_values
from metaadamw.tokens import Token

__all__ = [
    "GROWTH",
    "WINDOW_KEYS",
    "WINDOW_PRODUCTS",
    "WINDOW_STEP",
    "Windows",
    "create_window",
    "mean_speed",
    "window_at",
    "window_signal",
]

GROWTH = 0.1
"""Length of a window in units of the steps before it, once that is longer than the first."""

START, DISPLACEMENT = "window_start", "displacement"
WINDOW_KEYS = (START, DISPLACEMENT)
"""Two tensors in the state of a parameter: where the window began, how far the last one went."""

WINDOW_STEP = "window_step"
"""And its step counter when the window began: without a gradient there is no step, nor decay."""

WINDOW_PRODUCTS: list[Pair] = [
    ("gradient_sum", "displacement"),
    ("gradient_sum", "gradient_sum"),
    ("displacement", "displacement"),
]
"""The inner products that the signal is made of."""


def window_at(steps: int, first: int) -> tuple[int, int]:
    """The window that a step lies in: its first step, and the first one after it.

    Example:
        >>> window_at(30, 25), window_at(1000, 25)
        ((25, 50), (940, 1034))
    """
    begin, end = 0, first
    while end <= steps:
        begin, end = end, end + max(first, int(GROWTH * end))
    return begin, end


def create_window(entry: dict[str, Any], param: Tensor) -> None:
    """The state of a parameter that a window begins with; one that has it keeps it.

    Who exchanges a parameter for one of another shape and takes its moments along (densifying,
    pruning) does not know of windows: one begins anew.
    """
    if WINDOW_STEP not in entry or entry[START].shape != param.shape:
        start = param.detach().to(entry["exp_avg"].dtype, copy=True)
        entry[START] = start
        entry[DISPLACEMENT] = torch.zeros_like(start)
        entry[WINDOW_STEP] = entry["step"].clone()


class Windows:
    """The end of one window and the begin of the next, between two steps.

    Args:
        tokens: the groups' tensors.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: the step counters stay on the device.
    """

    def __init__(self, tokens: Sequence[Token], *, eps_inside_sqrt: bool, capturable: bool) -> None:
        self._tokens = tokens
        self._places = [(g, i) for g, token in enumerate(tokens) for i in range(len(token.params))]
        self._eps_inside_sqrt, self._capturable = eps_inside_sqrt, capturable

    def _step(self, step: Tensor) -> float | Tensor:
        # A parameter without a step has not moved: any count but 0 says so.
        return max(step.item(), 1.0) if step.is_cpu and not self._capturable else step.clamp_min(1)

    def _landing(self, g: int, i: int, rate: Tensor) -> Tensor | None:
        """P of one tensor, if it has a window."""
        token = self._tokens[g]
        exp_avg, exp_avg_sq, step = token.exp_avgs[i], token.exp_avg_sqs[i], token.steps[i]
        if token.window_starts[i] is None or exp_avg is None or exp_avg_sq is None or step is None:
            return None
        beta1, _ = token.group["betas"]
        landing = update_direction(
            exp_avg,
            exp_avg_sq,
            self._step(step),
            betas=token.group["betas"],
            eps=token.group["eps"],
            eps_inside_sqrt=self._eps_inside_sqrt,
        )
        landing *= -(rate * beta1 / (1 - beta1)).to(landing)
        return landing.add_(self._param(g, i, landing.dtype))

    def _param(self, g: int, i: int, dtype: torch.dtype) -> Tensor:
        param = self._tokens[g].params[i]
        if param.dtype == dtype:
            return param
        return float32_values([param], [self._tokens[g].low_bits[i]])[0]

    @torch.no_grad()
    def end(self, rates: Tensor, decays: Tensor) -> dict[str, Column]:
        r"""Put D in the place of where the window began; the columns of ``WINDOW_PRODUCTS``.

        Args:
            rates: r, [G].
            decays: :math:`\beta_g\lambda`, [G].
        """
        for g, i in self._places:
            start, landing = self._tokens[g].window_starts[i], self._landing(g, i, rates[g])
            if start is not None and landing is not None:
                torch.sub(landing, start, out=start)
        return {
            "displacement": [d for token in self._tokens for d in token.displacements],
            "gradient_sum": self._gradient_sums(rates * decays),
        }

    def _gradient_sums(self, decayed: Tensor) -> Column:
        """The column of S, each made when it is asked for; the share of θ a step decays, [G]."""

        def gradient_sum(place: int) -> Tensor | None:
            g, i = self._places[place]
            token = self._tokens[g]
            moved, exp_avg_sq = token.window_starts[i], token.exp_avg_sqs[i]
            step, before = token.steps[i], token.window_steps[i]
            if moved is None or exp_avg_sq is None or step is None or before is None:
                return None
            share = (decayed[g] * (step - before).to(decayed.device)).to(moved)
            eps = token.group["eps"]
            square: Tensor = exp_avg_sq / (1 - token.group["betas"][1] ** self._step(step))
            root = square.add_(eps).sqrt_() if self._eps_inside_sqrt else square.sqrt_().add_(eps)
            by_gradients = moved + share * self._param(g, i, moved.dtype)
            return root.mul_(by_gradients).neg_()

        return gradient_sum

    @torch.no_grad()
    def begin(self, rates: Tensor) -> None:
        """Keep D and note where the next window begins; the rates are those of its steps."""
        for g, i in self._places:
            token = self._tokens[g]
            start, displacement = token.window_starts[i], token.displacements[i]
            step, before = token.steps[i], token.window_steps[i]
            landing = self._landing(g, i, rates[g])
            if start is None or displacement is None or step is None or before is None:
                continue
            if landing is not None:
                displacement.copy_(start)
                start.copy_(landing)
                before.copy_(step)


def mean_speed(constant: float, lr: Tensor, highest_lr: Tensor) -> Tensor:
    r""":math:`\kappa\,(\eta/\eta_{max})^2`, [G].

    Args:
        constant: :math:`\kappa`, what it is with a constant learning rate.
        lr: the rates of the param groups, [G].
        highest_lr: the highest that they have had, [G].
    """
    return constant * torch.where(highest_lr > 0, lr / highest_lr, 1.0).square()


@torch.no_grad()
def window_signal(products: Mapping[Pair, Tensor], layout: Layout, speed: Tensor) -> Tensor:
    r""":math:`c_g - (1 - \kappa)\bar c` with :math:`c_g = \cos(S, D_{before})`, [G].

    The cosine is that of the group's concatenated tensors. Where nothing moved or no gradient came
    it is 0, and stays 0: such groups have no part in the mean :math:`\bar c`.

    Args:
        products: the ``WINDOW_PRODUCTS``.
        layout: the layout of the groups.
        speed: :math:`\kappa`, [G].
    """
    product, sum_square, displacement_square = (
        products[pair] @ layout.sum for pair in WINDOW_PRODUCTS
    )
    signal = cosines(product, sum_square.sqrt(), displacement_square.sqrt())
    told = signal != 0
    mean = signal.sum() / told.sum().clamp_min(1)
    return signal - (1 - speed) * mean * told
