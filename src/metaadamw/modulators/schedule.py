"""A recorded trajectory of α and β as a plain schedule, replayed without any learning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaadamw.modulators.base import Modulation, Modulator, ModulatorKind

__all__ = ["Schedule", "ScheduleModulator"]


@dataclass(frozen=True, eq=False)
class Schedule(ModulatorKind):
    """α and β of every group at every step.

    ``MetaAdamW(groups, modulator=schedule)`` runs it: at step t each group has the factors of row
    t; after the last row they stay.

    Args:
        groups: names of the groups.
        alpha: shape [T, G].
        beta: shape [T, G].

    Raises:
        ValueError: the shapes do not fit, or there is no row.

    Example:
        >>> schedule = Schedule(("body", "head"), torch.ones(3, 2), torch.ones(3, 2))
        >>> len(schedule)
        3
    """

    groups: tuple[str, ...]
    alpha: Tensor
    beta: Tensor

    def __post_init__(self) -> None:
        """Validate the shapes."""
        shape = tuple(self.alpha.shape)
        if (
            len(shape) != 2
            or shape != tuple(self.beta.shape)
            or shape[1] != len(self.groups)
            or not shape[0]
        ):
            raise ValueError(
                f"alpha and beta must have shape [T, {len(self.groups)}] with T >= 1, "
                f"got {shape} and {tuple(self.beta.shape)}"
            )

    update_every = 1  # each step has factors of its own

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint must have been made with: any other schedule goes on as well."""
        return {"kind": "Schedule"}

    def build(
        self, names: Sequence[str], *, seed: int, device: torch.device, dtype: torch.dtype
    ) -> ScheduleModulator:
        """What replays it; see ``ModulatorKind.build``.

        Raises:
            ValueError: it was recorded for other groups.
        """
        self.check_groups(names)
        return ScheduleModulator(self)

    def __len__(self) -> int:
        """Number of recorded steps."""
        return len(self.alpha)

    def at(self, step: int, device: torch.device, dtype: torch.dtype) -> Modulation:
        """The factors of a step, counted from 0."""
        row = min(step, len(self) - 1)
        alpha, beta = (t[row].to(device=device, dtype=dtype) for t in (self.alpha, self.beta))
        return Modulation(alpha, beta, torch.full_like(alpha, 0.5), torch.full_like(alpha, 0.5))

    def check_groups(self, names: Sequence[str]) -> None:
        """Raise ``ValueError`` unless the optimizer has the groups that were recorded."""
        if list(self.groups) != list(names):
            raise ValueError(
                f"schedule was recorded for the groups {list(self.groups)}, got {list(names)}"
            )

    def save(self, path: str | Path) -> None:
        """Write it as JSON; every float survives exactly."""
        content = {
            "groups": list(self.groups),
            "dtype": str(self.alpha.dtype).removeprefix("torch."),
        }
        content |= {"alpha": self.alpha.tolist(), "beta": self.beta.tolist()}
        Path(path).write_text(json.dumps(content))

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read what ``save`` wrote."""
        content = json.loads(Path(path).read_text())
        dtype = getattr(torch, content["dtype"])
        alpha, beta = (
            torch.tensor(content[k], dtype=dtype, device="cpu") for k in ("alpha", "beta")
        )
        return cls(tuple(content["groups"]), alpha, beta)


class ScheduleModulator(Modulator):
    """Says what was recorded; there is nothing to learn, and no feature is read."""

    options: Schedule

    def check_groups(self, names: Sequence[str]) -> None:
        """Raise ``ValueError`` unless these groups were recorded."""
        self.options.check_groups(names)

    def at(self, step: int, features: Tensor) -> Modulation:
        """The factors of a step, counted from 0."""
        return self.options.at(step, features.device, features.dtype)

    def raw_outputs(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """A schedule has none.

        Raises:
            TypeError: always; ask for ``at``.
        """
        raise TypeError("a schedule follows the step, not features: ask at(step, features)")

    def regroup(self, names: Sequence[str], before: Sequence[int | None]) -> None:
        """The groups must be those that were recorded."""
        self.check_groups(names)

    def penalty(self, weight_decay: float) -> Tensor:
        """Nothing is learned."""
        return torch.zeros((), device="cpu")
