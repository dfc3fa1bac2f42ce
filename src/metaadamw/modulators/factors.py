"""Beyond the paper: no attention, a number for each group, learned by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaadamw.modulators.base import Modulator, ModulatorOptions, rows_at

__all__ = ["Factors", "FactorsModulator"]


def _pairs(value: Any) -> tuple[tuple[str, Any], ...] | None:
    """A mapping from names as pairs, which keep the options hashable; None for all else."""
    entries = value.items() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list, tuple)):
        return None
    if not all(isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in entries):
        return None
    if not all(isinstance(name, str) for name, _ in entries):
        return None
    return tuple((name, start) for name, start in entries)


@dataclass(frozen=True, kw_only=True)
class Factors(ModulatorOptions):
    r"""A number for each group and nothing more: α and β of a group depend on no other.

    What the paper's signal, or ours, achieves without a Transformer. Nothing is read of a group.

    Args:
        alpha_range: the largest :math:`|\log\alpha|`, any number from 0; with ``scale="linear"``
            α lies in 1 ± alpha_range / 2, from 0 to 2.
        beta_range: likewise for β.
        scale: "log", :math:`\alpha = \exp(r\tanh(raw/r))` with r = alpha_range, so that halving is
            as far away as doubling; or "linear", Eqs. 7–8. Likewise for β.
        alpha_start: α at birth, within its range: a number, or a mapping from names of groups, for
            each its own, and 1 for all others.
        mean_preserving: the geometric mean of α over the groups stays 1: your learning rate and its
            schedule hold for all of them together, and α only says how much of it goes where. Then
            α lies within e^±2·alpha_range.
        update_every: steps between two refreshes of α and β; what learns from single steps learns
            then. The ends of windows refresh them as well.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown option.

    Example:
        >>> Factors(alpha_start={"head": 3.0}).start_of("head")
        3.0
    """

    alpha_range: float = 4.0
    beta_range: float = 1.0
    scale: Literal["linear", "log"] = "log"
    alpha_start: float | Mapping[str, float] | tuple[tuple[str, float], ...] = 1.0
    mean_preserving: bool = False
    update_every: int = 4

    def _check_starts(self) -> None:
        starts = _pairs(self.alpha_start)
        if starts is None:
            return super()._check_starts()
        for name, start in starts:
            self._check_start(f"alpha_start[{name!r}]", start)
        object.__setattr__(self, "alpha_start", starts)

    def start_of(self, name: str) -> float:
        """α at birth of a group."""
        starts = _pairs(self.alpha_start)
        return super().start_of(name) if starts is None else float(dict(starts).get(name, 1.0))

    def build(
        self,
        names: Sequence[str],
        *,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> FactorsModulator:
        """The numbers, at birth; see ``ModulatorOptions.build``. The seed decides nothing."""
        return FactorsModulator(names, self, device=device, dtype=dtype)


class FactorsModulator(Modulator):
    """Raw outputs that belong to one group each, whatever the features are.

    Args:
        names: of the G groups.
        options: ranges, scale and starts.
    """

    def __init__(
        self,
        names: Sequence[str],
        options: Factors,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(options)
        self.raw = nn.Parameter(torch.zeros(0, 4, device=device, dtype=dtype))
        self.regroup(names, [None] * len(names))

    def regroup(self, names: Sequence[str], before: Sequence[int | None]) -> None:
        """Let new groups begin at α = alpha_start, β = 1; the others keep their raw outputs."""
        rows = rows_at(self.raw.detach(), before)
        for row, name, i in zip(rows, names, before, strict=True):
            if i is None:
                row[0] = self.options.raw_start(name)
        self.raw = nn.Parameter(rows)

    @torch.no_grad()
    def hold_mean(self, before: Tensor, told: Tensor) -> None:
        """Take back what raw α has moved by on average; of groups told nothing, all of it.

        Args:
            before: the raw outputs before they moved, [G, 4].
            told: the groups whose signal was not 0, [G], boolean.
        """
        after = self.raw[:, 0]
        mean = ((after - before[:, 0]) * told).sum() / told.sum().clamp_min(1)
        self.raw[:, 0] = torch.where(told, after - mean, before[:, 0])

    def penalty(self, weight_decay: float) -> Tensor:
        """The distance from α = β = 1."""
        norm: Tensor = torch.linalg.vector_norm(self.raw)
        return weight_decay * norm

    def raw_outputs(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """The raw outputs, [G, 4]; of the features only their number of rows is read.

        Raises:
            ValueError: the number of rows is not G.
        """
        if len(features) != len(self.raw):
            raise ValueError(f"features must have {len(self.raw)} rows, got {len(features)}")
        return self.raw
