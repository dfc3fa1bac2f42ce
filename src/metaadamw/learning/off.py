"""A modulator that stays as it is: a frozen random encoder, or a recorded schedule."""

from __future__ import annotations

from dataclasses import dataclass

from metaadamw.checks import check_choices
from metaadamw.learning.base import Home, Learning, LearningOptions

__all__ = ["Off"]


@dataclass(frozen=True, kw_only=True)
class Off(LearningOptions):
    """Nothing is learned.

    Args:
        as_run: departures of the authors' code from their paper to repeat on purpose:
            "bias_corrected_decay".

    Raises:
        ValueError: an unknown departure.

    Example:
        >>> MetaAdamW(fine_grained_groups(model), learning="off").meta_update_due
        False
    """

    as_run: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate every field."""
        check_choices("as_run", self.as_run, ("bias_corrected_decay",))
        object.__setattr__(self, "as_run", tuple(self.as_run))

    @property
    def decay_is_bias_corrected(self) -> bool:
        """Whether the step divides the weight decay by 1 − β₁ᵗ, as the authors' code does."""
        return "bias_corrected_decay" in self.as_run

    def start(self, home: Home) -> Learning:
        """What learns nothing."""
        return Learning(self, home)
