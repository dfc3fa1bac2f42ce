"""What an arm of a comparison is.

A function that makes its optimizer, and the settings that this function reads: plain values that
stand in ``config.json``, that an ablation changes, and that fix the result.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from metaadamw_bench import optimizers
from metaadamw_bench.config import RunConfig
from metaadamw_bench.optimizers import Stepper
from metaadamw_bench.tasks import PreparedTask

__all__ = ["Arm"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An optimizer as it takes part in a comparison.

    Attributes:
        name: the arm's name on the command line.
        title: the arm in a few words, for tables and pictures.
        description: what exactly runs, with every setting that is not the task's.
        build: ``build(model, config)`` returns the optimizer.
        settings: ``settings(task)`` returns what ``build`` reads from ``config.arm_settings``.
        modulated: whether it is MetaAdamW: then ablations fit, and the ``paper`` protocol gives
            it the epochs that its authors gave it.
        lr: learning rate instead of the task's.
        decay_per_step: ηλ, the share of the parameters that a step takes off at α = β = 1, instead
            of the task's λ: the same whatever the learning rate is.
        requires: the package that it comes from, if that is not torch.
        tunes: the arm whose learning rate and weight decay are tuned first.
        matches: the arm whose mean α multiplies the learning rate, or whose factors are replayed.
        fits: ``fits(model)`` tells whether there is anything in the model that sets it apart.
    """

    name: str
    title: str
    description: str
    build: Callable[[nn.Module, RunConfig], Stepper] = optimizers.adamw
    settings: Callable[[PreparedTask], dict[str, Any]] = lambda task: {}
    modulated: bool = False
    lr: float | None = None
    decay_per_step: float | None = None
    requires: str | None = None
    tunes: str | None = None
    matches: str | None = None
    fits: Callable[[nn.Module], bool] = lambda model: True

    @property
    def chooses_lr(self) -> bool:
        """Whether its learning rate is neither the task's nor one that is asked for."""
        return not (self.lr is None and self.tunes is None and self.matches is None)

    def check_installed(self) -> None:
        """Raise ``ValueError`` if the arm needs something that is not installed."""
        package = self.requires
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"arm {self.name} needs the package {package}: "
                "pip install './bench[peers]' in a clone of metaadamw"
            )
