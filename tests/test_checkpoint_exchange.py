"""Checkpoints from and for ``torch.optim.AdamW``, the learned part alone, and what is refused."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metaadamw import Attention, Hypergradient, LookAhead, MetaAdamW, Off, fine_grained_groups
from tests.learning import learning_of
from tests.training import Net, assert_same, backward, full_snapshot, make, meta_update, train

PATHS = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
XAVIER = Attention(init="xavier", layers=1)


def plain_groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": g["params"]} for g in fine_grained_groups(model)]


def moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    return {n: optimizer.state[p] for n, p in model.named_parameters()}


def assert_continue_alike(model, optimizer, other_model, other_optimizer) -> None:
    """Five more steps of each, with the same batches and the same random stream."""
    for run in ((model, optimizer), (other_model, other_optimizer)):
        torch.manual_seed(3)
        train(*run, range(100, 105))
    assert_same(dict(model.state_dict()), dict(other_model.state_dict()))


@pytest.mark.parametrize("mode", ["lookahead", "off"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_adamw_checkpoint_with_the_same_groups(path, mode):
    model, _ = make()
    adamw = torch.optim.AdamW(plain_groups(model), lr=3e-2, betas=(0.8, 0.99), **path)
    train(model, adamw, range(5))
    fresh, optimizer = make(learning=learning_of(mode), **path)
    fresh.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(adamw.state_dict())
    assert optimizer.steps == 5
    assert {g["lr"] for g in optimizer.param_groups} == {3e-2}  # the saved values win
    assert {g["betas"] for g in optimizer.param_groups} == {(0.8, 0.99)}
    assert optimizer.group_names == [g["name"] for g in fine_grained_groups(fresh)]
    assert_continue_alike(model, adamw, fresh, optimizer)
    assert_same(moments(optimizer, fresh), moments(adamw, model))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_adamw_checkpoint_is_regrouped_by_names(path):
    model, _ = make()
    adamw = torch.optim.AdamW(model.named_parameters(), lr=3e-2, **path)
    train(model, adamw, range(5))
    fresh, optimizer = make(**path)
    fresh.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(adamw.state_dict())
    assert len(optimizer.param_groups) > 1
    assert_continue_alike(model, adamw, fresh, optimizer)
    assert_same(moments(optimizer, fresh), moments(adamw, model))


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize(("saved", "ours"), [("module.", ""), ("", "_orig_mod."), ("module.",) * 2])
def test_names_do_not_depend_on_what_the_model_is_wrapped_in(saved, ours, fine):
    """DistributedDataParallel before, ``torch.compile`` now, or neither."""
    model, _ = make()
    adamw = torch.optim.AdamW([(saved + n, p) for n, p in model.named_parameters()], lr=3e-2)
    train(model, adamw, range(3))
    fresh, _ = make()
    fresh.load_state_dict(model.state_dict())
    named = [(ours + n, p) for n, p in fresh.named_parameters()]
    optimizer = MetaAdamW(fine_grained_groups(fresh) if fine else named, learning="lookahead")
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(adamw.state_dict())
    assert_same(moments(optimizer, fresh), moments(adamw, model))
    assert_continue_alike(model, adamw, fresh, optimizer)


def test_decay_and_no_decay_groups_are_split_by_names():
    model, _ = make()

    def groups(model):
        named = list(model.named_parameters())
        return [
            {"params": [(n, p) for n, p in named if p.dim() > 1], "weight_decay": 0.3},
            {"params": [(n, p) for n, p in named if p.dim() <= 1], "weight_decay": 0.0},
        ]

    adamw = torch.optim.AdamW(groups(model), lr=3e-2)
    train(model, adamw, range(5))
    fresh, _ = make()
    fresh.load_state_dict(model.state_dict())
    optimizer = MetaAdamW(fine_grained_groups(fresh, groups(fresh)), learning="lookahead")
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(adamw.state_dict())
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.3, 0.0}
    assert_continue_alike(model, adamw, fresh, optimizer)


def test_names_decide_where_the_order_differs():
    """Two square layers in the other order: shapes cannot tell, names can."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    adamw = torch.optim.AdamW(list(model.named_parameters())[::-1])
    model(torch.randn(3, 2)).square().sum().backward()
    adamw.step()
    optimizer = MetaAdamW(model.named_parameters(), learning="lookahead")
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(adamw.state_dict())
    assert_same(moments(optimizer, model), moments(adamw, model))


def test_names_of_a_checkpoint_stay_there():
    """They would be in our next checkpoint, which the same script could not load again."""
    model = Net()
    adamw = torch.optim.AdamW(model.named_parameters())
    train(model, adamw, range(2))
    optimizer = MetaAdamW(model.parameters(), learning="lookahead")
    with pytest.warns(UserWarning, match="no learned part"):
        optimizer.load_state_dict(adamw.state_dict())
    assert_same(moments(optimizer, model), moments(adamw, model))
    again = MetaAdamW(model.parameters(), learning="lookahead")
    again.load_state_dict(optimizer.state_dict())
    assert_same(again.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_back_to_adamw(path):
    """With α = β = 1 AdamW goes on from our checkpoint as we would."""
    model, optimizer = make(learning=Off(), **path)
    train(model, optimizer, range(5))
    fresh, _ = make()
    fresh.load_state_dict(model.state_dict())
    adamw = torch.optim.AdamW(plain_groups(fresh), **path)
    adamw.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the moments
    assert_continue_alike(model, optimizer, fresh, adamw)


def without_learned_part(saved: dict[str, Any]) -> None:
    del saved["param_groups"][0]["metaadamw"]


def with_that_of_a_fresh_optimizer(saved: dict[str, Any]) -> None:
    """What is left by loading an AdamW checkpoint in part."""
    saved["param_groups"][0]["metaadamw"] = make(modulator=XAVIER)[1].meta_state_dict()


@pytest.mark.parametrize("lose", [without_learned_part, with_that_of_a_fresh_optimizer])
def test_only_a_checkpoint_without_learned_part_warns(lose):
    model, optimizer = make(modulator=XAVIER)
    train(model, optimizer, range(3))
    saved = optimizer.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(modulator=XAVIER)[1].load_state_dict(saved)
        make(modulator=XAVIER)[1].load_state_dict(make(modulator=XAVIER)[1].state_dict())
    partial = copy.deepcopy(saved)
    lose(partial)
    _, other = make(modulator=XAVIER)
    with pytest.warns(UserWarning, match="no learned part"):
        other.load_state_dict(partial)
    assert other.steps == 3
    other.load_meta_state_dict(saved["param_groups"][0]["metaadamw"])
    assert_same(other.state_dict(), saved)


def test_a_checkpoint_without_moments_warns():
    """Distributed checkpointing fills what it is shown: of a fresh optimizer, no moments."""
    model, optimizer = make()
    train(model, optimizer, range(3))
    saved = optimizer.state_dict()
    saved["state"] = {}
    with pytest.warns(UserWarning, match="no moments: give.*get_optimizer_state_dict"):
        make()[1].load_state_dict(saved)


def test_groups_of_another_metaadamw_can_be_used():
    """Trainers rebuild optimizers so."""
    model, optimizer = make()
    train(model, optimizer, range(3))
    groups = [dict(group) for group in reversed(optimizer.param_groups)]
    rebuilt = MetaAdamW(groups, **optimizer.defaults)
    train(model, rebuilt, range(3, 5))
    assert ["metaadamw" in g for g in rebuilt.param_groups] == [True] + [False] * (len(groups) - 1)


def test_the_learned_part_alone_is_copied_and_complete():
    model, optimizer = make(modulator=XAVIER, learning=LookAhead(optimizer="adam", every=1))
    train(model, optimizer, range(3))
    meta_update(model, optimizer)
    saved = optimizer.meta_state_dict()
    kept = copy.deepcopy(saved)
    _, other = make(modulator=XAVIER, learning=LookAhead(optimizer="adam", every=1))
    other.load_meta_state_dict(saved)
    assert_same(other.meta_state_dict(), kept)
    assert not other.state  # the moments are not part of it
    assert not other.meta_update_due
    train(model, optimizer, range(3, 5))  # neither side shares memory with the checkpoint
    meta_update(model, optimizer, 1)
    assert_same(saved, kept)
    assert_same(other.meta_state_dict(), kept)


def test_hooks_around_loading_see_and_change_what_is_loaded():
    """As in torch: what a hook returns before is what is loaded, what one does after stays."""
    model, optimizer = make()
    train(model, optimizer, range(3))
    saved = optimizer.state_dict()
    steps = []

    def halve(_, state_dict):
        changed = copy.deepcopy(state_dict)
        for entry in changed["state"].values():
            entry["exp_avg"] /= 2
        return changed

    def zero_second_moments(loaded):
        steps.append(loaded.steps)
        for entry in loaded.state.values():
            entry["exp_avg_sq"].zero_()

    for kind in (make()[1], torch.optim.AdamW(plain_groups(make()[0]))):
        kind.register_load_state_dict_pre_hook(halve)
        if isinstance(kind, MetaAdamW):
            kind.register_load_state_dict_post_hook(zero_second_moments)
        for _ in range(2):  # hooks outlive a load
            kind.load_state_dict(saved)
        for entry, old in zip(kind.state.values(), saved["state"].values(), strict=True):
            assert torch.equal(entry["exp_avg"], old["exp_avg"] / 2)
            if isinstance(kind, MetaAdamW):
                assert not entry["exp_avg_sq"].any()
    assert steps == [3, 3]


def test_hooks_after_saving_see_and_change_all_that_is_saved():
    """Those before loading may then undo it, and find the learned part inside."""
    model, optimizer = make()
    train(model, optimizer, range(3))
    plain = optimizer.state_dict()
    optimizer.register_state_dict_post_hook(lambda _, state: {"packed": copy.deepcopy(state)})
    saved = optimizer.state_dict()
    assert_same(saved, {"packed": plain})
    assert optimizer.param_groups[0]["metaadamw"] is None
    _, other = make()
    other.register_load_state_dict_pre_hook(lambda _, state: state["packed"])
    other.load_state_dict(saved)
    assert_same(other.state_dict(), plain)


def test_a_learning_rate_of_numpy_is_taken_back():
    """A scheduler may compute it."""
    model, optimizer = make()
    optimizer.param_groups[0]["lr"] = np.float32(0.25)
    train(model, optimizer, range(2))
    _, other = make()
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.25


def test_a_hook_may_repair_what_would_be_refused():
    model, optimizer = make()
    train(model, optimizer, range(3))
    _, other = make()
    broken = optimizer.state_dict()
    broken["param_groups"] = broken["param_groups"][::-1]
    hook = other.register_load_state_dict_pre_hook(
        lambda _, state: {**state, "param_groups": state["param_groups"][::-1]}
    )
    other.load_state_dict(broken)
    assert other.steps == 3
    hook.remove()
    with pytest.raises(ValueError, match="group"):
        other.load_state_dict(broken)


def test_a_loaded_checkpoint_stays_as_it_was():
    model, optimizer = make(modulator=XAVIER, learning=Hypergradient())
    train(model, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    fresh, other = make(modulator=XAVIER, learning=Hypergradient())
    other.load_state_dict(saved)
    train(fresh, other, range(3))
    assert_same(saved, kept)


def other_state(**options: Any) -> dict[str, Any]:
    """A checkpoint of an optimizer that was constructed differently."""
    model, optimizer = make(**{"modulator": XAVIER, "learning": ADAM, **options})
    train(model, optimizer, range(2))
    meta_update(model, optimizer)
    return optimizer.state_dict()


ADAM = LookAhead(optimizer="adam", every=1)


def regrouped(**options: Any) -> dict[str, Any]:
    model, _ = make()
    optimizer = MetaAdamW(options.pop("groups")(model), modulator=XAVIER, learning=ADAM)
    train(model, optimizer, range(2))
    return optimizer.state_dict()


def of_torch(kind: Any, groups: Any = plain_groups, **options: Any) -> dict[str, Any]:
    model, _ = make()
    optimizer = kind(groups(model), lr=0.1, **options)
    train(model, optimizer, range(2))
    return optimizer.state_dict()


def wider(model: Net) -> list[dict[str, Any]]:
    """The same groups, over a model with another width."""
    model.layers[4], model.norm, model.head = nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 1)
    return fine_grained_groups(model)


def renamed(model: Net) -> list[dict[str, Any]]:
    groups = fine_grained_groups(model)
    groups[0]["name"] = "first"
    return groups


OTHERS = {
    "features": (lambda: other_state(modulator=Attention(features="basic_plus")), "features"),
    "columns": (lambda: other_state(modulator=Attention(time_step=False)), "features"),
    "layers": (lambda: other_state(modulator=Attention(layers=3)), "modulator"),
    "hidden": (lambda: other_state(modulator=Attention(layers=1, hidden_dim=8)), "modulator"),
    "heads": (lambda: other_state(modulator=Attention(layers=1, heads=2)), "heads"),
    "gating": (lambda: other_state(modulator=Attention(feature_gating=True)), "gat"),
    "one group": (lambda: regrouped(groups=lambda m: m.parameters()), "group"),
    "other groups": (lambda: regrouped(groups=lambda m: [
        {"params": m.embedding.parameters()},
        {"params": [p for n, p in m.named_parameters() if not n.startswith("embedding")]},
    ]), "group"),
    "other names": (lambda: regrouped(groups=renamed), "first"),
    "other shapes": (lambda: regrouped(groups=wider), "shape"),
    "sgd": (lambda: of_torch(torch.optim.SGD, momentum=0.9), "momentum_buffer"),
    "rmsprop": (lambda: of_torch(torch.optim.RMSprop), "exp_avg"),
    "amsgrad": (lambda: of_torch(torch.optim.AdamW, amsgrad=True), "amsgrad"),
    "adamw, unnamed": (lambda: of_torch(torch.optim.AdamW, lambda m: m.parameters()), "named"),
    "adamw, fewer": (lambda: of_torch(
        torch.optim.AdamW, lambda m: list(m.named_parameters())[:-1]), "head.bias"),
    "adamw, wider": (lambda: of_torch(torch.optim.AdamW, wider), "shape"),
}  # fmt: skip


def assert_refused(state: Any, words: str | None, load: str = "load_state_dict") -> None:
    """``state`` raises ``ValueError`` with ``words`` and changes nothing at all."""
    model, optimizer = make(modulator=XAVIER, learning=ADAM)
    train(model, optimizer, range(4))
    meta_update(model, optimizer, 9)
    backward(model, 4)
    before = full_snapshot(model, optimizer)
    with pytest.raises(ValueError, match=words):
        getattr(optimizer, load)(state)
    assert_same(full_snapshot(model, optimizer), before)


@pytest.mark.parametrize(("state", "words"), OTHERS.values(), ids=OTHERS)
def test_checkpoints_of_something_else_are_refused(state, words):
    assert_refused(state(), words)


def test_a_modulator_that_preserves_the_mean_is_another():
    log = {"layers": 1, "scale": "log"}
    _, preserving = make(modulator=Attention(**log, mean_preserving=True), learning=ADAM)
    _, free = make(modulator=Attention(**log), learning=ADAM)
    with pytest.raises(ValueError, match="mean_preserving"):
        free.load_state_dict(preserving.state_dict())


_LEARNED = make(modulator=XAVIER, learning=ADAM)[1].meta_state_dict()
LEARNED_KEYS = [*_LEARNED, *(f"learning.{key}" for key in _LEARNED["learning"])]


def place_of(state: Any, key: str) -> tuple[Any, str]:
    """The dict of the learned part that has a key, and the key in it."""
    learned = state["param_groups"][0]["metaadamw"]
    *inside, last = key.split(".")
    return (learned["learning"] if inside else learned), last


GARBAGE = [None, "garbage", -1, [], {}, torch.zeros(2, 9), math.nan]


@pytest.mark.parametrize("load", ["load_state_dict", "load_meta_state_dict"])
@pytest.mark.parametrize("key", LEARNED_KEYS)
def test_a_damaged_learned_part_is_refused(key, load):
    saved = other_state()
    for replacement in ("missing", *GARBAGE):
        if key == "learning.meta_optimizer" and replacement == {}:
            continue  # what SGD saves
        damaged = copy.deepcopy(saved)
        place, name = place_of(damaged, key)
        if isinstance(replacement, str) and replacement == "missing":
            del place[name]
        else:
            place[name] = replacement
        assert_refused(
            damaged if load == "load_state_dict" else damaged["param_groups"][0]["metaadamw"],
            None,
            load,
        )


@pytest.mark.parametrize("key", ["held_features", "modulation", "learning.last_step"])
def test_a_damaged_position_is_refused(key):
    """These are there only once steps were taken."""
    meta = Hypergradient()
    model, optimizer = make(learning=meta)
    train(model, optimizer, range(2))
    before = full_snapshot(model, optimizer)
    for replacement in GARBAGE:
        damaged = copy.deepcopy(optimizer.state_dict())
        place, name = place_of(damaged, key)
        place[name] = replacement
        with pytest.raises(ValueError, match=name):
            optimizer.load_state_dict(damaged)
        assert_same(full_snapshot(model, optimizer), before)


def damage(change: Any) -> dict[str, Any]:
    saved = copy.deepcopy(other_state())
    change(saved)
    return saved


def without(key: str) -> Any:
    return lambda s: s.pop(key)


DAMAGES = {
    "no state": (without("state"), "state"),
    "no groups": (without("param_groups"), "param_groups"),
    "version": (lambda s: s["param_groups"][0]["metaadamw"].update(version=999), "version.*999"),
    "learned part": (lambda s: s["param_groups"][0].update(metaadamw="x"), "metaadamw"),
    "lr": (lambda s: s["param_groups"][1].update(lr=-1.0), "lr.*-1.0"),
    "lr type": (lambda s: s["param_groups"][1].update(lr="0.1"), "lr.*0.1"),
    "betas": (lambda s: s["param_groups"][0].update(betas=(0.9, 1.5)), "betas.*1.5"),
    "weight decay": (lambda s: s["param_groups"][0].update(weight_decay=None), "weight_decay"),
    "no moment": (lambda s: s["state"][0].pop("exp_avg_sq"), "exp_avg_sq"),
    "moment shape": (lambda s: s["state"][0].update(exp_avg=torch.zeros(3)), "exp_avg"),
    "moment type": (lambda s: s["state"][0].update(exp_avg="x"), "exp_avg"),
    "no step": (lambda s: s["state"][1].pop("step"), "step"),
    "step shape": (lambda s: s["state"][1].update(step=torch.zeros(2)), "step"),
    "step type": (lambda s: s["state"][1].update(step="3"), "step"),
    "state type": (lambda s: s.update(state=[1, 2]), "state"),
    "state entry": (lambda s: s["state"].update({0: "x"}), "state"),
    "groups type": (lambda s: s.update(param_groups={"lr": 1.0}), "param_groups"),
    "group without params": (lambda s: s["param_groups"][0].pop("params"), "params"),
    "modulator dtype": (
        lambda s: s["param_groups"][0]["metaadamw"]["modulator"].update(output_bias=["a"]),
        "output_bias",
    ),
}


@pytest.mark.parametrize(("change", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused(change, words):
    assert_refused(damage(change), words)


@pytest.mark.parametrize("state", [None, [], "x", {}, 3, {"version": 1}])
def test_what_is_no_checkpoint_is_refused(state):
    assert_refused(state, None)
    assert_refused(state, None, "load_meta_state_dict")
