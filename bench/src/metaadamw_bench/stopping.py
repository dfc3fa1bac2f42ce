"""The best evaluation of a run, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from metaadamw_bench.tasks import Means

__all__ = ["Standing"]


@dataclass
class Standing:
    """What the evaluations so far come to.

    The validation loss decides when to stop, as in the paper; the validation metric decides which
    weights are kept for the test.

    Attributes:
        patience: evaluations without a lower loss after which to stop; None: never.
        min_delta: by how much more than this a loss must be lower.
        direction: which way the metric is better.
    """

    patience: int | None
    min_delta: float
    direction: Literal["maximize", "minimize"]
    reference_loss: float = math.inf
    without_improvement: int = 0
    best_loss: float = math.nan
    best_metric: float = math.nan
    best_epoch: int = 0
    best_step: int = 0
    final_loss: float = math.nan
    final_metric: float = math.nan
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def add(self, means: Means, weights: dict[str, Tensor], *, epoch: int, step: int) -> None:
        """Take an evaluation into account."""
        if means.loss < self.reference_loss - self.min_delta:
            self.reference_loss, self.without_improvement = means.loss, 0
        else:
            self.without_improvement += 1
        if math.isnan(self.best_loss) or means.loss < self.best_loss:
            self.best_loss = means.loss
        sign = 1 if self.direction == "maximize" else -1
        if math.isnan(self.best_metric) or sign * (means.metric - self.best_metric) > 0:
            self.best_metric, self.weights = means.metric, weights
            self.best_epoch, self.best_step = epoch, step
        self.final_loss, self.final_metric = means

    @property
    def stop(self) -> bool:
        """Whether patience is exhausted."""
        return self.patience is not None and self.without_improvement >= self.patience

    def numbers(self) -> dict[str, Any]:
        """The part of the summary that it gives."""
        names = (
            "best_loss",
            "best_metric",
            "best_epoch",
            "best_step",
            "final_loss",
            "final_metric",
        )
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        for name, value in state.items():
            setattr(self, name, value)
