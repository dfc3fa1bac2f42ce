"""Fabric, whose models refuse a backward pass that is not Fabric's own."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric, wrappers
from torch import Tensor, nn

from metaadamw import LookAhead, MetaAdamW, MetaUpdate, fine_grained_groups
from tests.training import Net, assert_same, batch, loss_fn

PRECISIONS = ["32-true", "bf16-mixed", "bf16-true", "64-true"]


def float_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    x, y = data
    return (model(x).float() - y).square().mean()


def train(precision: str, *, hvp: str = "auto") -> tuple[nn.Module, list[MetaUpdate]]:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    torch.manual_seed(11)
    net = Net(0.0)
    meta = LookAhead(every=2, hvp=hvp)
    model, optimizer = fabric.setup(
        net, MetaAdamW(fine_grained_groups(net), lr=1e-2, modulator="attention", learning=meta)
    )
    updates = []
    for index in range(4):
        optimizer.zero_grad()
        fabric.backward(float_loss(model, batch(index)))
        optimizer.step()
        if optimizer.meta_update_due:
            data = [batch(1000 + index + i) for i in range(3)]
            updates.append(optimizer.update_attention(model, float_loss, *data))
    return model, updates


@pytest.mark.parametrize("hvp", ["auto", "exact", "finite_difference"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_meta_updates_in_every_precision(precision, hvp):
    model, updates = train(precision, hvp=hvp)
    assert [update.applied for update in updates] == [True, True]
    loss = float_loss(model, batch(9))
    if precision.endswith("mixed"):  # the check is on again
        with pytest.raises(RuntimeError, match=r"call `fabric.backward\(loss\)`"):
            loss.backward()
    else:
        loss.backward()


def test_the_same_as_without_fabric():
    fabric_model, updates = train("32-true")
    torch.manual_seed(11)
    model = Net(0.0)
    optimizer = MetaAdamW(fine_grained_groups(model), lr=1e-2, learning=LookAhead(every=2))
    expected = []
    for index in range(4):
        optimizer.zero_grad()
        float_loss(model, batch(index)).backward()
        optimizer.step()
        if optimizer.meta_update_due:
            data = [batch(1000 + index + i) for i in range(3)]
            expected.append(optimizer.update_attention(model, float_loss, *data))
    assert [u.total for u in updates] == [u.total for u in expected]
    assert_same(dict(fabric_model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_check_is_as_it_was_before(monkeypatch, inside, fails):
    model = Net()
    optimizer = MetaAdamW(fine_grained_groups(model), learning=LookAhead(every=1))
    loss_fn(model, batch(0)).backward()
    optimizer.step()
    monkeypatch.setattr(wrappers, "_in_fabric_backward", inside)
    seen = []

    def loss(model, data):
        seen.append(wrappers._in_fabric_backward)
        if fails and len(seen) > 2:
            raise OSError("a loss that fails")
        return loss_fn(model, data)

    data = [batch(1000 + i) for i in range(3)]
    if fails:
        with pytest.raises(OSError, match="a loss that fails"):
            optimizer.update_attention(model, loss, *data)
    else:
        assert optimizer.update_attention(model, loss, *data).applied
    assert set(seen) == {True}
    assert wrappers._in_fabric_backward is inside
