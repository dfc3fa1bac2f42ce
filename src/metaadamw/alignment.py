r"""The alignment term, Eq. 10: one product of the Hessian at θ′ with q for all groups together.

.. math:: \frac{\partial\mathcal L_{grad}}{\partial\theta'} = H(\theta')\,q, \qquad
          q = \partial\mathcal L_{grad}/\partial g' = a_g g'_g + b_g g_g \text{ in group } g

"exact" takes it by double backward. Differences of gradients at :math:`\theta' \pm \epsilon q` need
no second derivative and keep one gradient at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from metaadamw.evaluation import NoSecondDerivative, twice_differentiable
from metaadamw.graphs import once_differentiable
from metaadamw.lookahead import Lookahead, Term
from metaadamw.objectives import Alignment, gradient_alignment
from metaadamw.tokens import real_view

__all__ = ["HessianProduct", "alignment_term"]

HessianProduct = Literal["exact", "finite_difference", "forward_difference"]

_NO_SECOND_DERIVATIVE = (
    "is not implemented",
    "double backward",
    "differentiate twice",
    "donated buffers",  # of torch.compile, whose backward pass may run only once
)


def alignment_term(
    lookahead: Lookahead, batch2: Any, hvp: Literal["auto"] | HessianProduct
) -> tuple[Term, HessianProduct]:
    """Eq. 10 on B2, and the method used; the parameters end up wherever that ended.

    Args:
        lookahead: the hypothetical step.
        batch2: B2.
        hvp: the method; "auto" is exact where it exists, else central differences. These also for
            recurrent networks, whose second derivative costs several times as much, and for sharded
            parameters, whose gradients come out of ``backward()``.

    Raises:
        NoSecondDerivative: "exact" does not exist for this model.
    """
    modules = lookahead.evaluation.model.modules()
    sharded = lookahead.evaluation.ranks.distributed
    if sharded and hvp == "exact":
        raise NoSecondDerivative("its parameters are sharded over processes")
    if hvp == "auto" and (
        sharded or any(isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in modules)
    ):
        hvp = "finite_difference"
    if hvp in ("auto", "exact"):
        try:
            return _exact(lookahead, batch2), "exact"
        except NoSecondDerivative:
            if hvp == "exact":
                raise
        hvp = "finite_difference"
    return _difference(lookahead, batch2, central=hvp == "finite_difference"), hvp  # type: ignore[return-value]


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


@contextmanager
def _no_second_derivative() -> Iterator[None]:
    """Recognise what torch says where there is no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if any(phrase in str(error) for phrase in _NO_SECOND_DERIVATIVE):
            raise NoSecondDerivative(error) from error
        raise


def _exact(lookahead: Lookahead, batch2: Any) -> Term:
    r"""The product :math:`H(\theta')q` by double backward."""
    evaluation, layout = lookahead.evaluation, lookahead.layout
    with twice_differentiable(), _no_second_derivative():
        _, updated = evaluation.gradient("batch2", batch2, create_graph=True)
        if once_differentiable(updated):
            raise NoSecondDerivative("a kernel is marked once_differentiable")
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
    dtypes = [p.dtype for p in params] + evaluation.ranks.compute_dtypes()
    unit = max(torch.finfo(dtype).eps for dtype in dtypes)
    epsilon = 2 * unit ** (1 / 3 if central else 1 / 2) / norm
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
