"""What every way of learning has in common: one object for each optimizer, beside its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metaadamw.learning.gauss_newton import gauss_newton_gradient
from metaadamw.learning.learn_kernel import learn
from metaadamw.learning.meta_optimizer import MetaOptimizer
from metaadamw.modulators.base import (
    Modulation,
    Modulator,
    ModulatorKind,
    ModulatorOptions,
    rows_at,
)
from metaadamw.options import Options
from metaadamw.state.token import Token
from metaadamw.statistics.layout import Column, Layout, Pair

__all__ = [
    "NOTHING",
    "Home",
    "Learning",
    "LearningOptions",
    "Reads",
    "Step",
    "check_can_learn",
    "modulator_gradient",
]


class Reads(NamedTuple):
    """What a way of learning reads before a step, beside the features.

    Attributes:
        columns: tensors by name.
        pairs: the inner products that it needs of them.
    """

    columns: dict[str, Column]
    pairs: list[Pair]


NOTHING = Reads({}, [])


@dataclass(frozen=True)
class Step:
    """A step about to be taken.

    Attributes:
        number: steps before it.
        tokens: the groups' tensors.
        state: of the optimizer, by parameter.
        layout: which tensor belongs to which group.
        modulation: of the step before; None at the start, and where groups have changed.
    """

    number: int
    tokens: Sequence[Token]
    state: Mapping[Tensor, dict[str, Any]]
    layout: Layout
    modulation: Modulation | None

    def rates(self, modulation: Modulation | None) -> tuple[Tensor, Tensor]:
        r"""The rates :math:`\eta\alpha_g` and the decays :math:`\beta_g\lambda`, each [G]."""
        groups = [token.group for token in self.tokens]
        lr = self.layout.vector([group["lr"] for group in groups])
        decay = self.layout.vector([group["weight_decay"] for group in groups])
        if modulation is None:
            return lr, decay
        return lr * modulation.alpha, decay * modulation.beta


@dataclass(frozen=True)
class Home:
    """What a way of learning is made for.

    Attributes:
        modulator: what it moves.
        layout: of the groups.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: counters and factors stay on the device.
    """

    modulator: Modulator
    layout: Layout
    eps_inside_sqrt: bool
    capturable: bool


class Learning:
    """Moves a modulator while the model trains.

    The base class moves nothing. ``step()`` asks in this order: ``reads``, ``learn``, ``begin``
    and, after the parameters were updated, ``stepped``.

    Args:
        options: how it learns.
        home: what it is made for.
    """

    in_step: ClassVar[bool] = False
    """Whether it learns inside ``step()``, and so reads every gradient."""

    def __init__(self, options: LearningOptions, home: Home) -> None:
        self.options, self.modulator = options, home.modulator
        self.eps_inside_sqrt, self.capturable = home.eps_inside_sqrt, home.capturable
        self.on_host = home.layout.device.type == "cpu" and not home.capturable
        self.applied = torch.zeros((), device=home.layout.device, dtype=torch.long)

    # What it moves -------------------------------------------------------------------------------

    @property
    def optimizers(self) -> dict[str, MetaOptimizer]:
        """What moves the modulator, by its name in a checkpoint."""
        return {}

    @property
    def learned(self) -> list[Tensor]:
        """The tensors that it moves."""
        return self.modulator.weights

    def parts(self) -> list[object]:
        """Itself and whatever else of it changes its attributes during a step."""
        return [self, *self.optimizers.values()]

    def written(self) -> list[Tensor]:
        """Every tensor that it may write to in place during a step."""
        if not self.in_step:
            return []
        moments = [t for optimizer in self.optimizers.values() for t in optimizer.moments]
        return [*self.learned, *moments, self.applied]

    # Inside step() -------------------------------------------------------------------------------

    def refreshes(self, steps: int) -> bool:
        """Whether α and β are made anew before the step after so many."""
        return steps % self.modulator.update_every == 0

    def prepare(self, layout: Layout, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Add to the optimizer's state of each parameter what it keeps there."""

    def reads(self, step: Step) -> Reads:
        """What it wants to read before the step, which ``refreshes``."""
        return NOTHING

    def learn(self, step: Step, products: Mapping[Pair, Tensor], features: Tensor) -> bool | Tensor:
        """Learn from what was read; whether all of it was finite.

        Args:
            step: the step about to be taken.
            products: what ``reads`` asked for, each [P].
            features: of the step about to be taken, [G, F].
        """
        return True

    def begin(self, step: Step, modulation: Modulation) -> None:
        """Take note of the new factors, after ``learn``."""

    def stepped(
        self,
        step: Step,
        features: Tensor | None,
        rates: Sequence[float | Tensor],
        decays: Sequence[float | Tensor],
    ) -> None:
        """Take note of a step, of the features behind its factors, its η α_g and its β_g λ."""

    def move(self, optimizer: MetaOptimizer, features: Tensor, *signals: Tensor) -> bool | Tensor:
        """One update from what the gradient said of α and β, each [G]; whether all was finite."""
        learned, weight_decay = self.learned, self.options.regulariser
        if optimizer.kind == "gauss_newton":
            gradient = gauss_newton_gradient(self.modulator, features, signals, learned)
        else:
            done = None
            if self.on_host:
                done = learn(self.modulator, optimizer, learned, features, signals, weight_decay)
            if done is not None:
                self.applied += done
                return done
            gradient = modulator_gradient(self.modulator, features, signals, learned, weight_decay)
        # One flag on the device: asking the host here would stall an accelerator at every step.
        largest = torch._foreach_norm([*signals, *gradient], float("inf"))
        ok = torch.isfinite(torch.stack(largest)).all()
        optimizer.step(learned, gradient, ok)
        self.applied += ok
        return ok

    # Outside step() ------------------------------------------------------------------------------

    def due(self, steps: int) -> bool:
        """Whether ``update_attention`` is to be called after so many steps."""
        return False

    weighting: Any = None
    """The weights of Eq. 13; None where there are none."""

    @property
    def report(self) -> Any:
        """The report of the last meta-update; None where there is none."""
        return None

    def warn_of_missed_update(self) -> None:
        """Say aloud that nothing is learned, where it was for the user to call something."""

    def update(self, *arguments: Any, **keywords: Any) -> Any:
        """One meta-update, of a way of learning that takes any.

        Raises:
            RuntimeError: this one takes none.
        """
        raise RuntimeError(
            f"update_attention needs learning='lookahead', got {type(self.options).__name__}"
        )

    # Where the parameters go ---------------------------------------------------------------------

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Go where the parameters went, and so the modulator."""
        for optimizer in self.optimizers.values():
            optimizer.to(device, dtype)
        self.on_host = device.type == "cpu" and not self.capturable
        self.applied = self.applied.to(device)

    def restart_from(self, steps: int) -> None:
        """Take over the position of a run in which nothing has learned."""
        self.forget()

    def forget(self) -> None:
        """What was told of single tensors or groups is of others now."""

    def regroup(self, regroup: Callable[[], None], before: Sequence[int | None]) -> None:
        """Let moments of the modulator's rows go with the groups.

        Args:
            regroup: gives the modulator its new rows.
            before: where each of the groups was; None for one that is new.
        """
        learned = self.learned
        regroup()
        for optimizer in self.optimizers.values():
            for moments in (optimizer.exp_avgs, optimizer.exp_avg_sqs):
                for i, moment in enumerate(moments):
                    if self.learned[i] is not learned[i]:
                        moments[i] = rows_at(moment, before)

    # Checkpoints ---------------------------------------------------------------------------------

    def state_dict(self, layout: Layout) -> dict[str, Any]:
        """Plain tensors, numbers and strings; always the same tensors, also before the first step.

        Distributed checkpointing fills the tensors it is shown, so a fresh optimizer shows all.
        """
        own = self.learned
        state = {name: by.state_dict(own) for name, by in self.optimizers.items()}
        return {"kind": type(self.options).__name__, **state}

    def load_state_dict(self, state: Mapping[str, Any], layout: Layout) -> None:
        """Take over a checked ``state_dict``."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name], self.learned)


@dataclass(frozen=True, kw_only=True)
class LearningOptions(Options, ABC):
    """What ``MetaAdamW(learning=...)`` takes."""

    @property
    def regulariser(self) -> float:
        """Coefficient of the modulator's penalty."""
        return 0.0

    @property
    def decay_is_bias_corrected(self) -> bool:
        """Whether the step divides the weight decay by 1 − β₁ᵗ, as the authors' code does."""
        return False

    def check_moves(self, modulator: ModulatorKind) -> None:
        """Raise ``ValueError`` unless it can move this kind of modulator."""

    @abstractmethod
    def start(self, home: Home) -> Learning:
        """What learns, at the start of a run."""


def modulator_gradient(
    modulator: Modulator,
    features: Tensor,
    signals: Sequence[Tensor],
    learned: Sequence[Tensor],
    weight_decay: float,
) -> list[Tensor]:
    r"""Gradient of :math:`\sum_g s_{\alpha,g}\alpha_g + s_{\beta,g}\beta_g` and regularisers."""
    with torch.enable_grad():
        modulation: Modulation = modulator(features, once_differentiable=True)
        loss = signals[0] @ modulation.alpha + signals[1] @ modulation.beta
        loss = loss + modulator.penalty(weight_decay)
        gradient = torch.autograd.grad(
            loss, list(learned), allow_unused=True, materialize_grads=True
        )
    return list(gradient)


def check_can_learn(modulator: ModulatorKind, learning: LearningOptions) -> None:
    """Raise ``ValueError`` unless the modulator has something to learn."""
    if not isinstance(modulator, ModulatorOptions):
        raise ValueError(
            f"learning must be 'off' with a {type(modulator).__name__}, which learns nothing, got "
            f"{type(learning).__name__}"
        )
