"""Sec. 3.5: the three terms, and Eq. 10's derivatives in closed form against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metaadamw.learning.lookahead.objectives import (
    generalization_gap,
    gradient_alignment,
    loss_decrease,
)
from tests.reference.meta import gradient_alignment as reference_alignment
from tests.reference.modulator import ReferenceModulation

SIZES = [3, 1, 12, 5]


def vectors(*zero: int) -> list[Tensor]:
    return [
        torch.zeros(n, dtype=torch.float64) if i in zero else torch.randn(n, dtype=torch.float64)
        for i, n in enumerate(SIZES)
    ]


@pytest.mark.parametrize(
    ("g", "g_prime"),
    [((), ()), ((1,), ()), ((), (2,)), ((0, 3), (0, 1)), ((0, 1, 2, 3), (0, 1, 2, 3))],
    ids=["usual", "zero-g", "zero-g'", "both", "all"],
)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_alignment_and_its_derivatives(
    g: tuple[int, ...], g_prime: tuple[int, ...], scale: float
) -> None:
    """The vector q and the slopes in lambda are those of autograd, to rounding of dot products."""
    before, after = vectors(*g), [scale * v for v in vectors(*g_prime)]
    for vector in after:
        vector.requires_grad_()
    lambda1, lambda2 = (torch.rand(4, dtype=torch.float64).requires_grad_() for _ in range(2))
    modulation = ReferenceModulation(lambda1, lambda1, lambda1, lambda2)
    expected = reference_alignment(modulation, before, after)
    *q, of_lambda1, of_lambda2 = torch.autograd.grad(
        expected, [*after, lambda1, lambda2], allow_unused=True, materialize_grads=True
    )

    with torch.no_grad():
        alignment = gradient_alignment(
            torch.stack([x @ y for x, y in zip(before, after, strict=True)]),
            torch.stack([x.norm() for x in before]),
            torch.stack([y.norm() for y in after]),
            lambda1,
            lambda2,
        )
        options = {"rtol": 1e-12, "atol": 1e-14 * max(scale, 1 / scale)}
        torch.testing.assert_close(alignment.value, expected.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(alignment.grad_lambda1, of_lambda1, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(alignment.grad_lambda2, of_lambda2, rtol=1e-12, atol=1e-14)
        for i, (x, y) in enumerate(zip(before, after, strict=True)):
            closed = alignment.on_updated[i] * y + alignment.on_original[i] * x
            torch.testing.assert_close(closed, q[i], **options)


def test_alignment_by_hand() -> None:
    """Two groups: parallel gradients, and orthogonal ones."""
    alignment = gradient_alignment(
        dot=torch.tensor([6.0, 0.0]),
        norm=torch.tensor([2.0, 1.0]),
        norm_updated=torch.tensor([3.0, 4.0]),
        lambda1=torch.tensor([0.5, 0.25]),
        lambda2=torch.tensor([0.75, 1.0]),
    )
    assert alignment.value.item() == (0.5 * 9 - 0.75 * 1 + 0.25 * 16 - 0) / 2
    assert alignment.grad_lambda1.tolist() == [4.5, 8.0]
    assert alignment.grad_lambda2.tolist() == [-0.5, 0.0]


def test_the_terms_that_are_losses() -> None:
    low, high = torch.tensor(1.0), torch.tensor(3.0)
    assert loss_decrease(low, high).item() == -2.0  # a step that helped
    assert loss_decrease(high, low).item() == 2.0
    assert generalization_gap(low, high).item() == 2.0
    assert generalization_gap(high, low).item() == 2.0
