r"""Beyond the paper: the hypergradient that consecutive training gradients give for free.

Step t moves a group along :math:`-\eta\alpha_g d_{t,g}` with
:math:`d_{t,g} = \hat u_{t,g} + \beta_g\lambda\theta_{t,g}`. The next training gradient is already
the gradient at the moved point, on another batch, so

.. math:: \partial L/\partial\alpha_g \approx -\eta\langle g_{t+1}, d_{t,g}\rangle \qquad
          \partial L/\partial\beta_g \approx
          -\eta\alpha_g\lambda\langle g_{t+1}, \theta_{t,g}\rangle

cost inner products only. Each group's signal is normalised to a cosine, which frees it from the
scale of loss, gradient and learning rate.

No buffer is kept: :math:`\hat u_t` follows from the moments, which have not changed since, and with
:math:`r = \eta\alpha_g, w = \beta_g\lambda` Eq. 4 gives
:math:`\theta_t = (\theta_{t+1} + r\hat u_t) / (1 - rw)`. So every product with :math:`d_t` and
:math:`\theta_t` is a sum of products of :math:`g_{t+1}, \hat u_t, \theta_{t+1}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from metaadamw.learning.hypergradient_kernel import signal
from metaadamw.learning.meta_optimizer import META_RATES, MetaOptimizer
from metaadamw.modulators.base import ModulatorKind
from metaadamw.modulators.factors import Factors
from metaadamw.statistics.layout import Layout, Pair, cosines
from metaadamw.update.directions import LastDirections, LastStep

__all__ = ["ONLINE_PRODUCTS", "Hypergradient", "HypergradientLearning", "online_signal"]


ONLINE_PRODUCTS: list[Pair] = [
    ("grad", "grad"),
    ("grad", "direction"),
    ("direction", "direction"),
    ("param", "direction"),
    ("grad", "param"),
    ("param", "param"),
]
"""The inner products that the signal is made of; the last two only of what moved."""


@torch.no_grad()
def online_signal(
    products: Mapping[Pair, Tensor], last: LastStep, layout: Layout
) -> tuple[Tensor, Tensor]:
    r""":math:`-\cos(g_{t+1}, d_{t,g})` and :math:`-\cos(g_{t+1}, \theta_{t,g})`, each [G].

    A missing gradient counts as zero; a tensor that did not move in step t is left out of
    :math:`d_t` and :math:`\theta_t`.

    Args:
        products: the ``ONLINE_PRODUCTS`` before the moments and parameters change, each [P].
        last: the last step.
        layout: the layout of the groups.
    """
    rates, decays = last.rates, last.decays
    rows = torch.stack([products[pair] for pair in ONLINE_PRODUCTS])
    if not all(last.moved):
        moved = layout.vector(last.moved)
        rows = torch.cat([rows[:4], rows[4:] * moved])
    sums = rows @ layout.sum
    if (signals := signal(sums, rates, decays)) is not None:
        return signals
    (
        grad_square,
        grad_direction,
        direction_square,
        param_direction,
        grad_param,
        param_square,
    ) = sums.unbind(0)
    grad_norm = grad_square.sqrt()

    # From θ_{t+1} to θ_t.
    shrink = 1 - rates * decays
    grad_previous = (grad_param + rates * grad_direction) / shrink
    direction_previous = (param_direction + rates * direction_square) / shrink
    previous_square = (
        param_square + 2 * rates * param_direction + rates.square() * direction_square
    ) / shrink.square()

    # From û_t to d_t.
    step_square = (
        direction_square + 2 * decays * direction_previous + decays.square() * previous_square
    )
    along_step = cosines(
        grad_direction + decays * grad_previous, grad_norm, step_square.clamp_min(0).sqrt()
    )
    along_params = cosines(grad_previous, grad_norm, previous_square.clamp_min(0).sqrt())
    # Of a group that was zero (biases often start so) the differences above leave rounding error,
    # whose "cosine" has any size. Compared this way round, NaN stays NaN.
    noise = 64 * torch.finfo(rates.dtype).eps / shrink.square()
    was_zero = previous_square <= noise * (param_square + rates.square() * direction_square)
    along_params = along_params.clamp(-1, 1).where(~was_zero, 0.0)
    # Without a learning rate nothing moved, and without weight decay β does nothing.
    moving, decaying = rates != 0, decays != 0
    return -along_step.where(moving, 0.0), -along_params.where(moving & decaying, 0.0)


FACTORS_RATE = 0.04
"""Learning rate of Adam for numbers of the groups; a Transformer takes ``META_RATES``."""


@dataclass(frozen=True, kw_only=True)
class Hypergradient(LearningOptions):
    r"""Learning from consecutive training gradients, inside ``step()``, without any further pass.

    It learns whenever the modulator is refreshed (``update_every``), from the step before. Nothing
    is kept beside the moments.

    Args:
        optimizer: what moves the modulator: "adam", "sgd", or "gauss_newton" (about the smallest
            change of the modulator that moves its raw outputs by ``lr`` times the signal's
            gradient with respect to them).
        lr: its learning rate. None: for "adam" 0.04 with ``Factors`` and 1e-3 with ``Attention``,
            1e-4 for "sgd", 2.0 for "gauss_newton".
        weight_decay: coefficient of :math:`\sum \lVert W \rVert_2` (not squared) over encoder
            tensors and output weight, or over the raw outputs of ``Factors``; without effect for
            "gauss_newton".
        warmup_steps: training steps before it learns.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown option.

    Example:
        >>> optimizer = MetaAdamW(fine_grained_groups(model), learning=Hypergradient(lr=0.02))
    """

    optimizer: Literal["adam", "sgd", "gauss_newton"] = "adam"
    lr: float | None = None
    weight_decay: float = 1e-4
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Validate every field."""
        check_choice("optimizer", self.optimizer, tuple(META_RATES))
        if self.lr is not None:
            check_number("lr", self.lr, 0.0)
        check_number("weight_decay", self.weight_decay, 0.0)
        check_count("warmup_steps", self.warmup_steps, 0)

    @property
    def regulariser(self) -> float:
        """Coefficient of the modulator's penalty."""
        return self.weight_decay

    def rate_for(self, modulator: ModulatorKind) -> float:
        """``lr``, or what None stands for."""
        if self.lr is not None:
            return self.lr
        own = self.optimizer == "adam" and isinstance(modulator, Factors)
        return FACTORS_RATE if own else META_RATES[self.optimizer]

    def check_moves(self, modulator: ModulatorKind) -> None:
        """Raise ``ValueError`` unless it can move this kind of modulator."""
        check_can_learn(modulator, self)

    def start(self, home: Home) -> HypergradientLearning:
        """What learns, at the start of a run."""
        optimizer = MetaOptimizer(self.optimizer, self.rate_for(home.modulator.options))
        return HypergradientLearning(self, home, optimizer, self.warmup_steps)


class HypergradientLearning(Learning):
    """Compares each step with the gradient after it.

    Args:
        options: how it learns.
        home: what it is made for.
        optimizer: what moves the modulator.
        warmup_steps: training steps before it learns.
        name: of ``optimizer`` in a checkpoint.
    """

    in_step = True

    def __init__(
        self,
        options: LearningOptions,
        home: Home,
        optimizer: MetaOptimizer,
        warmup_steps: int,
        name: str = "meta_optimizer",
    ) -> None:
        super().__init__(options, home)
        self.optimizer, self.warmup_steps, self.name = optimizer, warmup_steps, name
        self.last: LastStep | None = None
        """What the step before left behind; None before the first, and where groups changed."""
        self.signals: tuple[Tensor, Tensor] | None = None
        """What the last gradient said of α and β; None where nothing was compared."""

    @property
    def optimizers(self) -> dict[str, MetaOptimizer]:
        """What moves the modulator, by its name in a checkpoint."""
        return {self.name: self.optimizer}

    def _heard(self, step: Step) -> LastStep | None:
        """The step that is compared with the gradient at hand, if there is one."""
        on_beat = step.number % self.modulator.update_every == 0
        return self.last if on_beat and step.number >= self.warmup_steps else None

    def reads(self, step: Step) -> Reads:
        """The direction of the step before, and its products with the gradient at hand."""
        last = self._heard(step)
        if last is None:
            return NOTHING
        directions = LastDirections(
            step.tokens,
            last,
            eps_inside_sqrt=self.eps_inside_sqrt,
            capturable=self.capturable,
        )
        return Reads({"direction": directions}, ONLINE_PRODUCTS)

    def learn(self, step: Step, products: Mapping[Pair, Tensor], features: Tensor) -> bool | Tensor:
        """Learn from what the gradient at hand says of the step before."""
        last, self.signals = self._heard(step), None
        if last is None:
            return True
        self.signals = online_signal(products, last, step.layout)
        return self.move(self.optimizer, last.features, *self.signals)

    def stepped(
        self,
        step: Step,
        features: Tensor | None,
        rates: Sequence[float | Tensor],
        decays: Sequence[float | Tensor],
    ) -> None:
        """Keep what the next gradient will be compared with."""
        if features is None:
            return
        vector, old = step.layout.vector, self.last
        new_rates, new_decays = vector(rates), vector(decays)
        if self.capturable and old is not None:  # for a CUDA graph always the same memory
            new_rates, new_decays = old.rates.copy_(new_rates), old.decays.copy_(new_decays)
        self.last = LastStep(
            features,  # read before the next features are written
            new_rates,
            new_decays,
            tuple(g is not None for token in step.tokens for g in token.grads),
            tuple((*t.group["betas"], t.group["eps"]) for t in step.tokens),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Go where the parameters went."""
        super().to(device, dtype)
        if self.last is not None:
            features, rates, decays = (t.to(device, dtype) for t in self.last[:3])
            self.last = self.last._replace(features=features, rates=rates, decays=decays)

    def forget(self) -> None:
        """The step before was one of other tensors or groups."""
        self.last = None

    def state_dict(self, layout: Layout) -> dict[str, Any]:
        """See ``Learning.state_dict``; zeros stand for a step that was not taken."""
        columns = len(self.modulator.table)
        matrix, row = layout.zero.expand(len(layout.sizes), columns), layout.numel * 0
        held, rates, decays, moved, numbers = self.last or LastStep(
            *(matrix, row, row),
            (False,) * len(layout.groups),
            ((0.0, 0.0, 0.0),) * len(layout.sizes),
        )
        return {
            **super().state_dict(layout),
            "last_step": [
                *(held.clone(), rates.clone(), decays.clone()),
                *(list(moved), [list(entry) for entry in numbers]),
            ],
            "knows_last_step": self.last is not None,
        }

    def load_state_dict(self, state: Mapping[str, Any], layout: Layout) -> None:
        """Take over a checked ``state_dict``."""
        super().load_state_dict(state, layout)
        self.last = None
        if state["knows_last_step"]:
            features, rates, decays, moved, hyperparameters = state["last_step"]
            self.last = LastStep(
                *(layout.own(features), layout.own(rates), layout.own(decays)),
                tuple(moved),
                tuple((beta1, beta2, eps) for beta1, beta2, eps in hyperparameters),
            )
