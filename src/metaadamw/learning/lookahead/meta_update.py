r"""Algorithm 2 from end to end: what ``MetaAdamW.update_attention`` does and reports."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from metaadamw.learning.lookahead.alignment import alignment_term
from metaadamw.learning.lookahead.evaluation import Evaluation, LossFunction
from metaadamw.learning.lookahead.objective import TERMS, MetaObjective
from metaadamw.learning.lookahead.second_derivative import HessianProduct, SecondDerivative
from metaadamw.learning.lookahead.step import Lookahead, Term
from metaadamw.learning.lookahead.uncertainty import PriorityUncertaintyWeighting
from metaadamw.learning.lookahead.undisturbed import undisturbed
from metaadamw.modulators.base import Modulator
from metaadamw.parallel.ranks import NoLoss, Ranks
from metaadamw.state.precision import full_precision
from metaadamw.state.token import Token
from metaadamw.statistics.layout import Layout

__all__ = [
    "MetaGradient",
    "MetaUpdate",
    "TokensOf",
    "check_batches",
    "meta_gradient",
]

_one_at_a_time = threading.RLock()

TokensOf = Callable[[Sequence[Tensor | None]], list[Token]]
"""The groups' tensors with the given gradients."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MetaUpdate:
    """Report of one meta-update; what an early skip left undone is None.

    Attributes:
        applied: whether the modulator was updated.
        skipped_reason: why not, or None.
        total: the meta-loss before the update, without the regulariser.
        gradient_alignment: Eq. 10, None if not part of the objective (likewise the next two).
        loss_decrease: Eq. 11.
        generalization_gap: Eq. 12.
        alpha: α at which the terms were evaluated, shape [G].
        beta: β, shape [G].
        lambda1: λ₁, shape [G].
        lambda2: λ₂, shape [G].
        log_variances: s of Eq. 13 before the update, shape [3]; None under fixed weights or a
            single term.
        hvp: the product used; None if the objective needs none.
        hvp_reason: with ``hvp="auto"`` why it is not the exact one; else None.
    """

    applied: bool
    skipped_reason: str | None = None
    total: float | None = None
    gradient_alignment: float | None = None
    loss_decrease: float | None = None
    generalization_gap: float | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None
    lambda1: Tensor | None = None
    lambda2: Tensor | None = None
    log_variances: Tensor | None = None
    hvp: HessianProduct | None = None
    hvp_reason: str | None = None


@dataclass(frozen=True)
class MetaGradient:
    """The gradient that a meta-update applies, and its report."""

    report: MetaUpdate
    grads: list[Tensor] | None


def _finite(*tensors: Tensor | None) -> bool:
    def finite(tensor: Tensor) -> bool:
        return bool(torch.isfinite(tensor).all())

    # A sum that is finite has finite terms, and costs a third of looking at each.
    return all(finite(t.sum()) or finite(t) for t in tensors if t is not None)


def _value(term: Term | None) -> float | None:
    return None if term is None else term.value.item()


def check_batches(
    config: MetaObjective, batches: Mapping[str, Any], *, has_gradient: bool = False
) -> None:
    """Raise ``ValueError`` unless every batch that the objective needs is there."""
    needed = config.needed_batches(has_gradient=has_gradient)
    missing = [name for name in needed if batches.get(name) is None]
    if missing:
        raise ValueError(
            f"objective={config.objective!r} needs {', '.join(needed)}; "
            f"missing: {', '.join(missing)}"
        )


P = ParamSpec("P")


def _skipped_without_loss(function: Callable[P, MetaGradient]) -> Callable[P, MetaGradient]:
    """Report instead of raising where the user's loss is None for a batch."""

    @functools.wraps(function)
    def skipping(*args: P.args, **kwargs: P.kwargs) -> MetaGradient:
        try:
            return function(*args, **kwargs)
        except NoLoss as error:
            return MetaGradient(MetaUpdate(applied=False, skipped_reason=str(error)), None)

    return skipping


@_skipped_without_loss
def meta_gradient(
    *,
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Mapping[str, Any],
    params: list[Tensor],
    tokens_of: TokensOf,
    features_of: Callable[[Sequence[Token]], Tensor],
    modulator: Modulator,
    weighting: PriorityUncertaintyWeighting,
    learned: Sequence[Tensor],
    layout: Layout,
    config: MetaObjective,
    second: SecondDerivative,
    training_loss: Tensor | float | None,
    maximize: bool,
    eps_inside_sqrt: bool,
    ranks: Ranks,
) -> MetaGradient:
    """Steps 1–6 of Algorithm 2 and the gradient of step 7.

    Nothing outside is changed; ``second`` learns which product there is.
    """
    batch1, val_batch = batches.get("batch1"), batches.get("val_batch")
    terms: dict[str, Term] = {}
    used: HessianProduct | None = None

    def skipped(reason: str) -> MetaGradient:
        if ranks.groups and evaluation.suspects:
            reason += f" (rank {', '.join(map(str, evaluation.suspects))})"
        return MetaGradient(MetaUpdate(applied=False, skipped_reason=reason), None)

    # Random streams belong to the process: updates in several threads would rewind each other's.
    # Processes that wait for each other are no threads, but may be simulated by some.
    alone = nullcontext() if ranks.groups else _one_at_a_time
    with alone, ranks.evaluating(), undisturbed(model, params) as snapshot:
        evaluation = Evaluation(model, loss_fn, params, maximize, ranks)
        if training_loss is None:
            loss1, grads = evaluation.gradient("batch1", batch1)  # step 2
        else:
            loss1, grads = evaluation.known(training_loss, snapshot.grads)
        if not ranks.all(_finite(loss1, *grads)):
            return skipped("non-finite loss or gradient on batch1")
        val_loss = torch.zeros_like(loss1)
        if "val_batch" in config.needed_batches():
            val_loss = evaluation.loss("val_batch", val_batch)
            if not _finite(val_loss):
                return skipped("non-finite loss on val_batch")

        tokens = tokens_of(grads)
        features = features_of(tokens)  # step 3
        if not _finite(features):
            return skipped("non-finite features")
        with torch.enable_grad():
            modulation = modulator(features, once_differentiable=True)

        lookahead = Lookahead(  # step 4
            evaluation,
            tokens,
            snapshot.values,
            modulation,
            layout,
            config,
            eps_inside_sqrt=eps_inside_sqrt,
        )
        terms.update(lookahead.losses(batch1, val_batch, loss1, val_loss))
        if "gradient_alignment" in config.terms:  # step 5
            term, used = alignment_term(lookahead, batches["batch2"], second)
            terms["gradient_alignment"] = term

    combined = config.objective == "combined"
    uncertain = combined and config.weighting == "uncertainty"
    with torch.enable_grad(), full_precision(layout.device):  # step 6
        values = [terms[name].at(modulation) for name in TERMS if name in terms]
        if uncertain:
            total = weighting(values)
        elif combined:
            total = sum(
                (w * v for w, v in zip(config.fixed_weights, values, strict=True)),
                torch.zeros_like(values[0]),
            )
        else:
            total = values[0]
        loss = total + modulator.penalty(config.weight_decay)
        gradient = torch.autograd.grad(  # step 7
            loss, list(learned), allow_unused=True, materialize_grads=True
        )
    finite = _finite(total.detach(), *gradient)
    report = MetaUpdate(
        applied=finite,
        skipped_reason=None if finite else "non-finite meta-loss or meta-gradient",
        total=total.item(),
        gradient_alignment=_value(terms.get("gradient_alignment")),
        loss_decrease=_value(terms.get("loss_decrease")),
        generalization_gap=_value(terms.get("generalization_gap")),
        alpha=modulation.alpha.detach(),
        beta=modulation.beta.detach(),
        lambda1=modulation.lambda1.detach(),
        lambda2=modulation.lambda2.detach(),
        log_variances=weighting.log_variances.detach().clone() if uncertain else None,
        hvp=used,
        hvp_reason=None if used is None else second.reason,
    )
    return MetaGradient(report, list(gradient) if finite else None)
