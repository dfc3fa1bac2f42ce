"""Autocast around the optimizer changes nothing: its own arithmetic keeps its precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaadamw import Attention
from tests.learning import learning_of
from tests.training import assert_same, batch, loss_fn, make, results


def trained(mode: Any, autocast: bool) -> dict[str, Any]:
    model, optimizer = make(
        modulator=Attention(init="xavier", features="norm_basic"),
        learning=learning_of(mode, every=3, lr=1e-2),
    )

    def loss(model: Any, data: Any) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):  # the same loss on both sides
            return loss_fn(model, data)

    for index in range(9):
        optimizer.zero_grad()
        loss(model, batch(index)).backward()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            optimizer.step()
            if optimizer.meta_update_due:
                optimizer.update_attention(model, loss, batch(20), batch(21), batch(22))
    return results(model, optimizer)


@pytest.mark.parametrize("mode", ["lookahead", "online"])
def test_autocast_around_the_optimizer(mode: Any) -> None:
    assert_same(trained(mode, autocast=True), trained(mode, autocast=False))


def test_the_loss_is_evaluated_under_the_users_autocast() -> None:
    model, optimizer = make()
    seen = []

    def loss(model: Any, data: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss_fn(model, data).float()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        update = optimizer.update_attention(model, loss, batch(0), batch(1), batch(2))
    assert update.applied
    assert seen
    assert all(seen)
