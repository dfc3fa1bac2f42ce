"""Eq. 13: value and gradient by hand, the bound, and use in a model of one's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from metaadamw import PriorityUncertaintyWeighting
from tests.reference.meta import log_variances, uncertainty_weighted

TERMS = [2.0, -1.0, 0.5]
PRIORITIES = [1.0, 5.0, 2.0]
RAW = [0.3, -0.4, 0.0]
KINDS = {"regression": 0.5, "classification": 1.0}

kinds = pytest.mark.parametrize("kind", KINDS)


def weighting(raw: list[float] = RAW, **options: Any) -> PriorityUncertaintyWeighting:
    module = PriorityUncertaintyWeighting(PRIORITIES, dtype=torch.float64, **options)
    with torch.no_grad():
        module.raw_log_variances.copy_(torch.tensor(raw))
    return module


@kinds
def test_published_form_by_hand(kind: Any) -> None:
    module = weighting(kind=kind, bound=None)
    terms = torch.tensor(TERMS, dtype=torch.float64, requires_grad=True)
    total = module(terms)
    total.backward()
    expected = sum(
        KINDS[kind] * (math.exp(-s) * term + p * s)
        for term, p, s in zip(TERMS, PRIORITIES, module.raw_log_variances.tolist(), strict=True)
    )
    assert total.item() == pytest.approx(expected, rel=1e-14)
    assert terms.grad is not None
    assert module.raw_log_variances.grad is not None
    for i, (term, p, s) in enumerate(
        zip(TERMS, PRIORITIES, module.raw_log_variances.tolist(), strict=True)
    ):
        assert terms.grad[i].item() == pytest.approx(KINDS[kind] * math.exp(-s), rel=1e-14)
        slope = KINDS[kind] * (p - math.exp(-s) * term)
        assert module.raw_log_variances.grad[i].item() == pytest.approx(slope, rel=1e-14)


@kinds
@pytest.mark.parametrize("bound", [None, 0.5, 3.0])
def test_value_and_gradient_equal_the_twin(kind: Any, bound: float | None) -> None:
    module = weighting(kind=kind, bound=bound)
    raw = module.raw_log_variances.detach().clone().requires_grad_()
    s = log_variances(raw, bound)
    terms = torch.tensor(TERMS, dtype=torch.float64)
    expected = uncertainty_weighted(terms, s, PRIORITIES, kind=kind)
    total = module(list(terms))  # a sequence of scalars does as well
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(module.log_variances, s, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(v, r)
            for v, r in ((total, module.raw_log_variances), (expected, raw))
        ),
        rtol=1e-13,
        atol=0.0,
    )


@kinds
def test_bounded_form_starts_as_the_published_one(kind: Any) -> None:
    """At 0, where training starts, value and gradient agree to the last bit."""
    results = []
    for bound in (None, 3.0):
        module = weighting([0.0] * 3, kind=kind, bound=bound)
        assert not PriorityUncertaintyWeighting(PRIORITIES, bound=bound).raw_log_variances.any()
        total = module(torch.tensor(TERMS, dtype=torch.float64))
        results.append((total, *torch.autograd.grad(total, list(module.parameters()))))
    for published, bounded in zip(*results, strict=True):
        assert torch.equal(published, bounded)
    assert results[0][0].item() == pytest.approx(KINDS[kind] * sum(TERMS), rel=1e-15)


def minimise(
    module: PriorityUncertaintyWeighting, optimizer: torch.optim.Optimizer, updates: int
) -> list[float]:
    terms = torch.tensor([-1.0, -0.1, 2.0], dtype=torch.float64)
    totals = []
    for _ in range(updates):
        optimizer.zero_grad()
        total = module(terms)
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.1), "adam": (torch.optim.Adam, 0.05)}


@kinds
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bounded_form_stays_bounded_with_negative_terms(kind: Any, optimizer: str) -> None:
    """10,000 updates: |s| < c, weights within exp(+-c), total above that of its floors."""
    torch_optimizer, lr = OPTIMIZERS[optimizer]
    module = weighting(kind=kind, bound=3.0)
    totals = minimise(module, torch_optimizer(module.parameters(), lr=lr), 10_000)
    assert torch.isfinite(module.raw_log_variances).all()
    assert module.log_variances.abs().max() <= 3.0
    floor = KINDS[kind] * sum(
        math.exp(3.0) * min(term, 0.0) - 3.0 * p
        for term, p in zip((-1.0, -0.1, 2.0), PRIORITIES, strict=True)
    )
    assert min(totals) >= floor
    assert totals[-1] < totals[0]  # it does minimise
    # A positive term has its minimum at s = log(L / p) as published: 0 for L = p = 2.
    assert module.log_variances[2].item() == pytest.approx(0.0, abs=1e-6)


@kinds
def test_published_form_runs_away_with_negative_terms(kind: Any) -> None:
    """Far fewer updates already; this is why there is a bound."""
    module = weighting(kind=kind, bound=None)
    totals = minimise(module, torch.optim.Adam(module.parameters(), lr=0.05), 2_000)
    assert module.log_variances[0] < -50
    assert totals[-1] < -1e20
    module = weighting(kind=kind, bound=None)
    minimise(module, torch.optim.SGD(module.parameters(), lr=0.1), 100)
    assert not torch.isfinite(module.log_variances).all()


def test_a_priority_moves_the_balance() -> None:
    """At the minimum a published weight is exp(-s) = p / L: a higher priority, a higher weight."""
    module = PriorityUncertaintyWeighting([1.0, 4.0], bound=None, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2_000):
        optimizer.zero_grad()
        module(torch.tensor([2.0, 2.0], dtype=torch.float64)).backward()
        optimizer.step()
    weights = torch.exp(-module.log_variances)
    assert weights.tolist() == pytest.approx([0.5, 2.0], rel=1e-6)


@kinds
def test_in_a_model_of_two_tasks(kind: Any) -> None:
    """Stand-alone: both tasks get better, the noisy one is weighted down."""
    model = nn.Linear(4, 2)
    module = PriorityUncertaintyWeighting([1.0, 1.0], kind=kind)
    optimizer = torch.optim.Adam([*model.parameters(), *module.parameters()], lr=0.02)
    inputs, truth = torch.randn(256, 4), torch.randn(4, 2)
    targets = inputs @ truth + torch.tensor([0.1, 1.0]) * torch.randn(256, 2)
    history = []
    for _ in range(300):
        optimizer.zero_grad()
        losses = (model(inputs) - targets).square().mean(0)
        module(losses.unbind()).backward()
        optimizer.step()
        history.append(losses.detach())
    assert (history[-1] < history[0]).all()
    assert history[-1].tolist() == pytest.approx([0.01, 1.0], rel=0.5)  # the noise is left
    quiet, noisy = module.log_variances.tolist()
    assert quiet < noisy
    assert set(dict(module.named_parameters())) == {"raw_log_variances"}


def test_state_dict_and_dtype() -> None:
    module = weighting()
    other = PriorityUncertaintyWeighting([1.0, 1.0, 1.0], dtype=torch.float64)
    other.load_state_dict(module.state_dict())
    terms = torch.tensor(TERMS, dtype=torch.float64)
    assert torch.equal(module(terms), other(terms))
    assert module.float()(terms.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"priorities": []}, ValueError, "priorities must have at least 1 entries, got 0"),
        ({"priorities": [1.0, 0.0]}, ValueError, r"priorities\[1\].*got 0.0"),
        ({"priorities": [-1.0]}, ValueError, r"priorities\[0\].*got -1.0"),
        ({"priorities": [float("nan")]}, ValueError, r"priorities\[0\].*got nan"),
        ({"priorities": "111"}, TypeError, "priorities must be a sequence"),
        ({"priorities": 1.0}, TypeError, "priorities must be a sequence"),
        ({"priorities": [1.0], "kind": "ranking"}, ValueError, "kind must be one of"),
        ({"priorities": [1.0], "bound": 0.0}, ValueError, "bound must be in"),
        ({"priorities": [1.0], "bound": "3"}, TypeError, "bound must be a number"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        PriorityUncertaintyWeighting(**arguments)


@pytest.mark.parametrize("losses", [torch.ones(2), torch.ones(1, 3), [torch.ones(())] * 4], ids=str)
def test_one_loss_for_each_priority(losses: Any) -> None:
    with pytest.raises(ValueError, match=r"losses must have shape \(3,\)"):
        PriorityUncertaintyWeighting(PRIORITIES)(losses)
