"""What is written to parameters and moments from outside reaches the next step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from metaadamw import Attention, MetaAdamW
from tests.learning import learning_of
from tests.training import Net, assert_same, backward, make, meta_update, results, train

FEATURES = ("basic", "enhanced", "norm_basic_plus", "scale_free")


@torch.no_grad()
def clip_weights(model: Net, optimizer: MetaAdamW) -> None:
    model.head.weight.clamp_(-0.01, 0.01)


def clip_weights_by_data(model: Net, optimizer: MetaAdamW) -> None:
    model.head.weight.data.clamp_(-0.01, 0.01)


def swap_weights_by_data(model: Net, optimizer: MetaAdamW) -> None:
    """As averaging libraries do before and after an evaluation."""
    for param in model.parameters():
        param.data.copy_(2 * param.data)


def replace_data(model: Net, optimizer: MetaAdamW) -> None:
    model.norm.weight.data = torch.full((5,), 3.0)


def load_weights(model: Net, optimizer: MetaAdamW) -> None:
    model.load_state_dict(make()[0].state_dict())


def initialise_again(model: Net, optimizer: MetaAdamW) -> None:
    nn.init.normal_(model.head.weight)


def clear_moments(model: Net, optimizer: MetaAdamW) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].zero_()


def replace_moments(model: Net, optimizer: MetaAdamW) -> None:
    for state in optimizer.state.values():
        state["exp_avg_sq"] = torch.ones_like(state["exp_avg_sq"])


def forget_state(model: Net, optimizer: MetaAdamW) -> None:
    optimizer.state.pop(model.head.weight)


def load_moments(model: Net, optimizer: MetaAdamW) -> None:
    other_model, other = make(modulator=optimizer.modulator.options)
    train(other_model, other, range(40, 44))
    saved = other.state_dict()
    del saved["param_groups"][0]["metaadamw"]
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(saved)


def meta_updates(model: Net, optimizer: MetaAdamW) -> None:
    if optimizer.meta_update_due:
        meta_update(model, optimizer)


CHANGES = (clip_weights, clip_weights_by_data, swap_weights_by_data, replace_data, load_weights)
CHANGES += (initialise_again, clear_moments, replace_moments, forget_state, load_moments)
CHANGES += (meta_updates,)


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("mode", ["lookahead", "online"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_two_steps_are_seen(change: Any, mode: str, path: dict[str, Any]) -> None:
    for features in FEATURES:
        model, optimizer = make(
            modulator=Attention(features=features, init="xavier", layers=1),
            learning=learning_of(mode, every=1, lr=1e-2),
            **path,
        )
        train(model, optimizer, range(3))
        change(model, optimizer)
        fresh = copy.deepcopy((model, optimizer))
        for run in ((model, optimizer), fresh):
            torch.manual_seed(0)
            train(*run, range(3, 5))
        assert_same(fresh[1].features, optimizer.features, features)
        assert_same(results(*fresh), results(model, optimizer), features)


def test_features_can_be_asked_for_at_any_time() -> None:
    """Without a step in between, with other gradients, before and after a change."""
    model, optimizer = make(modulator=Attention(init="xavier", layers=1))
    train(model, optimizer, range(3))
    backward(model, 3)
    for _ in range(2):
        fresh_model, fresh = copy.deepcopy((model, optimizer))
        for param, other in zip(model.parameters(), fresh_model.parameters(), strict=True):
            other.grad = param.grad.clone()
        assert_same(optimizer.group_features(), fresh.group_features())
        grads = [torch.ones_like(p) for g in optimizer.param_groups for p in g["params"]]
        assert_same(optimizer.group_features(grads), fresh.group_features(grads))
        clip_weights(model, optimizer)
