r"""The alignment term, Eq. 10: one product of the Hessian at θ′ with q for all groups together.

.. math:: \frac{\partial\mathcal L_{grad}}{\partial\theta'} = H(\theta')\,q, \qquad
          q = \partial\mathcal L_{grad}/\partial g' = a_g g'_g + b_g g_g \text{ in group } g

"exact" takes it by double backward. Differences of gradients at :math:`\theta' \pm \epsilon q` need
no second derivative and keep one gradient at a time.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from metaadamw.learning.lookahead.evaluation import NoSecondDerivative, twice_differentiable
from metaadamw.learning.lookahead.graphs import once_differentiable
from metaadamw.learning.lookahead.objectives import Alignment, gradient_alignment
from metaadamw.learning.lookahead.run_modules import RunModules
from metaadamw.learning.lookahead.second_derivative import HessianProduct, SecondDerivative, compare
from metaadamw.learning.lookahead.step import Lookahead, Term
from metaadamw.state.token import real_view

__all__ = ["alignment_term"]

_TINY = 1e-37  # the reciprocal is finite in every precision that has float32's range


def alignment_term(
    lookahead: Lookahead, batch2: Any, second: SecondDerivative
) -> tuple[Term, HessianProduct]:
    """Eq. 10 on B2, and the method used; the parameters end up wherever that ended.

    Args:
        lookahead: the hypothetical step.
        batch2: B2.
        second: the method; "auto" is exact where that exists and is right, else central
            differences, from then on. These also for recurrent networks, whose second derivative
            costs several times as much, and for sharded parameters, whose gradients come out of
            ``backward()``.

    Raises:
        NoSecondDerivative: "exact" does not exist for this model, or is not its second derivative.
        Exception: what else "exact" has raised.
    """
    found = copy(second)  # kept only if nothing fails
    term, method = _term_and_method(lookahead, batch2, found)
    second.take(found)
    return term, method


def _term_and_method(
    lookahead: Lookahead, batch2: Any, second: SecondDerivative
) -> tuple[Term, HessianProduct]:
    if second.method == "auto":
        reason = _not_worth_trying(lookahead)
        if reason is not None:
            second.give_up(reason)
    method = second.method
    if method == "auto" or method == "exact":
        start = RunModules()
        start.keep(lookahead.evaluation.model)
        try:
            with start.watching():
                return _exact(lookahead, batch2, second, start), "exact"
        except NoSecondDerivative as error:
            cause = error.__cause__
            if method == "exact":
                if cause is None or type(cause) in (RuntimeError, NotImplementedError):
                    raise
                raise cause from None
            reason = error.why
            for raised in (error, cause):
                if raised is not None:
                    traceback.clear_frames(raised.__traceback__)  # which hold the graph
        except torch.OutOfMemoryError as error:  # of the comparison
            if method == "exact" or lookahead.evaluation.ranks.groups:
                raise
            reason = f"comparing it with differences needs too much memory ({error})"
            traceback.clear_frames(error.__traceback__)
        second.give_up(reason)
        start.restore()  # differences begin where they would have begun without an attempt
        method = "finite_difference"
    return _difference(lookahead, batch2, central=method == "finite_difference"), method


def _not_worth_trying(lookahead: Lookahead) -> str | None:
    if lookahead.evaluation.ranks.distributed:
        return "parameters are sharded over processes"
    modules = lookahead.evaluation.model.modules()
    if any(isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in modules):
        return "the second derivative of recurrent networks costs several times as much"
    return None


def _alignment(
    lookahead: Lookahead, updated: Sequence[Tensor | None]
) -> tuple[Alignment, list[Tensor | None], Tensor]:
    """Eq. 10 from g and g′; g′ as real tensors; and ‖q‖²."""
    reals = [None if g is None else real_view(g.detach()) for g in updated]
    dot, square, square_updated = lookahead.layout.group_products(
        {"g": lookahead.grads, "updated": reals},
        [("g", "updated"), ("g", "g"), ("updated", "updated")],
    )
    alignment = gradient_alignment(
        dot,
        square.sqrt(),
        square_updated.sqrt(),
        lookahead.modulation.lambda1,
        lookahead.modulation.lambda2,
    )
    a, b = alignment.on_updated, alignment.on_original
    q_square = a.square() * square_updated + 2 * a * b * dot + b.square() * square
    return alignment, reals, q_square.sum().clamp_min(0)


def _term(lookahead: Lookahead, alignment: Alignment, along: Tensor) -> Term:
    slopes = lookahead.slopes(along)
    return Term(alignment.value, *slopes, alignment.grad_lambda1, alignment.grad_lambda2)


def _with_graph(lookahead: Lookahead, batch2: Any) -> list[Tensor | None]:
    """g′ of this process with its graph."""
    evaluation = lookahead.evaluation
    if evaluation.ranks.distributed:
        raise NoSecondDerivative("its parameters are sharded over processes")
    _, updated = evaluation.gradient("batch2", batch2, create_graph=True)
    if once_differentiable(updated):
        raise NoSecondDerivative("a kernel is marked once_differentiable")
    return updated


def _exact(lookahead: Lookahead, batch2: Any, second: SecondDerivative, start: RunModules) -> Term:
    r"""The product :math:`H(\theta')q` by double backward."""
    evaluation, layout = lookahead.evaluation, lookahead.layout
    with twice_differentiable():
        updated = _with_graph(lookahead, batch2)
        if not evaluation.ranks.all(second.trusts(evaluation.functions)):
            del updated
            start.restore()  # a comparison changes no result
            _compare(lookahead, batch2, second)
            start.restore()
            updated = _with_graph(lookahead, batch2)
        means = evaluation.ranks.mean(evaluation.params, updated)
        alignment, reals, _ = _alignment(lookahead, means)
        edges, q = [], []
        for i, g in enumerate(layout.groups):
            output, new, old = updated[i], reals[i], lookahead.grads[i]
            if output is None or new is None or not output.requires_grad:
                continue
            vector = new * alignment.on_updated[g].to(new)
            if old is not None:
                vector.addcmul_(old, alignment.on_original[g].to(new))
            edges.append(get_gradient_edge(output))
            q.append(torch.view_as_complex(vector) if output.is_complex() else vector)
            updated[i] = means[i] = reals[i] = None  # only the graph of g′ is needed from here on
        del output, new
        product: list[Tensor | None] = [None] * len(updated)
        if edges:  # none: the loss is linear in the parameters
            product = evaluation.product(edges, q)
    return _term(lookahead, alignment, lookahead.along(product))


def _compare(lookahead: Lookahead, batch2: Any, second: SecondDerivative) -> None:
    """Raise ``NoSecondDerivative`` if an exact product is not the one that differences give.

    The product with g′, every tensor of it at length one: q itself may lie in tensors whose
    gradients are zero but for rounding, where the cosine is steepest.
    """
    evaluation = lookahead.evaluation
    updated = _with_graph(lookahead, batch2)
    functions = evaluation.functions
    means = evaluation.ranks.mean(evaluation.params, updated)
    lengths = [0.0 if g is None else float(real_view(g.detach()).norm()) for g in means]
    if not math.isfinite(sum(lengths)):
        return  # this update is skipped, the next one compares
    vectors = [
        None if g is None or length < _TINY else g.detach() / length
        for g, length in zip(means, lengths, strict=True)
    ]
    connected = [
        (get_gradient_edge(g), vector)
        for g, vector in zip(updated, vectors, strict=True)
        if g is not None and g.requires_grad and vector is not None
    ]
    product: list[Tensor | None] = [None] * len(updated)
    if connected:
        product = evaluation.product(*zip(*connected, strict=True))
    del updated, means, connected
    reals = [[None if t is None else real_view(t) for t in ts] for ts in (product, vectors)]
    count = max(1, sum(vector is not None for vector in vectors))
    try:
        doubt = compare(
            reals[0],
            lambda step: _central(lookahead, batch2, reals[1], step / count**0.5),
            unit=max(_unit(lookahead), functions.unit),
            noise=math.hypot(*lengths) * count**0.5,
        )
    finally:
        lookahead.put_back()
    # Functions of torch are believed unless refuted, others only if confirmed. Whoever asks for the
    # exact product gets it unless it is wrong.
    doubtful = doubt is not None and (
        doubt.refuted or (bool(functions.foreign) and second.method == "auto")
    )
    doubts = evaluation.ranks.gather(doubt.why if doubt is not None and doubtful else None)
    why = next((text for text in doubts.values() if text), None)
    if why is not None:
        names = ", ".join(sorted(functions.foreign)) or "none"
        raise NoSecondDerivative(f"{why}; functions that are not torch's: {names}")
    if max(lengths) >= _TINY:  # a gradient of zero tells nothing
        second.believe(functions)


@torch.no_grad()
def _central(
    lookahead: Lookahead, batch2: Any, vectors: Sequence[Tensor | None], epsilon: float
) -> list[Tensor | None]:
    """The central difference of the gradient along ``vectors``."""

    def gradient_at(epsilon: float) -> list[Tensor | None]:
        for i, vector in enumerate(vectors):
            base = None if vector is None else lookahead.updated(i)
            if base is not None and vector is not None:
                lookahead.params[i].copy_(base).add_(vector, alpha=epsilon)
        gradient = lookahead.evaluation.gradient("batch2", batch2)[1]
        return [None if g is None else real_view(g) for g in gradient]

    plus = gradient_at(epsilon)
    minus = gradient_at(-epsilon)
    return [
        None if a is None or b is None else (a - b) / (2 * epsilon)
        for a, b in zip(plus, minus, strict=True)
    ]


def _unit(lookahead: Lookahead) -> float:
    """The rounding unit of the coarsest precision that we know of."""
    dtypes = [p.dtype for p in lookahead.params] + lookahead.evaluation.ranks.compute_dtypes()
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _shift(
    lookahead: Lookahead, updated: Sequence[Tensor | None], alignment: Alignment, epsilon: float
) -> list[bool]:
    """From θ′ to θ′ + εq, without a copy of q; which tensors have moved."""
    for g, param, new, old in zip(
        lookahead.layout.groups, lookahead.params, updated, lookahead.grads, strict=True
    ):
        if new is None:
            continue
        param.addcmul_(new, (epsilon * alignment.on_updated[g]).to(new))
        if old is not None:
            param.addcmul_(old, (epsilon * alignment.on_original[g]).to(new))
    return [new is not None for new in updated]


@torch.no_grad()
def _difference(lookahead: Lookahead, batch2: Any, *, central: bool) -> Term:
    r"""The product by differences.

    .. math:: H(\theta')q \approx (\nabla L(\theta' + \epsilon q) - \nabla L(\theta' - \epsilon q))
              / 2\epsilon

    or, one-sided, :math:`(\nabla L(\theta' + \epsilon q) - \nabla L(\theta')) / \epsilon`. Only the
    inner products that are needed of a gradient are kept.
    """
    evaluation, params = lookahead.evaluation, lookahead.params
    _, updated = evaluation.gradient("batch2", batch2)
    alignment, reals, q_square = _alignment(lookahead, updated)
    norm = q_square.sqrt().item()
    if norm == 0:
        return _term(lookahead, alignment, torch.zeros_like(lookahead.rates).expand(2, -1))
    # ‖εq‖ at the balance of truncation and rounding error: in float32 0.01, one-sided 0.0007.
    epsilon = 2 * _unit(lookahead) ** (1 / 3 if central else 1 / 2) / norm
    at_updated = None if central else lookahead.along(updated)
    shifted = _shift(lookahead, reals, alignment, epsilon)
    del updated, reals
    plus = lookahead.along(evaluation.gradient("batch2", batch2)[1])
    if at_updated is not None:
        return _term(lookahead, alignment, (plus - at_updated) / epsilon)
    for i, param in enumerate(params):  # θ′ + εq becomes θ′ − εq
        base = lookahead.updated(i) if shifted[i] else None
        if base is not None:
            param.neg_().add_(base, alpha=2)
        del base  # before the next pass
    minus = lookahead.along(evaluation.gradient("batch2", batch2)[1])
    return _term(lookahead, alignment, (plus - minus) / (2 * epsilon))
