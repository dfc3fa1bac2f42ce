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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metaadamw.checks import check_choice, check_count, check_number
from metaadamw.learning.base import (
    NOTHING,
    Home,
    Learning,
    LearningOptions,
    Reads,
    Step,
    check_can_learn,
)
from metaadamw.learning.meta_optimizer import META_RATES, MetaOptimizer
from metaadamw.learning.window_ends import WINDOW_PRODUCTS, WindowEnd, WindowStarts
from metaadamw.modulators.base import Modulation, ModulatorKind, rows_at
from metaadamw.statistics.layout import Layout, Pair, cosines

__all__ = ["GROWTH", "Windows", "WindowsLearning", "mean_speed", "window_at", "window_signal"]

GROWTH = 0.1
"""Length of a window in units of the steps before it, once that is longer than the first."""


@dataclass(frozen=True, kw_only=True)
class Windows(LearningOptions):
    r"""Learning in windows that grow, inside ``step()``: did going on where the last one went pay?

    For runs of a thousand steps or more. Needs two more copies of the parameters. With a single
    group there is nothing to tell apart: give it several.

    Args:
        window: steps of the first window; should be well above :math:`1/(1-\beta_1)`.
        mean_speed: :math:`\kappa`, how far the mean of all groups' log factors follows its part of
            the signal, from 0 to 1; the differences between groups follow theirs in full.
            :math:`\kappa(\eta/\eta_{max})^2` where a schedule has turned the learning rate down.
            None: 0.5, or 1 where the modulator holds the mean itself (``mean_preserving``).
        optimizer: what moves the modulator: "gauss_newton" (about the smallest change of it that
            moves its raw outputs by ``lr`` times the signal's gradient with respect to them),
            "adam" or "sgd".
        lr: its learning rate. None: 2.0 for "gauss_newton", 1e-3 for "adam", 1e-4 for "sgd".
        weight_decay: as for ``Hypergradient``.
        warmup_steps: training steps before it learns.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown option.

    Example:
        >>> Windows().window
        75

    Source: ``lab/notebook.md`` says how it was chosen and what it is worth.
    """

    window: int = 75
    mean_speed: float | None = None
    optimizer: Literal["gauss_newton", "adam", "sgd"] = "gauss_newton"
    lr: float | None = None
    weight_decay: float = 1e-4
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Validate every field."""
        check_count("window", self.window, 2)
        if self.mean_speed is not None:
            check_number("mean_speed", self.mean_speed, 0.0, 1.0)
        check_choice("optimizer", self.optimizer, tuple(META_RATES))
        if self.lr is not None:
            check_number("lr", self.lr, 0.0)
        check_number("weight_decay", self.weight_decay, 0.0)
        check_count("warmup_steps", self.warmup_steps, 0)

    @property
    def regulariser(self) -> float:
        """Coefficient of the modulator's penalty."""
        return self.weight_decay

    def check_moves(self, modulator: ModulatorKind) -> None:
        """Raise ``ValueError`` unless it can move this kind of modulator."""
        check_can_learn(modulator, self)

    def start(self, home: Home) -> Learning:
        """What learns, at the start of a run."""
        return WindowsLearning(self, home)


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


class WindowsLearning(Learning):
    """Compares each window with the one before it.

    Args:
        options: how it learns.
        home: what it is made for.
    """

    in_step = True
    options: Windows

    def __init__(self, options: Windows, home: Home) -> None:
        super().__init__(options, home)
        lr = META_RATES[options.optimizer] if options.lr is None else options.lr
        self.optimizer = MetaOptimizer(options.optimizer, lr)
        self.holds_mean = bool(getattr(home.modulator.options, "mean_preserving", False))
        self.highest_lr = torch.zeros_like(home.layout.numel)
        self.starts = WindowStarts()
        self._window = (0, 0)
        self._end: WindowEnd | None = None

    @property
    def optimizers(self) -> dict[str, MetaOptimizer]:
        """What moves the modulator, by its name in a checkpoint."""
        return {"meta_optimizer": self.optimizer}

    def parts(self) -> list[object]:
        """Itself and whatever else of it changes its attributes during a step."""
        return [*super().parts(), self.starts]

    def at_window(self, steps: int) -> bool:
        """Whether the step after so many is the first of a window."""
        if not self._window[0] <= steps < self._window[1]:
            self._window = window_at(steps, self.options.window)
        return self._window[0] == steps

    def refreshes(self, steps: int) -> bool:
        """Whether α and β are made anew before the step after so many."""
        return self.at_window(steps)

    def prepare(self, layout: Layout, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Begin the window of every parameter that has none yet, or lost it."""
        self.starts.begin_missing(layout.params, state)

    def reads(self, step: Step) -> Reads:
        """At the end of a window: where it went, and where the one before it went."""
        self._end = None
        # A group has just been added: at which rates the last steps went is not known any more,
        # so their window goes on to the end of the next.
        unknown = step.modulation is None and step.number > 0
        if unknown or not self.at_window(step.number):
            return NOTHING
        self._end = WindowEnd(
            step,
            self.starts,
            *step.rates(step.modulation),
            eps_inside_sqrt=self.eps_inside_sqrt,
            capturable=self.capturable,
        )
        return Reads(self._end.columns(), WINDOW_PRODUCTS)

    def learn(self, step: Step, products: Mapping[Pair, Tensor], features: Tensor) -> bool | Tensor:
        """Learn from whether going on where the last window went has paid."""
        if self._end is None or step.number < self.options.warmup_steps:
            return True
        signal = window_signal(products, step.layout, self._mean_speed(step))
        return self.move(self.optimizer, features, signal, torch.zeros_like(signal))

    def begin(self, step: Step, modulation: Modulation) -> None:
        """Begin the next window, at the rates of its steps."""
        if self._end is not None:
            self._end.begin_next(step.rates(modulation)[0])
            self._end = None

    def _mean_speed(self, step: Step) -> Tensor:
        """How far the mean of the factors follows its part of the signal, [G]."""
        lr = step.layout.vector([token.group["lr"] for token in step.tokens])
        self.highest_lr = torch.maximum(self.highest_lr, lr)
        constant = self.options.mean_speed
        if constant is None:
            constant = 1.0 if self.holds_mean else 0.5
        # A mean that is held stays where it is at any speed.
        return mean_speed(constant, lr, lr if self.holds_mean else self.highest_lr)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Go where the parameters went."""
        super().to(device, dtype)
        self.highest_lr = self.highest_lr.to(device, dtype)

    def forget(self) -> None:
        """What was told of single tensors or groups is of others now."""
        self._end = None

    def regroup(self, regroup: Callable[[], None], before: Sequence[int | None]) -> None:
        """Let what belongs to single groups go with them."""
        super().regroup(regroup, before)
        self.highest_lr = rows_at(self.highest_lr, before)

    def state_dict(self, layout: Layout) -> dict[str, Any]:
        """See ``Learning.state_dict``."""
        return {
            **super().state_dict(layout),
            "highest_lr": self.highest_lr.clone(),
            "window_steps": self.starts.steps_of(layout.params).to(layout.device),
        }

    def load_state_dict(self, state: Mapping[str, Any], layout: Layout) -> None:
        """Take over a checked ``state_dict``."""
        super().load_state_dict(state, layout)
        self.highest_lr = layout.own(state["highest_lr"])
        self.starts.restore(layout.params, state["window_steps"])


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
