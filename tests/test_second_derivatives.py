"""The product of Hessian and vector: which way is taken, and that dropout does not disturb it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.twin import Problem, assert_close, expected_movement

# Central differences with a step of 1e-5 in float64; the promise is 2e-3.
DIFFERENCES = 1e-6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.output = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        mixed, _ = self.attention(inputs, inputs, inputs, need_weights=False)
        return self.output(mixed.mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True, bidirectional=True)
        self.output = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.lstm(inputs)[0][:, -1])


class TanhOnce(torch.autograd.Function):
    """A tanh whose backward pass, like a hand-written kernel's, has no derivative."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = inputs.tanh()
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (outputs,) = ctx.saved_tensors
        return grad * (1 - outputs**2)


class Kernel(nn.Module):
    """A network on the kernel above; ``plain`` is the same function for autograd."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(3, 4), nn.Linear(4, 2)
        self.plain = plain

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(inputs)
        return self.output(hidden.tanh() if self.plain else TanhOnce.apply(hidden))


def sequences(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(5, 6, 4, dtype=dtype), torch.randn(5, 2, dtype=dtype)


@pytest.mark.parametrize(("model", "hvp"), [(Attention, "auto"), (Recurrent, "exact")])
def test_exact_where_there_is_a_second_derivative(model: type[nn.Module], hvp: str) -> None:
    case = Problem(
        meta={"hvp": hvp},
        model=lambda: model().double(),
        groups=nn.Module.named_parameters,
        batch=lambda: sequences(torch.float64),
    )
    with sdpa_kernel(SDPBackend.MATH):  # the twin differentiates twice as well
        expected = expected_movement(case.expected())
    update, movement = case.movement()
    assert update.hvp == "exact"
    assert_close(movement, expected, 1e-11)  # rounding, as in test_lookahead.py


@pytest.mark.parametrize(("model", "hvp"), [(Attention, "auto"), (Recurrent, "exact")])
def test_exact_in_single_precision(model: type[nn.Module], hvp: str) -> None:
    """Other kernels than in float64, fused ones where they exist."""
    case = Problem(
        meta={"hvp": hvp},
        model=model,
        groups=nn.Module.named_parameters,
        batch=lambda: sequences(torch.float32),
    )
    update = case.update()
    assert update.applied
    assert update.hvp == "exact"


def test_recurrent_networks_take_differences() -> None:
    """Their second derivative exists, but costs several times as much."""
    case = Problem(
        model=lambda: Recurrent().double(),
        groups=nn.Module.named_parameters,
        batch=lambda: sequences(torch.float64),
    )
    expected = expected_movement(case.expected())
    update, movement = case.movement()
    assert update.hvp == "finite_difference"
    for name, tensor in expected.items():
        assert (movement[name] - tensor).norm() <= DIFFERENCES * tensor.norm() + 1e-12, name


def kernel(hvp: str) -> Problem:
    return Problem(
        meta={"hvp": hvp}, model=lambda: Kernel().double(), groups=nn.Module.named_parameters
    )


def test_falls_back_where_there_is_none() -> None:
    case = kernel("auto")
    plain = Kernel(plain=True).double()
    plain.load_state_dict(case.model.state_dict())
    own, case.model.plain = case.model, True  # type: ignore[assignment]
    expected = expected_movement(case.expected())
    own.plain = False  # type: ignore[assignment]
    update, movement = case.movement()
    assert update.hvp == "finite_difference"
    for name, tensor in expected.items():
        assert (movement[name] - tensor).norm() <= DIFFERENCES * tensor.norm(), name
    assert case.update().hvp == "finite_difference"  # and stays there


def test_falls_back_later_as_well() -> None:
    """A model that loses its second derivative while it trains: compiled now, or checkpointed."""
    case = kernel("auto")
    case.model.plain = True  # type: ignore[assignment]
    assert case.update().hvp == "exact"
    case.model.plain = False  # type: ignore[assignment]
    assert case.update().hvp == "finite_difference"


def test_exact_on_request_raises_and_changes_nothing() -> None:
    case = kernel("exact")
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    grads = {
        n: (p.grad, p.grad.clone()) for n, p in case.model.named_parameters() if p.grad is not None
    }
    assert grads
    weights, stream = case.weights(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"hvp='exact'.*finite_difference"):
        case.update()
    for name, param in case.model.named_parameters():
        assert torch.equal(param, before[name])
        assert param.grad is grads[name][0]
        assert torch.equal(param.grad, grads[name][1])
    assert all(torch.equal(weight, weights[n]) for n, weight in case.weights().items())
    assert torch.equal(torch.get_rng_state(), stream)


class Dropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))


@pytest.mark.parametrize("objective", ["combined", "gradient_alignment"])
def test_dropout_is_the_same_in_each_evaluation_of_a_batch(objective: str) -> None:
    """Central differences would be noise of size 1 / step otherwise."""
    movements = []
    for hvp in ("exact", "finite_difference"):
        case = Problem(
            meta={"hvp": hvp, "objective": objective, "gap_at": "theta_prime"},
            model=lambda: Dropout().double(),
            groups=nn.Module.named_parameters,
        )
        torch.manual_seed(7)
        movements.append(case.movement()[1])
    for name, exact in movements[0].items():
        assert (movements[1][name] - exact).norm() <= DIFFERENCES * exact.norm(), name
    assert movements[0]["output_bias"][:2].all()


def test_dropout_of_different_batches() -> None:
    """No step (lr = 0), one batch under three names: no decrease, but a gap between two masks."""
    case = Problem(model=lambda: Dropout().double(), groups=nn.Module.parameters, lr=0.0, steps=0)
    case.batches = dict.fromkeys(case.batches, case.batches["batch1"])
    update = case.update()
    assert update.loss_decrease == 0.0
    assert update.generalization_gap is not None
    assert update.generalization_gap > 0.0


@pytest.mark.parametrize("hvp", ["exact", "finite_difference"])
@pytest.mark.parametrize("gap_at", ["theta", "theta_prime"])
def test_each_batch_has_a_random_stream_of_its_own(gap_at: str, hvp: str) -> None:
    """One stream for all evaluations of a batch, and never that of another batch."""
    drawn: dict[int, set[float]] = {}

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        drawn.setdefault(id(batch), set()).add(torch.rand(()).item())
        return (model(batch[0]) - batch[1]).square().mean()

    case = Problem(meta={"hvp": hvp, "gap_at": gap_at}, loss_fn=loss_fn, steps=0)
    assert case.update().applied
    assert [len(drawn[id(batch)]) for batch in case.batches.values()] == [1, 1, 1]
    assert len(set.union(*drawn.values())) == 3
