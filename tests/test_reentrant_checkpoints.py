"""Activation checkpoints with ``use_reentrant=True``, which hide parameters from the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.twin import Problem, mean_squared_error

# Central differences with a step of 1e-5 in float64; the promise is 2e-3.
DIFFERENCES = 1e-6


class Checkpointed(nn.Module):
    """Three layers, the second one checkpointed; the first may be frozen as under adapters."""

    def __init__(self, reentrant: bool, frozen: bool) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.first.requires_grad_(not frozen)
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.first(inputs).tanh()
        if not first.requires_grad:
            first.requires_grad_()  # as transformers' enable_input_require_grads
        hidden = checkpoint(self._hidden, first, use_reentrant=self.reentrant)
        return self.last(hidden)

    def _hidden(self, inputs: Tensor) -> Tensor:
        return torch.dropout(self.hidden(inputs).tanh(), 0.3, self.training)


def problem(
    reentrant: bool = True, frozen: bool = False, loss_fn: Any = None, **meta: Any
) -> Problem:
    return Problem(
        meta=meta,
        model=lambda: Checkpointed(reentrant, frozen).double(),
        groups=lambda model: [{"params": [p]} for p in model.parameters() if p.requires_grad],
        loss_fn=loss_fn or mean_squared_error,
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("objective", ["combined", "loss_decrease", "gradient_alignment"])
def test_the_same_as_without_reentering(frozen, objective):
    """A frozen first layer leaves no path to the checkpoint: its parameters were passed over."""
    movements = []
    for reentrant in (False, True):
        case = problem(reentrant, frozen, objective=objective)
        update, movement = case.movement()
        movements.append(movement)
        assert update.applied
        if objective != "loss_decrease":
            assert update.hvp == ("finite_difference" if reentrant else "exact")
    for name, exact in movements[0].items():
        difference = (movements[1][name] - exact).norm()
        assert difference <= DIFFERENCES * exact.norm() + 1e-12, name


@pytest.mark.parametrize("frozen", [False, True])
def test_exact_on_request_says_what_to_do(frozen):
    case = problem(frozen=frozen, hvp="exact")
    with pytest.raises(RuntimeError, match=r"hvp='exact' needs .* with use_reentrant=False"):
        case.update()


def test_no_gradient_is_left_behind():
    """Neither in the model, nor in a batch that requires gradients, nor in a weight of the loss."""
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return weight * mean_squared_error(model, batch)

    case = problem(loss_fn=loss_fn)
    inputs = case.batches["val_batch"][0].requires_grad_()
    inputs.grad = torch.ones_like(inputs)
    leaves = [inputs, weight, *case.model.parameters()]
    before = [(leaf.grad, leaf.grad.clone()) for leaf in leaves]
    assert case.update().applied
    for leaf, (grad, value) in zip(leaves, before, strict=True):
        assert leaf.grad is grad
        assert torch.equal(grad, value)


def test_errors_of_the_loss_come_through():
    case = problem()

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        raise RuntimeError("use_reentrant=True is incompatible with .grad()")

    case.loss_fn = loss_fn
    with pytest.raises(RuntimeError, match=r"^use_reentrant=True is incompatible"):
        case.update()
