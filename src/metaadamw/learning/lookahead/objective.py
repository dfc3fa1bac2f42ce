"""What a look-ahead is judged by: which of Eqs. 10–12, and how they are balanced (Eq. 13)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from metaadamw.checks import check_choice, check_choices, check_number, check_numbers
from metaadamw.options import Options

__all__ = ["AS_RUN", "TERMS", "MetaObjective"]

TERMS = ("gradient_alignment", "loss_decrease", "generalization_gap")
"""Eqs. 10, 11 and 12."""

AS_RUN = ("detached_beta", "stored_moments", "bias_corrected_decay")
"""Departures of the authors' code from their paper that can be repeated on purpose."""


@dataclass(frozen=True, kw_only=True)
class MetaObjective(Options):
    """The part of ``LookAhead`` that says what a good step is; its options are explained there."""

    objective: Literal["combined", "gradient_alignment", "loss_decrease", "generalization_gap"] = (
        "combined"
    )
    priorities: tuple[float, ...] = (1.0, 1.0, 1.0)
    weighting: Literal["uncertainty", "fixed"] = "uncertainty"
    fixed_weights: tuple[float, ...] = (1.0, 0.3, 0.3)
    weight_decay: float = 1e-4
    hvp: Literal["auto", "exact", "finite_difference", "forward_difference"] = "auto"
    gap_at: Literal["theta", "theta_prime"] = "theta"
    log_variance_bound: float | None = 3.0
    as_run: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate every field."""
        check_choice("objective", self.objective, ("combined", *TERMS))
        check_numbers("priorities", self.priorities, 3, 0.0, open_low=True)
        check_choice("weighting", self.weighting, ("uncertainty", "fixed"))
        check_numbers("fixed_weights", self.fixed_weights, 3, 0.0)
        check_number("weight_decay", self.weight_decay, 0.0)
        check_choice("hvp", self.hvp, ("auto", "exact", "finite_difference", "forward_difference"))
        check_choice("gap_at", self.gap_at, ("theta", "theta_prime"))
        if self.log_variance_bound is not None:
            check_number("log_variance_bound", self.log_variance_bound, 0.0, open_low=True)
        check_choices("as_run", self.as_run, AS_RUN)
        if self.objective == "generalization_gap" and self.gap_at == "theta":
            warnings.warn(
                "objective='generalization_gap' with gap_at='theta' (Eq. 12 as printed) does not "
                "depend on the modulator and trains nothing; gap_at='theta_prime' does",
                stacklevel=4,
            )
        # Lists are welcome as arguments; tuples keep the options hashable.
        for field in ("priorities", "fixed_weights", "as_run"):
            object.__setattr__(self, field, tuple(getattr(self, field)))

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that the objective is made of."""
        return TERMS if self.objective == "combined" else (self.objective,)

    def needed_batches(self, *, has_gradient: bool = False) -> tuple[str, ...]:
        """Names of the batches that the objective needs.

        Args:
            has_gradient: loss and gradient on B1 at θ are known already.
        """
        terms = self.terms
        moving_gap = "generalization_gap" in terms and self.gap_at == "theta_prime"
        names = ["batch1"] if moving_gap or not has_gradient else []
        if "gradient_alignment" in terms:
            names.append("batch2")
        if "loss_decrease" in terms or "generalization_gap" in terms:
            names.append("val_batch")
        return tuple(names)
