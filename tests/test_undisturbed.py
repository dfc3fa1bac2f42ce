"""A meta-update leaves no trace in training, whatever the loss does and whenever it fails."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from metaadamw import Attention, LookAhead, MetaAdamW, fine_grained_groups
from tests.training import (
    Net,
    assert_same,
    backward,
    batch,
    full_snapshot,
    loss_fn,
    make,
    meta_update,
    results,
    snapshot,
    train,
)

OBJECTIVES = {
    "combined": {},
    "combined, gap at theta prime": {"gap_at": "theta_prime"},
    "combined, fixed": {"weighting": "fixed"},
    "gradient_alignment": {"objective": "gradient_alignment"},
    "loss_decrease": {"objective": "loss_decrease"},
    "generalization_gap": {"objective": "generalization_gap", "gap_at": "theta_prime"},
}
PRODUCTS = ("exact", "finite_difference", "auto")
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
products = pytest.mark.parametrize("hvp", PRODUCTS)
LEARNS = {"modulator": Attention(init="xavier", layers=1)}


def prepared(**meta) -> tuple[Net, MetaAdamW]:
    """A run in the middle: moments, batch-norm statistics, some gradients present, one None."""
    model, optimizer = make(learning=LookAhead(every=1, lr=1e-2, **meta), **LEARNS)
    train(model, optimizer, range(3))
    backward(model, 3)
    model.head.bias.grad = None
    model.layers[1].eval()  # flags differ from module to module
    return model, optimizer


def noisy_loss(model: nn.Module, data) -> torch.Tensor:
    """A loss that draws from every random stream, as data augmentation does."""
    return loss_fn(model, data) * (1 + 0.1 * (random.random() + np.random.rand() + torch.rand(1)))


@products
@objectives
def test_nothing_but_the_modulator_changes(objective, hvp):
    model, optimizer = prepared(**objective, hvp=hvp)
    before, learned = snapshot(model, optimizer), optimizer.meta_state_dict()
    update = meta_update(model, optimizer, loss=noisy_loss)
    assert update.applied
    assert_same(snapshot(model, optimizer), before)
    after = optimizer.meta_state_dict()
    moved = [not torch.equal(after["modulator"][k], v) for k, v in learned["modulator"].items()]
    assert any(moved)


class Failure(Exception):
    pass


def failing_at(call: int, wrapped: Callable = noisy_loss) -> Callable:
    """``wrapped`` until call number ``call``, which evaluates the model and then raises."""
    count = itertools.count(1)

    def loss(model, data):
        value = wrapped(model, data)
        if next(count) == call:
            raise Failure
        return value

    return loss


@products
@objectives
def test_a_loss_that_raises_at_any_call_changes_nothing(objective, hvp):
    model, optimizer = prepared(**objective, hvp=hvp)
    before = full_snapshot(model, optimizer)
    for call in itertools.count(1):
        try:
            update = meta_update(model, optimizer, loss=failing_at(call))
        except Failure:
            assert_same(full_snapshot(model, optimizer), before)
        else:
            assert update.applied  # all calls were survived: the failures left nothing behind
            break
    calls = call - 1
    terms = objective.get("objective", "combined")
    assert calls >= {"gradient_alignment": 2, "loss_decrease": 3}.get(terms, 4)


NONSENSE = {
    "a number": (lambda loss: loss.item(), "scalar.*float"),
    "a vector": (lambda loss: loss.expand(2), r"scalar.*\(2,\)"),
    "an empty tensor": (lambda loss: loss.expand(0), r"scalar.*\(0,\)"),
    "a complex number": (lambda loss: loss.to(torch.complex64), "real"),
    "a tuple": (lambda loss: (loss,), "scalar.*tuple"),
    "detached": (lambda loss: loss.detach(), "graph"),
    "of other parameters": (lambda loss: nn.Parameter(torch.ones(())) * 2, "parameters"),
}


NONSENSE_AT = [
    pytest.param(call, *case, id=f"{name}, call {call}")
    for call, (name, case) in itertools.product((1, 2, 3, 4), NONSENSE.items())
    if not (call == 2 and case[1] in ("graph", "parameters"))  # L(θ; val) needs no graph
]


@pytest.mark.parametrize(("call", "spoil", "words"), NONSENSE_AT)
def test_nonsense_is_refused_and_changes_nothing(call, spoil, words):
    model, optimizer = prepared()
    before = full_snapshot(model, optimizer)
    count = itertools.count(1)

    def loss(model, data):
        value = noisy_loss(model, data).sum()
        return spoil(value) if next(count) == call else value

    with pytest.raises(ValueError, match=rf"loss_fn must .*{words}"):
        meta_update(model, optimizer, loss=loss)
    assert_same(full_snapshot(model, optimizer), before)


def switch_modes(model):
    model.eval()
    model.layers[3].train()


def clear_gradients(model):
    model.zero_grad()


def fill_gradients(model):
    with torch.enable_grad():
        loss_fn(model, batch(77)).backward()


def freeze(model):
    model.head.weight.requires_grad_(False)


def freeze_everything(model):
    model.requires_grad_(False)


def replace_buffer(model):
    model.layers[1].running_mean = torch.randn(6)


def delete_buffer(model):
    del model.layers[1].running_var


def add_buffer(model):
    model.register_buffer("cache", torch.randn(2), persistent=True)


def seed(model):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)


def change_gradient_in_place(model):
    for param in model.parameters():
        if param.grad is not None:
            param.grad.zero_()


def change_parameters(model):
    with torch.no_grad():
        model.head.weight.mul_(2.0)


def no_graph(model):
    torch.set_grad_enabled(False)


MISCHIEF = (switch_modes, clear_gradients, fill_gradients, freeze, freeze_everything)
MISCHIEF += (replace_buffer, delete_buffer, add_buffer, seed, change_gradient_in_place)
MISCHIEF += (change_parameters, no_graph)


@pytest.mark.parametrize("hvp", ["exact", "finite_difference"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("mischief", MISCHIEF)
def test_a_loss_with_side_effects_changes_nothing(mischief, when, hvp):
    model, optimizer = prepared(hvp=hvp)
    before = snapshot(model, optimizer)
    done = []

    def loss(model, data):
        done.append(True)
        if when == "before":
            mischief(model)
        value = loss_fn(model, data)
        if when == "after":
            mischief(model)
        return value

    with contextlib.suppress(Exception):  # some of these make a meta-update impossible
        meta_update(model, optimizer, loss=loss)
    torch.set_grad_enabled(True)
    assert done
    assert_same(snapshot(model, optimizer), before)


@pytest.mark.parametrize("mischief", [switch_modes, clear_gradients, fill_gradients, seed])
def test_a_loss_with_harmless_side_effects_still_trains(mischief):
    model, optimizer = prepared()

    def loss(model, data):
        mischief(model)
        return loss_fn(model, data)

    assert meta_update(model, optimizer, loss=loss).applied


def test_a_loss_with_parameters_of_its_own():
    """Loss weights that the optimizer trains but the model does not own are put back as well."""
    model = Net()
    weight = nn.Parameter(torch.ones(()))
    optimizer = MetaAdamW([*model.parameters(), weight], learning=LookAhead(every=1), **LEARNS)

    def weighted(model, data):
        return loss_fn(model, data) * weight.exp() - weight

    weighted(model, batch(0)).backward()
    optimizer.step()
    before, gradient = snapshot(model, optimizer), weight.grad
    value, gradient_value = weight.detach().clone(), gradient.clone()
    assert meta_update(model, optimizer, loss=weighted).applied
    assert_same(snapshot(model, optimizer), before)
    assert weight.grad is gradient
    assert_same([weight.detach(), gradient], [value, gradient_value])


class MomentumEncoder(nn.Module):
    """A frozen copy that each forward pass moves towards the network, as MoCo and BYOL have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.target = Net(), Net().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        return self.net(x) - self.target(x)


@pytest.mark.parametrize("call", [2, 4, 99])
def test_a_momentum_encoder_is_put_back(call):
    """Parameters that the model moves itself, and that the optimizer does not have."""
    model = MomentumEncoder()
    optimizer = MetaAdamW(fine_grained_groups(model), learning=LookAhead(every=1), **LEARNS)
    train(model, optimizer, range(2))
    before = snapshot(model, optimizer)
    with contextlib.suppress(Failure):
        meta_update(model, optimizer, loss=failing_at(call))
    assert_same(snapshot(model, optimizer), before)


def expanded_mask() -> nn.Module:
    model = Net()
    model.register_buffer("mask", torch.rand(1, 4).expand(16, 4))
    model.register_buffer("scale", torch.rand(()).expand(0, 3))
    return model


def test_expanded_buffers_are_put_back():
    """Their entries share memory, which ``copy_`` refuses to write."""
    model = expanded_mask()
    optimizer = MetaAdamW(fine_grained_groups(model), learning=LookAhead(every=1))
    train(model, optimizer, range(2))
    before = model.mask.clone()

    def moves_the_mask(model, data):
        model.mask[:1] += 1
        return loss_fn(model, data)

    optimizer.update_attention(model, moves_the_mask, batch(0), batch(1), batch(2))
    assert torch.equal(model.mask, before)
    assert model.mask.stride() == (0, 1)


def test_what_was_made_in_inference_mode():
    """A buffer that a validation has filled, a frozen teacher: nobody can write to them."""
    model = Net()
    with torch.inference_mode():
        model.register_buffer("mask", torch.ones(5))
        model.teacher = nn.Linear(5, 1).requires_grad_(False)
    optimizer = MetaAdamW(fine_grained_groups(model), learning=LookAhead(every=1))
    before, buffers = snapshot(model.head), dict(model.named_buffers())
    assert optimizer.update_attention(model, noisy_loss, batch(0), batch(1), batch(2)).applied
    assert_same(snapshot(model.head), before)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


def test_what_cannot_be_put_back_does_not_keep_the_rest():
    model = Net()
    model.register_buffer("mask", torch.ones(5))
    optimizer = MetaAdamW(fine_grained_groups(model), learning=LookAhead(every=1))
    train(model, optimizer, range(2))
    backward(model, 2)
    grads = [p.grad.clone() for p in model.parameters()]
    values = [p.detach().clone() for p in model.parameters()]
    stream = torch.get_rng_state()

    def resizes_the_mask(model, data):
        model.mask.resize_(3)
        return noisy_loss(model, data)

    with pytest.raises(RuntimeError, match="size of tensor"):
        optimizer.update_attention(model, resizes_the_mask, batch(0), batch(1), batch(2))
    assert_same([p.grad for p in model.parameters()], grads)
    assert_same([p.detach() for p in model.parameters()], values)
    assert_same(torch.get_rng_state(), stream)


def test_global_switches_of_torch_are_put_back():
    def switches():
        backends = torch.backends
        return (
            backends.cudnn.enabled,
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
            backends.mkldnn.enabled,
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            torch.is_grad_enabled(),
        )

    model, optimizer = prepared(hvp="exact")
    before = switches()
    meta_update(model, optimizer)
    assert switches() == before
    with pytest.raises(Failure):
        meta_update(model, optimizer, loss=failing_at(4))
    assert switches() == before


def test_a_meta_update_works_without_grad_mode():
    model, optimizer = prepared()
    with torch.no_grad():
        assert meta_update(model, optimizer).applied
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("mode", ["identity", "xavier"])
@products
def test_with_a_frozen_modulator_meta_updates_change_no_training_number(mode, hvp):
    """A whole run with dropout, not reseeded: one draw too many anywhere would show."""

    def run(meta: bool):
        model, optimizer = make(
            modulator=Attention(init=mode), learning=LookAhead(every=2, lr=0.0, hvp=hvp)
        )
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        losses = []
        for index in range(10):
            model.zero_grad()
            loss = noisy_loss(model, batch(index)).sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if meta and optimizer.meta_update_due:
                assert meta_update(model, optimizer, index, noisy_loss).applied
        end = results(model, optimizer)
        learned = end["optimizer"]["param_groups"][0].pop("metaadamw")
        end |= {"losses": losses, "modulator": learned["modulator"], "seen": learned["modulation"]}
        return end | {"random": torch.get_rng_state(), "features": learned["held_features"]}

    assert_same(run(meta=True), run(meta=False))


def test_dropout_is_the_same_for_the_same_batch():
    """L(θ; val) and L(θ′; val) see the same masks: without a step, no difference is left."""
    model, optimizer = make(lr=0.0, learning=LookAhead(objective="loss_decrease"), **LEARNS)
    backward(model, 0)
    assert meta_update(model, optimizer).loss_decrease == 0.0


def test_dropout_differs_between_batches():
    """B1 and B_val with equal content get different masks, so their losses differ."""
    model, optimizer = make(learning=LookAhead(weighting="fixed"))
    same = batch(0)
    assert optimizer.update_attention(model, loss_fn, same, same, same).generalization_gap > 0.0
