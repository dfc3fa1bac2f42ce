r"""Sec. 3.4: what says α, β, λ₁, λ₂ of every group, each [G]; the ranges they lie in (Eqs. 7–9)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from metaadamw.checks import check_choice, check_count, check_flag, check_number
from metaadamw.options import Options
from metaadamw.statistics.features import Feature

__all__ = ["Modulation", "Modulator", "ModulatorKind", "ModulatorOptions", "rows_at"]


class Modulation(NamedTuple):
    r"""What the modulator says of each group (Eqs. 7–9); each tensor has shape [G].

    Attributes:
        alpha: factor on the learning rate, within 1 ± alpha_range / 2 (or that of the log scale).
        beta: factor on the weight decay, likewise.
        lambda1: weight of :math:`\lVert g'_g \rVert^2` in Eq. 10, within (0, 1).
        lambda2: weight of :math:`\cos(g_g, g'_g)` in Eq. 10, within (0, 1).
    """

    alpha: Tensor
    beta: Tensor
    lambda1: Tensor
    lambda2: Tensor


class ModulatorKind(ABC):
    """What ``MetaAdamW(modulator=...)`` takes: what is read, and what says α and β."""

    update_every: int
    """Steps between two refreshes of α and β."""

    @property
    def table(self) -> tuple[Feature, ...]:
        """The features that it reads, F columns; none by default."""
        return ()

    @property
    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint must have been made with, beside tensors of the same shapes."""

    @abstractmethod
    def build(
        self, names: Sequence[str], *, seed: int, device: torch.device, dtype: torch.dtype
    ) -> Modulator:
        """The modulator itself, at birth.

        Args:
            names: of the G groups.
            seed: of its initial weights; global random streams are not touched.
            device: where it lives.
            dtype: and in which precision.
        """


@dataclass(frozen=True, kw_only=True)
class ModulatorOptions(Options, ModulatorKind):
    r"""What every modulator that learns has in common: where α and β start, and how far they go.

    See ``Attention`` and ``Factors`` for what each means there.
    """

    alpha_range: float
    beta_range: float
    scale: Literal["linear", "log"]
    alpha_start: Any
    mean_preserving: bool
    update_every: int

    def __post_init__(self) -> None:
        """Validate every field."""
        check_choice("scale", self.scale, ("linear", "log"))
        widest = 2.0 if self.scale == "linear" else math.inf
        check_number("alpha_range", self.alpha_range, 0.0, widest)
        check_number("beta_range", self.beta_range, 0.0, widest)
        check_flag("mean_preserving", self.mean_preserving)
        check_count("update_every", self.update_every, 1)
        self._check_starts()
        alike = isinstance(self.alpha_start, (int, float)) and self.alpha_start != 1.0
        if self.mean_preserving and (self.scale != "log" or alike):
            raise ValueError(
                "mean_preserving=True needs scale='log' and an alpha_start that does not move all "
                f"groups alike, got scale={self.scale!r}, alpha_start={self.alpha_start!r}"
            )

    def _check_starts(self) -> None:
        self._check_start("alpha_start", self.alpha_start)

    def _check_start(self, name: str, start: Any) -> None:
        low, high = self.alpha_limits
        check_number(name, start, low, high)
        if start != 1.0 and start in (low, high):
            raise ValueError(f"{name} must be within ({low}, {high}), got {start!r}")

    @property
    def alpha_limits(self) -> tuple[float, float]:
        """The least and the greatest α."""
        if self.scale == "linear":
            return 1 - self.alpha_range / 2, 1 + self.alpha_range / 2
        return math.exp(-self.alpha_range), math.exp(self.alpha_range)

    def start_of(self, name: str) -> float:
        """α at birth of a group."""
        return float(self.alpha_start)

    def raw_start(self, name: str = "") -> float:
        """The raw output that α at birth of a group comes from."""
        start = self.start_of(name)
        if start == 1.0:
            return 0.0
        if self.scale == "linear":
            share = 0.5 + (start - 1) / self.alpha_range
            return math.log(share / (1 - share))
        return self.alpha_range * math.atanh(math.log(start) / self.alpha_range)

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint must have been made with, beside tensors of the same shapes."""
        names = ("alpha_range", "beta_range", "scale", "mean_preserving")
        return {"kind": type(self).__name__, **{name: getattr(self, name) for name in names}}


def rows_at(old: Tensor, before: Sequence[int | None]) -> Tensor:
    """Rows of ``old`` by their positions; None gives a row of zeros."""
    rows = old.new_zeros(len(before), *old.shape[1:])
    for row, i in zip(rows, before, strict=True):
        if i is not None:
            row.copy_(old[i])
    return rows


class Modulator(nn.Module, ABC):
    """Whatever gives raw outputs, [G, 4], and learns.

    Args:
        options: the ranges and the scale of the factors.
    """

    options: Any  # narrower in each kind

    def __init__(self, options: ModulatorKind) -> None:
        super().__init__()
        self.options = options

    def check_groups(self, names: Sequence[str]) -> None:
        """Raise ``ValueError`` if it cannot serve groups of these names."""

    @property
    def table(self) -> tuple[Feature, ...]:
        """The features it reads, F of them."""
        table: tuple[Feature, ...] = self.options.table
        return table

    @property
    def update_every(self) -> int:
        """Steps between two refreshes of α and β."""
        every: int = self.options.update_every
        return every

    @property
    def architecture(self) -> Mapping[str, Any]:
        """What a checkpoint must have been made with, beside tensors of the same shapes."""
        architecture: Mapping[str, Any] = self.options.architecture
        return architecture

    @property
    def weights(self) -> list[Tensor]:
        """``parameters()`` without its search through submodules: there are none."""
        return [p for p in self._parameters.values() if p is not None]

    @abstractmethod
    def raw_outputs(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """Eqs. 5–6: features [G, F] to the raw outputs, [G, 4]."""

    @abstractmethod
    def regroup(self, names: Sequence[str], before: Sequence[int | None]) -> None:
        """What belongs to one group follows it to its new place, in a new parameter.

        Args:
            names: of all groups.
            before: where each of them was; None for one that is new.
        """

    def gate_sparsity(self, weight_decay: float) -> float:
        """Coefficient of the gates' regulariser, beside ``weight_decay`` for the weights."""
        return 0.0

    @abstractmethod
    def penalty(self, weight_decay: float) -> Tensor:
        """What the meta-objective adds for large weights and open gates."""

    def at(self, step: int, features: Tensor) -> Modulation:
        """The modulation of a step, counted from 0."""
        modulation: Modulation = self(features)
        return modulation

    def forward(self, features: Tensor, *, once_differentiable: bool = False) -> Modulation:
        r"""Eqs. 5–9.

        .. math:: \alpha_g = 1 + range_\alpha (\sigma(\alpha_g^{raw}) - 0.5), \quad
                  \beta_g = 1 + range_\beta (\sigma(\beta_g^{raw}) - 0.5), \quad
                  \lambda_{i,g} = \sigma(\lambda_{i,g}^{raw})

        On the log scale :math:`\alpha_g = \exp(r\tanh(\alpha_g^{raw}/r))`, r the range; likewise β.
        With ``mean_preserving`` :math:`\alpha_g` is divided by its geometric mean over the groups.

        Args:
            features: shape [G, F].
            once_differentiable: nobody will ask for a second derivative, or for a gradient by
                ``torch.func``: faster on a CPU.

        Raises:
            ValueError: features of another shape.
        """
        raw = self.raw_outputs(features, once_differentiable=once_differentiable)
        return self.factors(raw)

    def factors(self, raw: Tensor) -> Modulation:
        """Eqs. 7–9 from raw outputs, [G, 4]."""
        alpha_raw, beta, lambda1, lambda2 = raw.unbind(1)
        alpha = self._factor(alpha_raw, self.options.alpha_range)
        if self.options.mean_preserving:
            alpha = alpha / alpha.log().mean().exp()
        return Modulation(
            alpha=alpha,
            beta=self._factor(beta, self.options.beta_range),
            lambda1=torch.sigmoid(lambda1),
            lambda2=torch.sigmoid(lambda2),
        )

    def _factor(self, raw: Tensor, width: float) -> Tensor:
        if self.options.scale == "linear":
            return 1 + width * (torch.sigmoid(raw) - 0.5)
        return torch.exp(width * torch.tanh(raw / width) if width else 0 * raw)
