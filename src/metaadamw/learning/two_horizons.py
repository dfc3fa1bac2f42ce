"""Beyond the paper: single steps tell the groups apart, windows say how high the rates are.

Single steps are many and short-sighted: of α they move only the differences between groups, and β
as a whole, of which windows say nothing. The mean of the raw outputs behind α is left to windows,
which are few and see further, and grow with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from metaadamw.checks import check_number
from metaadamw.learning.base import Home, Learning, Reads, Step
from metaadamw.learning.hypergradient import FACTORS_RATE, HypergradientLearning
from metaadamw.learning.meta_optimizer import MetaOptimizer
from metaadamw.learning.windows import Windows, WindowsLearning
from metaadamw.modulators.base import Modulation, ModulatorKind
from metaadamw.modulators.factors import Factors, FactorsModulator
from metaadamw.statistics.layout import Layout, Pair

__all__ = ["TwoHorizons", "TwoHorizonsLearning"]


@dataclass(frozen=True, kw_only=True)
class TwoHorizons(Windows):
    """Learning from single steps and from windows, inside ``step()``: the default, for ``Factors``.

    At every fourth step (``Factors.update_every``), from what the gradient at hand says of the last
    one, Adam moves the logarithms of the factors by some hundredths; at the end of a window, from
    where the last two went, they move by up to two or so, what they have in common by half as much.
    For runs of a thousand steps or more. Needs two more copies of the parameters.

    Args:
        consecutive_lr: learning rate of the Adam that single steps move the factors by.
        window: steps of the first window; this and the rest as for ``Windows``.
        mean_speed: see there.
        optimizer: what moves the factors at the end of a window.
        lr: see there.
        weight_decay: see there.
        warmup_steps: training steps before it learns.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown option.

    Example:
        >>> TwoHorizons().consecutive_lr
        0.04

    Source: ``lab/notebook.md`` says how it was chosen and what it is worth.
    """

    consecutive_lr: float = FACTORS_RATE

    def __post_init__(self) -> None:
        """Validate every field."""
        super().__post_init__()
        check_number("consecutive_lr", self.consecutive_lr, 0.0, open_low=True)

    def check_moves(self, modulator: ModulatorKind) -> None:
        """Raise ``ValueError`` unless it can move this kind of modulator."""
        if not isinstance(modulator, Factors):
            raise ValueError(
                "learning='two_horizons' needs modulator='factors', got "
                f"{type(modulator).__name__}; with 'attention' go 'lookahead', 'hypergradient', "
                "'windows' and 'off', with a schedule 'off'"
            )

    def start(self, home: Home) -> Learning:
        """What learns, at the start of a run."""
        return TwoHorizonsLearning(self, home)


class TwoHorizonsLearning(Learning):
    """Consecutive steps and windows, each a way of learning of its own.

    Args:
        options: how it learns.
        home: what it is made for.
    """

    in_step = True

    def __init__(self, options: TwoHorizons, home: Home) -> None:
        super().__init__(options, home)
        self.single = HypergradientLearning(
            options,
            home,
            MetaOptimizer("adam", options.consecutive_lr),
            options.warmup_steps,
            name="consecutive_optimizer",
        )
        self.windows = WindowsLearning(options, home)
        self._share()

    def _share(self) -> None:
        self.single.applied = self.windows.applied = self.applied

    @property
    def optimizers(self) -> dict[str, MetaOptimizer]:
        """What moves the modulator, by its name in a checkpoint."""
        return {**self.windows.optimizers, **self.single.optimizers}

    def parts(self) -> list[object]:
        """Itself and whatever else of it changes its attributes during a step."""
        return [self, *self.single.parts(), *self.windows.parts()]

    def refreshes(self, steps: int) -> bool:
        """Whether α and β are made anew before the step after so many."""
        return self.windows.refreshes(steps) or self.single.refreshes(steps)

    def prepare(self, layout: Layout, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Begin the windows that are missing."""
        self.windows.prepare(layout, state)

    def reads(self, step: Step) -> Reads:
        """What both want to read."""
        window, single = self.windows.reads(step), self.single.reads(step)
        return Reads({**window.columns, **single.columns}, [*window.pairs, *single.pairs])

    def learn(self, step: Step, products: Mapping[Pair, Tensor], features: Tensor) -> bool | Tensor:
        """Learn from both; single steps leave the mean of raw α where it was."""
        factors = cast(FactorsModulator, self.modulator)
        before = factors.raw.detach().clone()
        ok = self.single.learn(step, products, features)
        if self.single.signals is not None:
            factors.hold_mean(before, self.single.signals[0] != 0)
        return ok & self.windows.learn(step, products, features)

    def begin(self, step: Step, modulation: Modulation) -> None:
        """Begin the next window."""
        self.windows.begin(step, modulation)

    def stepped(
        self,
        step: Step,
        features: Tensor | None,
        rates: Sequence[float | Tensor],
        decays: Sequence[float | Tensor],
    ) -> None:
        """Keep what the next gradient will be compared with."""
        self.single.stepped(step, features, rates, decays)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Go where the parameters went."""
        self.single.to(device, dtype)
        self.windows.to(device, dtype)
        self.on_host = self.windows.on_host
        self.applied = self.applied.to(device)
        self._share()

    def forget(self) -> None:
        """What was told of single tensors or groups is of others now."""
        self.single.forget()
        self.windows.forget()

    def regroup(self, regroup: Callable[[], None], before: Sequence[int | None]) -> None:
        """Let what belongs to single groups go with them."""
        self.single.regroup(lambda: self.windows.regroup(regroup, before), before)

    def state_dict(self, layout: Layout) -> dict[str, Any]:
        """See ``Learning.state_dict``."""
        return {
            **self.single.state_dict(layout),
            **self.windows.state_dict(layout),
            **super().state_dict(layout),
        }

    def load_state_dict(self, state: Mapping[str, Any], layout: Layout) -> None:
        """Take over a checked ``state_dict``."""
        self.single.load_state_dict(state, layout)
        self.windows.load_state_dict(state, layout)
