"""What a meta-update evaluates and keeps: passes over the batches, the training gradient as B1."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaadamw import LookAhead, MetaAdamW
from metaadamw.learning.lookahead.evaluation import Evaluation
from tests.training import Net, assert_same, batch, full_snapshot, loss_fn, make, meta_update
from tests.twin import Problem, assert_close, expected_movement

# A one-sided difference with ‖εq‖ = 3e-8 in float64 has an error of that order.
ONE_SIDED = 1e-5


@pytest.mark.parametrize("objective", ["combined", "gradient_alignment"])
def test_forward_difference_moves_as_the_twin(objective: str) -> None:
    problem = Problem(meta={"hvp": "forward_difference", "objective": objective})
    expected = expected_movement(problem.expected())
    update, movement = problem.movement()
    assert update.hvp == "forward_difference"
    for name, tensor in expected.items():
        assert (movement[name] - tensor).norm() <= ONE_SIDED * tensor.norm() + 1e-12, name


def counted(monkeypatch: pytest.MonkeyPatch, update: Any) -> list[tuple[str, bool]]:
    """The batches that a meta-update evaluates, and whether it takes the gradient."""
    calls: list[tuple[str, bool]] = []
    differentiate = Evaluation._differentiate

    def loss(model: nn.Module, data: tuple[str, Any]) -> Tensor:
        calls.append((data[0], False))
        return loss_fn(model, data[1])

    def differentiated(*arguments: Any, **options: Any) -> Any:
        calls.append((calls.pop()[0], True))
        return differentiate(*arguments, **options)

    monkeypatch.setattr(Evaluation, "_differentiate", differentiated)
    update(loss)
    return calls


@pytest.mark.parametrize(
    ("hvp", "gradients_on_batch2"),
    [("exact", 1), ("finite_difference", 3), ("forward_difference", 2)],
)
def test_every_gradient_serves_all_terms_that_need_it(
    hvp: str, gradients_on_batch2: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = make(learning=LookAhead(hvp=hvp))  # type: ignore[arg-type]
    data = [(name, batch(i)) for i, name in enumerate(("batch1", "batch2", "val_batch"))]
    meta_update(model, optimizer)  # the first one compares an exact product with differences
    calls = counted(monkeypatch, lambda loss: optimizer.update_attention(model, loss, *data))
    assert sorted(calls) == sorted(
        [("batch1", True), ("val_batch", False), ("val_batch", True)]
        + [("batch2", True)] * gradients_on_batch2
    )


def test_an_exact_product_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product for the comparison, and the gradients at two points: one central difference."""
    model, optimizer = make(torch.float64, learning=LookAhead(hvp="auto"))
    data = [(name, batch(i)) for i, name in enumerate(("batch1", "batch2", "val_batch"))]
    counts = []
    for _ in range(3):
        calls = counted(monkeypatch, lambda loss: optimizer.update_attention(model, loss, *data))
        counts.append(calls.count(("batch2", True)))
        monkeypatch.undo()
    assert counts == [5, 1, 1]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("hvp", ["exact", "finite_difference", "forward_difference"])
def test_the_training_gradient_serves_as_batch1(hvp: str, maximize: bool) -> None:
    """With the gradients of B1 in .grad nothing is evaluated on B1, and all else is the same."""
    reports, weights = [], []
    for known in (False, True):
        problem = Problem(meta={"hvp": hvp}, maximize=maximize)
        problem.optimizer.zero_grad()
        training_loss = problem.loss_fn(problem.model, problem.batches["batch1"])
        training_loss.backward()
        batches = dict(problem.batches)
        if known:
            batches["batch1"] = None
        reports.append(
            problem.optimizer.update_attention(
                problem.model,
                problem.loss_fn,
                **batches,
                training_loss=training_loss if known else None,
            )
        )
        weights.append(problem.weights())
    assert_close(weights[0], weights[1], 0.0)
    assert reports[0].total == reports[1].total


def test_the_training_gradient_is_left_as_it_was() -> None:
    model, optimizer = make()
    loss = loss_fn(model, batch(0))
    loss.backward()
    before = full_snapshot(model, optimizer)["params"]
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    update = optimizer.update_attention(
        model, loss_fn, None, batch(1), batch(2), training_loss=loss.item()
    )
    assert update.applied
    assert_same(full_snapshot(model, optimizer)["params"], before)
    for name, param in model.named_parameters():
        assert torch.equal(param.grad, grads[name])


def test_a_training_loss_without_gradients_is_refused() -> None:
    model, optimizer = make()
    with pytest.raises(ValueError, match=r"training_loss needs the gradients .* in \.grad"):
        optimizer.update_attention(model, loss_fn, None, batch(1), batch(2), training_loss=0.5)


def test_the_gap_at_theta_prime_needs_batch1_all_the_same() -> None:
    model, optimizer = make(learning=LookAhead(gap_at="theta_prime"))
    loss_fn(model, batch(0)).backward()
    with pytest.raises(ValueError, match="missing: batch1"):
        optimizer.update_attention(model, loss_fn, None, batch(1), batch(2), training_loss=0.5)


class Adapter(nn.Module):
    """A large frozen base that may drift in ``forward``, and a small trained head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(4, width), nn.Linear(width, 1)
        self.base.requires_grad_(False)
        self.drift = False

    def forward(self, inputs: Tensor) -> Tensor:
        if self.drift:
            with torch.no_grad():
                self.base.weight.mul_(0.9)
        return self.head(torch.tanh(self.base(inputs)))


def adapter_loss(model: nn.Module, data: Tensor) -> Tensor:
    return model(data).square().mean()


def test_a_large_frozen_base_is_watched_not_copied() -> None:
    torch.manual_seed(0)
    model = Adapter(64)
    optimizer = MetaAdamW(model.head.parameters(), learning="lookahead")
    data = [torch.randn(8, 4) for _ in range(3)]
    assert optimizer.update_attention(model, adapter_loss, *data).applied
    model.drift = True
    with pytest.raises(RuntimeError, match="moved a parameter that the optimizer does not train"):
        optimizer.update_attention(model, adapter_loss, *data)


def test_a_light_frozen_part_is_put_back() -> None:
    torch.manual_seed(0)
    model = Adapter(1)
    model.head = nn.Linear(1, 32)
    model.drift = True
    optimizer = MetaAdamW(model.head.parameters(), learning="lookahead")
    before = model.base.weight.clone()
    data = [torch.randn(8, 4) for _ in range(3)]
    assert optimizer.update_attention(model, adapter_loss, *data).applied
    assert torch.equal(model.base.weight, before)


SIZE = 200_000


def kept() -> int:
    """Storages of the size of the parameter, and not of an activation, that Python holds."""
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    return len({t.untyped_storage().data_ptr() for t in tensors if t.shape == (SIZE, 1)})


def large_model(hvp: str) -> tuple[nn.Module, MetaAdamW, list[Tensor]]:
    model = nn.Sequential(nn.Linear(1, SIZE, bias=False)).double()
    optimizer = MetaAdamW(model.parameters(), learning=LookAhead(hvp=hvp))  # type: ignore[arg-type]
    return model, optimizer, [torch.ones(1, 1, dtype=torch.float64)] * 3


def fourth_power(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().square().mean()


@pytest.mark.parametrize("hvp", ["exact", "finite_difference", "forward_difference"])
def test_gradients_are_not_kept_beyond_their_inner_products(hvp: str) -> None:
    """Whenever the loss is evaluated, at most θ, the gradient on B1 and one more are kept."""
    model, optimizer, data = large_model(hvp)
    # The first one compares an exact product with differences.
    assert optimizer.update_attention(model, fourth_power, *data).applied
    alive: list[int] = []

    def loss(model: nn.Module, inputs: Tensor) -> Tensor:
        alive.append(kept())
        return fourth_power(model, inputs)

    assert optimizer.update_attention(model, loss, *data).applied
    # The parameter itself, its copy at θ, the gradient on B1, and at most one gradient more;
    # in the end not even that.
    assert max(alive) <= 4
    assert alive[-1] == 3


def test_an_exact_product_keeps_the_graph_of_the_gradient_only(monkeypatch) -> None:
    """Beside the parameter, θ and the gradient on B1: q, and not the gradient it is made of."""
    model, optimizer, data = large_model("exact")
    assert optimizer.update_attention(model, fourth_power, *data).applied  # compares
    alive: list[int] = []
    product = Evaluation.product

    def watched(self: Evaluation, *arguments: Any) -> Any:
        alive.append(kept())
        return product(self, *arguments)

    monkeypatch.setattr(Evaluation, "product", watched)
    assert optimizer.update_attention(model, fourth_power, *data).applied
    assert alive == [4]


def test_meta_updates_are_repeatable() -> None:
    """The same state and batches give the same bits, whatever ran before."""
    states = []
    for _ in range(2):
        model, optimizer = make(learning=LookAhead(hvp="finite_difference"))
        assert isinstance(model, Net)
        meta_update(model, optimizer, 3)
        states.append(optimizer.meta_state_dict())
    assert_same(states[0], states[1])
