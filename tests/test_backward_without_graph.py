"""Backward passes that are no graph: nothing raises, or anything, and the slopes are right."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tests.training import assert_same
from tests.twin import Problem

# Central differences with a step of 1e-5 in float64; the promise is 2e-3.
DIFFERENCES = 1e-6


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s + x * s * (1 - s)


class Graph(torch.autograd.Function):
    """As it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * slope(x)


class Saved(Graph):
    """The derivative is computed in ``forward``, as fused losses do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(slope(x))
        return silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return grad * derivative


class NumPy(Graph):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad.detach().numpy() * slope(x.detach()).numpy())


class Out(Graph):
    """A kernel that writes to where it is told."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.mul(grad, slope(x), out=torch.empty_like(x))


class Once(Graph):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * slope(x)


class Picky(Graph):
    """Says in its own words that it is to be differentiated once."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise LookupError("no kernel for gradients that require gradients")
        return grad * slope(x)


class Forgetful(Graph):
    """Right, but for the slope of the slope."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * slope(x.detach())


@torch.library.custom_op("metaadamw_tests::silu", mutates_args=())
def operator(x: Tensor) -> Tensor:
    return silu(x)


def _setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


operator.register_autograd(
    lambda ctx, grad: grad * slope(ctx.saved_tensors[0].detach()), setup_context=_setup
)


def hooked(x: Tensor) -> Tensor:
    """An equilibrium that is differentiated by a hook."""
    y = x + (silu(x) - x).detach()
    y.register_hook(lambda grad: grad.detach() * slope(x.detach()))
    return y


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    kind.__name__: kind.apply for kind in (Saved, NumPy, Out, Once, Picky, Forgetful)
} | {"custom op": operator, "hook": hooked}
SILENT = ("Saved", "NumPy", "Forgetful", "custom op", "hook")
wrong = pytest.mark.parametrize("name", WRONG)


class Branches(nn.Module):
    """Two branches, one of which may go through ``kernel``."""

    def __init__(self, kernel: Callable[[Tensor], Tensor], where: str, other: type[nn.Module]):
        super().__init__()
        self.left, self.right = nn.Linear(3, 6), nn.Linear(3, 6)
        self.other, self.output = other(), nn.Linear(6, 2)
        self.kernel, self.where = kernel, where

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.other(self.left(x)), silu(self.right(x))
        if self.where == "a branch":
            right = self.kernel(self.right(x))
        output = self.output(left + right)
        return self.kernel(output) if self.where == "the end" else output


def problem(
    kernel: Callable[[Tensor], Tensor],
    hvp: str = "auto",
    where: str = "a branch",
    other: type[nn.Module] = nn.Tanh,
    dtype: torch.dtype = torch.float64,
    **meta: Any,
) -> Problem:
    return Problem(
        meta={"hvp": hvp, **meta},
        model=lambda: Branches(kernel, where, other).to(dtype),
        groups=nn.Module.named_parameters,
        batch=lambda: (torch.randn(16, 3, dtype=dtype), torch.randn(16, 2, dtype=dtype)),
    )


@wrong
@pytest.mark.parametrize("other", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("where", ["a branch", "the end"])
@pytest.mark.parametrize("objective", ["combined", "gradient_alignment"])
def test_the_slopes_are_those_of_the_plain_network(name, other, where, objective):
    expected = problem(silu, "exact", where, other, objective=objective).movement()[1]
    case = problem(WRONG[name], "auto", where, other, objective=objective)
    update, movement = case.movement()
    assert update.hvp == "finite_difference"
    assert update.hvp_reason
    for key, tensor in expected.items():
        assert (movement[key] - tensor).norm() <= DIFFERENCES * tensor.norm() + 1e-12, key
    again = case.update()
    assert (again.hvp, again.hvp_reason) == (update.hvp, update.hvp_reason)


@wrong
@pytest.mark.parametrize("where", ["a branch", "the end"])
def test_in_single_precision(name, where):
    expected = problem(silu, "exact", where, dtype=torch.float32).movement()[1]
    update, movement = problem(WRONG[name], "auto", where, dtype=torch.float32).movement()
    assert update.hvp == "finite_difference"
    for key, tensor in expected.items():
        assert (movement[key] - tensor).norm() <= 2e-2 * tensor.norm() + 1e-6, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SILENT)
def test_exact_on_request_raises_where_nothing_else_would(name, dtype):
    case = problem(WRONG[name], "exact", dtype=dtype)
    before = case.weights()
    with pytest.raises(RuntimeError, match=r"hvp='exact' .* differs from a difference"):
        case.update()
    assert_same(case.weights(), before)


def test_exact_on_request_lets_exceptions_through():
    with pytest.raises(LookupError, match="no kernel for gradients"):
        problem(Picky.apply, "exact").update()
    with pytest.raises(RuntimeError, match=r"hvp='exact'.*out=.*finite_difference"):
        problem(Out.apply, "exact").update()


@pytest.mark.parametrize("where", ["a branch", "the end"])
@pytest.mark.parametrize("hvp", ["auto", "exact"])
def test_a_backward_that_is_a_graph_is_believed(hvp, where):
    for dtype in (torch.float32, torch.float64):
        expected = problem(silu, "exact", where, dtype=dtype).movement()[1]
        update, movement = problem(Graph.apply, hvp, where, dtype=dtype).movement()
        assert (update.hvp, update.hvp_reason) == ("exact", None)
        for key, tensor in expected.items():
            torch.testing.assert_close(movement[key], tensor)


OF_TORCH = {
    "relu": lambda w: nn.ReLU(),
    "leaky relu": lambda w: nn.LeakyReLU(),
    "hardtanh": lambda w: nn.Hardtanh(),
    "gelu": lambda w: nn.GELU(),
    "batch norm": nn.BatchNorm1d,
    "layer norm": nn.LayerNorm,
    "dropout": lambda w: nn.Dropout(0.3),
    "softplus": lambda w: nn.Softplus(beta=20.0),
}


@pytest.mark.parametrize("hvp", ["auto", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [4, 300])
@pytest.mark.parametrize("layer", OF_TORCH)
def test_networks_of_torch_are_not_misjudged(layer, size, dtype, hvp):
    """Kinks that a step crosses, and biases before a normalisation, whose gradient is rounding."""

    def model() -> nn.Module:
        first = nn.Sequential(nn.Linear(3, 32), OF_TORCH[layer](32), nn.Tanh())
        return nn.Sequential(first, nn.Linear(32, 32), OF_TORCH[layer](32), nn.Linear(32, 2))

    case = Problem(
        meta={"hvp": hvp},
        model=lambda: model().to(dtype),
        groups=nn.Module.named_parameters,
        batch=lambda: (torch.randn(size, 3).to(dtype), torch.randn(size, 2).to(dtype)),
    )
    assert case.update().hvp == "exact"


def test_compared_again_when_the_functions_change():
    """Also when the new one has the name of the old one."""
    Impostor = type("Graph", (Forgetful,), {"__qualname__": "Graph", "__module__": __name__})
    for first, second in ((silu, Saved.apply), (Graph.apply, Impostor.apply)):
        case = problem(first)
        assert case.update().hvp == "exact"
        case.model.kernel = second  # type: ignore[assignment]
        assert case.update().hvp == "finite_difference"


@pytest.mark.parametrize("kernel", [silu, Graph.apply, Saved.apply, Out.apply])
def test_what_was_found_is_saved(kernel):
    """A resumed run neither compares again nor forgets, even where a comparison would differ."""
    case = problem(kernel)
    first = case.update()
    saved = copy.deepcopy(case.optimizer.state_dict())
    resumed = problem(kernel)
    resumed.model.load_state_dict(case.model.state_dict())
    resumed.optimizer.load_state_dict(saved)
    calls: list[int] = []
    loss_fn = resumed.loss_fn

    def counting(model: nn.Module, batch: Any) -> Tensor:
        calls[-1] += 1
        return loss_fn(model, batch)

    updates = []
    for each in (case, resumed):
        calls.append(0)
        each.loss_fn = counting
        updates.append(each.update())
    assert calls[0] == calls[1]
    assert updates[0].hvp == updates[1].hvp == first.hvp
    assert updates[0].hvp_reason == updates[1].hvp_reason == first.hvp_reason
    assert_same(case.optimizer.state_dict(), resumed.optimizer.state_dict())
    for twin in (copy.deepcopy(case.optimizer), pickle.loads(pickle.dumps(case.optimizer))):
        assert_same(twin.state_dict(), case.optimizer.state_dict())


def test_a_comparison_changes_no_result():
    """Neither by dropout, nor by buffers that each forward pass moves (spectral norm)."""

    def model() -> nn.Module:
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 8))
        return nn.Sequential(layer, nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2)).double()

    def case() -> Problem:
        return Problem(model=model, groups=nn.Module.named_parameters)

    compared, known = case(), case()
    checked = case()
    checked.update()
    known.optimizer._controller.learning.second.load_state_dict(
        checked.optimizer._controller.learning.second.state_dict()
    )
    movements = []
    for each in (compared, known):
        torch.manual_seed(3)
        movements.append(each.movement()[1])
    assert_same(movements[0], movements[1])


@pytest.mark.parametrize(
    "damage", [None, 3, {}, {"method": "auto"}, {"method": 1, "reason": "", "checked": ""}]
)
def test_a_damaged_finding_is_refused(damage):
    case = problem(silu)
    case.update()
    saved = copy.deepcopy(case.optimizer.meta_state_dict())
    saved["learning"]["second_derivative"] = damage
    with pytest.raises(ValueError, match="second_derivative"):
        case.optimizer.load_meta_state_dict(saved)


def test_what_was_not_found_is_not_remembered():
    """A checkpoint of a run that had not looked yet begins to look again."""
    case = problem(Saved.apply)
    start = case.optimizer.meta_state_dict()
    assert case.update().hvp == "finite_difference"
    case.optimizer.load_meta_state_dict(start)
    case.model.kernel = silu  # type: ignore[assignment]
    assert case.update().hvp == "exact"
