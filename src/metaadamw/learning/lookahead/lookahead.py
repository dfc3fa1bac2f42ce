r"""Algorithm 2, line 8: when a meta-update is due, and what moves the modulator then."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaadamw.checks import check_choice, check_count, check_number, check_type
from metaadamw.learning.base import Home, Learning, LearningOptions, check_can_learn
from metaadamw.learning.lookahead.evaluation import LossFunction
from metaadamw.learning.lookahead.meta_update import MetaUpdate, check_batches, meta_gradient
from metaadamw.learning.lookahead.objective import MetaObjective
from metaadamw.learning.lookahead.second_derivative import STATE_KEYS, SecondDerivative
from metaadamw.learning.lookahead.uncertainty import PriorityUncertaintyWeighting
from metaadamw.learning.meta_optimizer import META_RATES, MetaOptimizer
from metaadamw.modulators.base import ModulatorKind
from metaadamw.parallel.ranks import Ranks
from metaadamw.state.token import Token
from metaadamw.statistics.layout import Layout

__all__ = ["LookAhead", "LookAheadLearning"]


@dataclass(frozen=True, kw_only=True)
class LookAhead(MetaObjective, LearningOptions):
    r"""The paper's way to learn (Algorithm 2): the user calls ``update_attention`` when it is due.

    Args:
        objective: "combined" (Eq. 13), or one term alone: "gradient_alignment" (Eq. 10),
            "loss_decrease" (Eq. 11), "generalization_gap" (Eq. 12).
        priorities: :math:`p_i > 0` of Eq. 13, in the order of the three terms.
        weighting: "uncertainty" (Eq. 13) or "fixed".
        fixed_weights: weights of the three terms under "fixed".
        every: :math:`K_{meta}`, steps between two meta-updates.
        warmup_steps: training steps before the first one.
        optimizer: what moves the modulator: "sgd" (paper) or "adam".
        lr: its learning rate :math:`\eta_{meta}`. None: 1e-4 for "sgd", 1e-3 for "adam".
        weight_decay: coefficient of :math:`\sum \lVert W \rVert_2` (not squared) over encoder
            tensors and output weight, or over the raw outputs of ``Factors``.
        hvp: product of Hessian and vector for Eq. 10: "exact", "finite_difference" (central),
            "forward_difference" (a gradient less, less accurate), or "auto" (exact where it exists
            and agrees with a difference; central elsewhere and for recurrent networks, where exact
            is slow).
        gap_at: Eq. 12 at "theta" (as printed: no gradient reaches the modulator) or at
            "theta_prime".
        log_variance_bound: the log-variances s of Eq. 13 stay within (-bound, bound), which bounds
            the objective below; None: the published, unbounded form.
        as_run: departures of the authors' code from their paper to repeat on purpose, any of
            "detached_beta", "stored_moments", "bias_corrected_decay".

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown option.

    Example:
        >>> LookAhead(every=5).optimizer
        'sgd'

    Source: Zhao & Liu (2026), Sec. 3.5, Algorithm 2.
    """

    every: int = 100
    warmup_steps: int = 0
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float | None = None

    def __post_init__(self) -> None:
        """Validate every field."""
        super().__post_init__()
        check_count("every", self.every, 1)
        check_count("warmup_steps", self.warmup_steps, 0)
        check_choice("optimizer", self.optimizer, ("sgd", "adam"))
        if self.lr is not None:
            check_number("lr", self.lr, 0.0)

    @property
    def regulariser(self) -> float:
        """Coefficient of the modulator's penalty."""
        return self.weight_decay

    @property
    def decay_is_bias_corrected(self) -> bool:
        """Whether the step divides the weight decay by 1 − β₁ᵗ, as the authors' code does."""
        return "bias_corrected_decay" in self.as_run

    def check_moves(self, modulator: ModulatorKind) -> None:
        """Raise ``ValueError`` unless it can move this kind of modulator."""
        check_can_learn(modulator, self)

    def start(self, home: Home) -> LookAheadLearning:
        """What learns, at the start of a run."""
        return LookAheadLearning(self, home)


class LookAheadLearning(Learning):
    """Takes meta-updates.

    Args:
        options: when, on what, by what.
        home: what it is made for.
    """

    options: LookAhead

    def __init__(self, options: LookAhead, home: Home) -> None:
        super().__init__(options, home)
        device, dtype = home.layout.device, home.layout.dtype
        self.weighting = PriorityUncertaintyWeighting(
            options.priorities, bound=options.log_variance_bound, device=device, dtype=dtype
        )
        lr = META_RATES[options.optimizer] if options.lr is None else options.lr
        self.optimizer = MetaOptimizer(options.optimizer, lr)
        self.second = SecondDerivative(options.hvp)
        self.last_meta_step = 0
        self._report: MetaUpdate | None = None

    @property
    def optimizers(self) -> dict[str, MetaOptimizer]:
        """What moves the modulator and the log-variances."""
        return {"meta_optimizer": self.optimizer}

    @property
    def learned(self) -> list[Tensor]:
        """The modulator's weights, and the log-variances of Eq. 13."""
        return [*self.modulator.weights, *self.weighting.parameters()]

    @property
    def report(self) -> MetaUpdate | None:
        """The report of the last meta-update."""
        return self._report

    def due(self, steps: int) -> bool:
        """Line 8 of Algorithm 1, and not yet done at this step."""
        options = self.options
        return (
            steps > self.last_meta_step
            and steps >= options.warmup_steps
            and steps % options.every == 0
        )

    @torch._disable_dynamo  # type: ignore[attr-defined]  # a compiled model inside stays compiled
    def update(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Mapping[str, Any],
        *,
        params: list[Tensor],
        steps: int,
        layout: Layout,
        tokens_of: Callable[[Sequence[Tensor | None]], list[Token]],
        features_of: Callable[[Sequence[Token]], Tensor],
        training_loss: Tensor | float | None,
        maximize: bool,
    ) -> MetaUpdate:
        """Algorithm 2."""
        check_type("model", model, nn.Module)
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable as loss_fn(model, batch), got {loss_fn!r}")
        learned = self.learned
        ranks = Ranks(model, layout.shards)
        ranks.begin(
            lambda: check_batches(self.options, batches, has_gradient=training_loss is not None),
            {
                "steps": steps,
                "training_loss is None": training_loss is None,
                "sum of the modulator's weights": str([t.sum().item() for t in learned]),
            },
            batches,
        )
        result = meta_gradient(
            model=model,
            loss_fn=loss_fn,
            batches=batches,
            params=params,
            tokens_of=tokens_of,
            features_of=features_of,
            modulator=self.modulator,
            weighting=self.weighting,
            learned=learned,
            layout=layout,
            config=self.options,
            second=self.second,
            training_loss=training_loss,
            maximize=maximize,
            eps_inside_sqrt=self.eps_inside_sqrt,
            ranks=ranks,
        )
        report = result.report
        if result.grads is not None:
            ok = torch.ones((), dtype=torch.bool, device=layout.device)
            self.optimizer.step(learned, result.grads, ok)
        self.applied += int(report.applied)
        self.last_meta_step = steps
        self._report = report
        return report

    def restart_from(self, steps: int) -> None:
        """No meta-update is due for the steps before."""
        super().restart_from(steps)
        self.last_meta_step = steps

    def warn_of_missed_update(self) -> None:
        """Say aloud that nothing is learned, which otherwise only a look at α would show."""
        warnings.warn(
            "a meta-update was due and update_attention was not called, so α and β do not learn: "
            "call it when optimizer.meta_update_due, or choose learning='two_horizons' or "
            "'hypergradient', which learn in step(), or 'off'",
            stacklevel=7,  # through what torch wraps around step()
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Go where the parameters went; other kernels may have other derivatives."""
        super().to(device, dtype)
        self.weighting.to(device, dtype)
        self.second = SecondDerivative(self.options.hvp)

    def state_dict(self, layout: Layout) -> dict[str, Any]:
        """See ``Learning.state_dict``."""
        return {
            **super().state_dict(layout),
            "raw_log_variances": self.weighting.raw_log_variances.detach().clone(),
            "last_meta_step": self.last_meta_step,
            "second_derivative": self.second.state_dict() or dict.fromkeys(sorted(STATE_KEYS), ""),
        }

    def load_state_dict(self, state: Mapping[str, Any], layout: Layout) -> None:
        """Take over a checked ``state_dict``."""
        super().load_state_dict(state, layout)
        with torch.no_grad():
            self.weighting.raw_log_variances.copy_(state["raw_log_variances"])
        self.last_meta_step = state["last_meta_step"]
        second = state["second_derivative"]
        self.second.load_state_dict(second if any(second.values()) else None)
