"""Whatever a training loop does with a torch optimizer, it can do with this one."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import AdamW, Optimizer, lr_scheduler

from metaadamw import (
    Attention,
    Factors,
    Hypergradient,
    LookAhead,
    MetaAdamW,
    Off,
    Windows,
    fine_grained_groups,
)
from tests.learning import learning_of
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
    train,
)

STEPS = 10
XAVIER = {"modulator": Attention(init="xavier", layers=1)}
ONLINE = {**XAVIER, "learning": Hypergradient(lr=1e-2)}
LOOKAHEAD = {**XAVIER, "learning": LookAhead(every=2, lr=1e-2)}
WINDOWS = {
    "learning": Windows(window=2, mean_speed=1.0),
    "modulator": Factors(alpha_range=1.0, scale="linear", update_every=1),
}
modes = pytest.mark.parametrize("options", [ONLINE, LOOKAHEAD], ids=["online", "lookahead"])


def one_cycle(cycle_momentum: bool) -> Any:
    return lambda o: lr_scheduler.OneCycleLR(o, 3e-2, STEPS + 1, cycle_momentum=cycle_momentum)


def sequential(o: Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.CosineAnnealingLR(o, 7)]
    return lr_scheduler.SequentialLR(o, parts, milestones=[3])


SCHEDULERS = {
    "lambda from zero": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 4)),
    "one cycle": one_cycle(True),
    "one cycle, fixed momentum": one_cycle(False),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, 2, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "sequential": sequential,
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 5e-3, anneal_epochs=3),
}


def scheduled_run(optimizer: Optimizer, model: nn.Module, scheduler: Any) -> list[Any]:
    """Ten steps with a scheduler; the hyperparameters of every step."""
    seen = []
    for index in range(STEPS):
        torch.manual_seed(index)
        train(model, optimizer, [index])
        seen.append([(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups])
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(float(index))
        else:
            scheduler.step()
    return seen


@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_as_with_adamw(build):
    """From identity the run is AdamW's; the scheduler sees the same groups in both."""
    model, optimizer = make(learning=Off())
    other, _ = make()
    adamw = AdamW([{"params": g["params"]} for g in fine_grained_groups(other)], lr=1e-2)
    ours = scheduled_run(optimizer, model, build(optimizer))
    theirs = scheduled_run(adamw, other, build(adamw))
    assert ours == theirs
    assert len({group[0] for step in ours for group in step}) > 1
    assert_same(dict(model.state_dict()), dict(other.state_dict()))


@modes
@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
def test_factors_are_never_written_into_the_groups(build, options):
    """A learning modulator does not show in lr, betas or weight_decay: those are the user's."""
    model, optimizer = make(**options)
    other, _ = make()
    adamw = AdamW([{"params": g["params"]} for g in fine_grained_groups(other)], lr=1e-2)
    expected = scheduled_run(adamw, other, build(adamw))
    assert scheduled_run(optimizer, model, build(optimizer)) == expected
    assert not torch.equal(optimizer.modulation.alpha, torch.ones(()))


@modes
def test_the_scheduled_rate_is_what_is_modulated(options):
    """lr = 0 stops a group whatever α says; the others go on."""
    model, optimizer = make(**options)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    train(model, optimizer, range(3))
    assert_same([p.detach() for p in optimizer.param_groups[0]["params"]], before)


@pytest.mark.parametrize("options", [ONLINE, LOOKAHEAD, WINDOWS])
@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_lr_as_a_tensor(path, options):
    """Equal to the float up to rounding, also when a scheduler writes into the tensor."""

    def run(lr: float | Tensor) -> dict[str, Any]:
        model, optimizer = make(lr=lr, **path, **options)
        model.eval()  # in training mode batch norm makes the bias before it a matter of rounding
        scheduled_run(optimizer, model, lr_scheduler.ExponentialLR(optimizer, 0.5))
        if optimizer.meta_update_due:
            assert meta_update(model, optimizer).applied
            train(model, optimizer, range(2))
        assert all(isinstance(g["lr"], type(lr)) for g in optimizer.param_groups)
        return dict(model.state_dict())

    expected = run(2.0**-7)
    for tensor in (torch.tensor(2.0**-7), torch.tensor([2.0**-7])):
        for name, value in run(tensor).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@modes
def test_clipped_gradients(options):
    """What the optimizer sees is what clipping left in .grad."""
    model, optimizer = make(**options)
    backward(model, 0)
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    features = optimizer.group_features()
    assert features[:, 0].max() <= 0.01
    optimizer.step()
    assert_same(optimizer.features, features)


@modes
def test_accumulation(options):
    """Two halves accumulated are one batch: steps are counted, not backward passes."""

    def run(accumulate: bool) -> tuple[dict[str, Any], int]:
        model, optimizer = make(**options)
        model.eval()  # batch norm and dropout would see halves differently
        for index in range(6):
            x, y = batch(index)
            optimizer.zero_grad()
            parts = [slice(None, 6), slice(6, None)] if accumulate else [slice(None)]
            for part in parts:
                (loss_fn(model, (x[part], y[part])) / len(parts)).backward()
            optimizer.step()
            if optimizer.meta_update_due:
                meta_update(model, optimizer, index)
        return dict(model.named_parameters()), optimizer.steps

    (halves, steps), (wholes, same_steps) = run(True), run(False)
    assert steps == same_steps == 6
    for name, value in wholes.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-3, atol=1e-4)


@modes
@pytest.mark.parametrize("evaluations", [1, 3])
def test_closures(options, evaluations):
    """The closure runs once per step, with gradients enabled, and may evaluate as it likes."""

    def run(with_closure: bool) -> tuple[dict[str, Any], list[float]]:
        model, optimizer = make(**options)
        losses = []
        for index in range(6):
            torch.manual_seed(index)

            def closure(index: int = index) -> Tensor:
                assert torch.is_grad_enabled()
                for _ in range(evaluations):  # L-BFGS style
                    optimizer.zero_grad()
                    loss = loss_fn(model, batch(index))
                    loss.backward()
                return loss

            if with_closure:
                with torch.no_grad():
                    losses.append(optimizer.step(closure).item())
            else:
                losses.append(closure().item())
                assert optimizer.step() is None
        return results(model, optimizer), losses

    assert_same(run(True), run(False))


def test_named_parameters():
    model = Net()
    named = MetaAdamW(model.named_parameters(), learning="lookahead")
    assert named.group_names == ["group0"]
    assert named.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    unnamed = MetaAdamW(model.parameters(), learning="lookahead")
    assert "param_names" not in unnamed.param_groups[0]
    for fresh in (named, unnamed):
        train(model, fresh, [0])
        fresh.load_state_dict(fresh.state_dict())
    generator = ({"params": iter([p])} for p in model.parameters())
    assert len(MetaAdamW(generator, learning="lookahead").param_groups) == len(
        list(model.parameters())
    )


@modes
@pytest.mark.parametrize("features", ["basic", "enhanced"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_group_added_in_the_middle(options, features, kind):
    """What was learned stays, embedding and Adam state grow by a row, α of the others goes on."""
    config = Attention(features=features, init="xavier", layers=1)
    meta = replace(options["learning"], lr=1e-2, optimizer=kind)
    model, optimizer = make(modulator=config, learning=meta)
    train(model, optimizer, range(4))
    if optimizer.meta_update_due:
        meta_update(model, optimizer)
    groups = len(optimizer.group_names)
    before = copy.deepcopy(optimizer.meta_state_dict())
    moments = copy.deepcopy(Optimizer.state_dict(optimizer)["state"])
    backward(model, 4)
    old_features = optimizer.group_features()

    extra = nn.Linear(5, 5)
    optimizer.add_param_group({"params": list(extra.named_parameters()), "lr": 1e-3})
    after = optimizer.meta_state_dict()
    assert optimizer.group_names[-1] == f"group{groups}"
    assert optimizer.steps == 4
    for name, value in before["modulator"].items():
        grown = after["modulator"][name]
        assert_same(grown[: len(value)] if name == "group_embedding" else grown, value, name)
    assert_same(Optimizer.state_dict(optimizer)["state"], moments)
    if features == "enhanced":
        assert after["modulator"]["group_embedding"].shape == (groups + 1, 4)
    assert_same(optimizer.group_features()[:groups], old_features)
    assert optimizer.modulation.alpha.shape == (groups + 1,)

    def loss(model: nn.Module, data: Any) -> Tensor:
        x = model.layers(model.embedding(data[0]))
        return (model.head(model.norm(extra(x))) - data[1]).square().mean()

    start = extra.weight.detach().clone()
    for index in range(5, 9):
        optimizer.zero_grad()
        loss(model, batch(index)).backward()
        optimizer.step()
        if optimizer.meta_update_due:
            assert meta_update(model, optimizer, index, loss).applied
    assert not torch.equal(extra.weight, start)
    assert torch.isfinite(optimizer.modulation.alpha).all()
    if kind == "adam":  # its second moments fade by 0.999 per update, no faster
        old, new = (
            before["learning"]["meta_optimizer"],
            optimizer.meta_state_dict()["learning"]["meta_optimizer"],
        )
        for was, now in zip(old["exp_avg_sq"], new["exp_avg_sq"], strict=True):
            assert (now[: len(was)] >= 0.99 * was).all()

    saved = optimizer.state_dict()  # and the grown optimizer is saved and loaded like any other
    _, other = make(modulator=config, learning=meta)
    other.add_param_group({"params": list(nn.Linear(5, 5).named_parameters())})
    other.load_state_dict(copy.deepcopy(saved))
    assert_same(other.state_dict(), saved)


def test_a_new_group_does_not_depend_on_when_it_was_added():
    model = Net()
    config = {"modulator": Attention(features="enhanced")}
    groups = fine_grained_groups(model)
    at_once = MetaAdamW(copy.copy(groups), **config)
    later = MetaAdamW(groups[:-1], **config)
    later.add_param_group(groups[-1])
    assert_same(later.meta_state_dict(), at_once.meta_state_dict())


@modes
def test_zero_grad_to_zero_is_a_gradient(options):
    """set_to_none=False: zeros move moments and parameters, as in AdamW."""
    model, optimizer = make(**options)
    train(model, optimizer, range(2))
    optimizer.zero_grad(set_to_none=False)
    before = model.head.weight.detach().clone()
    optimizer.step()
    assert optimizer.steps == 3
    assert not torch.equal(model.head.weight, before)
    optimizer.zero_grad()
    state = full_snapshot(model, optimizer)
    optimizer.step()  # nothing has a gradient: nothing happens
    assert_same(full_snapshot(model, optimizer), state)


@modes
@pytest.mark.parametrize("from_the_start", [False, True])
def test_parameters_frozen_and_unfrozen(options, from_the_start):
    """A frozen parameter rests, in training and in meta-updates, and comes back."""
    model, optimizer = make(**options)
    if not from_the_start:
        train(model, optimizer, range(2))
    model.layers.requires_grad_(False)
    optimizer.zero_grad()
    frozen = copy.deepcopy(dict(model.layers.named_parameters()))
    for index in range(2, 6):
        optimizer.zero_grad()
        loss_fn(model, batch(index)).backward()
        optimizer.step()
        if optimizer.meta_update_due:
            before = full_snapshot(model, optimizer)
            assert meta_update(model, optimizer, index).applied
            after = full_snapshot(model, optimizer)
            assert_same(after | {"learned": 0}, before | {"learned": 0})
    assert_same(dict(model.layers.named_parameters()), frozen)
    model.layers.requires_grad_(True)
    train(model, optimizer, range(6, 8))
    if optimizer.meta_update_due:
        assert meta_update(model, optimizer, 8).applied
    assert not torch.equal(model.layers[0].weight, frozen["0.weight"])


@modes
def test_distributed_checkpointing_creates_state_and_changes_nothing(options):
    """It takes a step with zero gradients and lr = 0; training afterwards must not know."""

    def run(look: bool) -> dict[str, Any]:
        model, optimizer = make(**options)
        if look:
            saved = get_optimizer_state_dict(model, optimizer)
            assert "head.weight" in saved["state"]
            assert all(p.grad is None for p in model.parameters())
            assert optimizer.steps == 0
        for index in range(6):
            torch.manual_seed(index)
            train(model, optimizer, [index])
            if optimizer.meta_update_due:
                meta_update(model, optimizer, index)
            if look:
                get_optimizer_state_dict(model, optimizer)
        return results(model, optimizer)

    assert_same(run(look=True), run(look=False))


@modes
def test_copying_the_model_in_between(options):
    """An averaged or evaluated copy of the model is independent of the one that trains."""

    def run(copies: bool) -> dict[str, Any]:
        model, optimizer = make(**options)
        for index in range(6):
            torch.manual_seed(index)
            train(model, optimizer, [index])
            if copies:
                other = copy.deepcopy(model).eval()
                loss_fn(other, batch(index)).backward()
                both = copy.deepcopy((model, optimizer))
                train(*both, [index + 50])
                torch.manual_seed(index)
            if optimizer.meta_update_due:
                torch.manual_seed(index)
                meta_update(model, optimizer, index)
        return results(model, optimizer)

    assert_same(run(copies=True), run(copies=False))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("warmup", [0, 4])
def test_when_a_meta_update_is_due(every, warmup):
    model, optimizer = make(learning=LookAhead(every=every, warmup_steps=warmup))
    assert not optimizer.meta_update_due
    seen = []
    for step in range(1, STEPS + 1):
        train(model, optimizer, [step])
        if optimizer.meta_update_due:
            seen.append(step)
            assert optimizer.meta_update_due  # looking does not change it
            resumed_model, resumed = make(learning=LookAhead(every=every, warmup_steps=warmup))
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            assert resumed.meta_update_due
            meta_update(resumed_model, resumed)
            assert not resumed.meta_update_due
            meta_update(model, optimizer)
            assert not optimizer.meta_update_due
    assert seen == [s for s in range(1, STEPS + 1) if s % every == 0 and s >= warmup]


@pytest.mark.parametrize("mode", ["online", "off"])
def test_a_meta_update_is_never_due_in_other_modes(mode):
    model, optimizer = make(learning=learning_of(mode, every=1))
    for step in range(3):
        train(model, optimizer, [step])
        assert not optimizer.meta_update_due


def test_a_failed_meta_update_stays_due():
    model, optimizer = make(learning=LookAhead(every=1))
    train(model, optimizer, [0])
    with pytest.raises(ZeroDivisionError):
        meta_update(model, optimizer, loss=lambda m, b: 1 / 0)
    assert optimizer.meta_update_due


@pytest.mark.parametrize("mode", ["lookahead", "online", "off"])
def test_a_missed_meta_update_is_said_aloud(mode):
    """Look-ahead without ``update_attention`` is AdamW: nobody should find out by accident."""
    model, optimizer = make(learning=learning_of(mode, every=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, range(2))
        if optimizer.meta_update_due:
            meta_update(model, optimizer)
        train(model, optimizer, range(2, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, range(4, 6))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (mode == "lookahead")
    assert all(m.startswith("a meta-update was due and update_attention was") for m in messages)
