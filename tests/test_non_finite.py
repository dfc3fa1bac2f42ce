"""What is not finite never enters the modulator: skipped, counted, reported."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from metaadamw import Attention, Hypergradient, MetaAdamW
from metaadamw.learning.lookahead.meta_update import _finite
from tests.learning import learning_of
from tests.training import (
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

FEATURES = (
    "basic",
    "basic_plus",
    "enhanced",
    "norm_basic",
    "norm_basic_plus",
    "scale_free",
)
BAD = [math.nan, math.inf, -math.inf]


def prepared(features: str = "basic", **meta) -> tuple[nn.Module, MetaAdamW]:
    model, optimizer = make(
        modulator=Attention(features=features, init="xavier", layers=1),
        learning=learning_of(**{"every": 1, "lr": 1e-2, **meta}),
    )
    train(model, optimizer, range(2))
    return model, optimizer


def counts(optimizer: MetaAdamW) -> tuple[int, int]:
    metrics = optimizer.metrics()
    return int(metrics["meta/applied"]), int(metrics["meta/skipped"])


def weights(optimizer: MetaAdamW) -> dict:
    """What a meta-update moves, and the state of what moves it."""
    state = optimizer.meta_state_dict()
    kept = ("raw_log_variances", "meta_optimizer")
    learning = {key: state["learning"][key] for key in kept if key in state["learning"]}
    return {"modulator": state["modulator"], **learning}


def finite(optimizer: MetaAdamW) -> bool:
    tensors = [*optimizer.modulator.parameters(), *optimizer.modulation, optimizer.features]
    return all(bool(torch.isfinite(t).all()) for t in tensors)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("which", "hvp", "reason"),
    [
        (0, "exact", "batch1"),
        (1, "exact", "non-finite"),
        (1, "finite_difference", "non-finite"),
        (2, "exact", "val_batch"),
    ],
)
def test_a_batch_with_a_non_finite_loss(which, hvp, reason, bad, optimizer):
    model, opt = prepared(hvp=hvp, optimizer=optimizer)
    assert meta_update(model, opt).applied
    before, learned = snapshot(model, opt), weights(opt)

    def loss(model, data):
        return loss_fn(model, data) * (bad if torch.equal(data[1], batch(1000 + which)[1]) else 1.0)

    train_state = counts(opt)
    update = meta_update(model, opt, loss=loss)
    assert not update.applied
    assert reason in update.skipped_reason
    assert counts(opt) == (train_state[0], train_state[1] + 1)
    assert_same(snapshot(model, opt), before)
    assert_same(weights(opt), learned)
    update = meta_update(model, opt)  # the next good one counts again
    assert update.applied
    assert update.skipped_reason is None
    assert counts(opt) == (train_state[0] + 1, train_state[1] + 1)


@pytest.mark.parametrize("hvp", ["exact", "finite_difference"])
def test_every_call_of_the_loss(hvp):
    """NaN at any one evaluation is enough to skip; all are asked for."""
    for call in itertools.count(1):
        model, optimizer = prepared(hvp=hvp)
        meta_update(model, optimizer)  # the first one also compares products
        before = weights(optimizer)
        count = itertools.count(1)

        def loss(model, data, count=count, call=call):
            return loss_fn(model, data) * (math.nan if next(count) == call else 1.0)

        update = meta_update(model, optimizer, loss=loss)
        if next(count) <= call:  # it was never reached
            assert update.applied
            break
        assert not update.applied
        assert_same(weights(optimizer), before)
    assert call > 4


@pytest.mark.parametrize("term", ["gradient_alignment", "loss_decrease", "generalization_gap"])
def test_single_terms(term):
    model, optimizer = prepared(objective=term, gap_at="theta_prime")
    before = weights(optimizer)
    update = meta_update(model, optimizer, loss=lambda m, b: loss_fn(m, b) * math.nan)
    assert not update.applied
    assert_same(weights(optimizer), before)


def test_a_finite_loss_with_a_non_finite_gradient():
    """The square root at zero: the loss is 0, its gradient inf."""
    model, optimizer = prepared()
    before = weights(optimizer)
    update = meta_update(model, optimizer, loss=lambda m, b: (loss_fn(m, b) * 0).sqrt())
    assert "gradient on batch1" in update.skipped_reason
    assert_same(weights(optimizer), before)


def test_a_skipped_meta_update_is_not_due_again_at_once():
    model, optimizer = prepared()
    assert optimizer.meta_update_due
    meta_update(model, optimizer, loss=lambda m, b: loss_fn(m, b) * math.nan)
    assert not optimizer.meta_update_due
    train(model, optimizer, [2])
    assert optimizer.meta_update_due


@pytest.mark.parametrize("mode", ["lookahead", "online", "off"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("features", FEATURES)
def test_a_training_step_with_a_non_finite_gradient(features, bad, mode):
    """The parameters go the way AdamW would send them; the modulator stays finite and as it was."""
    model, optimizer = prepared(features, mode=mode, optimizer="adam")
    backward(model, 2)
    model.head.bias.grad.fill_(bad)
    before = weights(optimizer)
    _, skipped = counts(optimizer)
    optimizer.step()
    assert finite(optimizer)
    assert counts(optimizer)[1] == skipped + 1  # features and learning, but one gradient
    assert_same(weights(optimizer), before)
    train(model, optimizer, range(3, 6))  # moments are NaN from here on, as with AdamW
    assert finite(optimizer)
    assert_same(weights(optimizer), before)


@pytest.mark.parametrize("mode", ["lookahead", "online"])
def test_resumed_before_a_non_finite_gradient(mode):
    """The features to fall back on are part of a checkpoint."""
    model, optimizer = prepared(mode=mode)
    fresh, resumed = prepared(mode=mode)
    train(fresh, resumed, [77])
    fresh.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same(resumed.features, optimizer.features)
    for run in ((model, optimizer), (fresh, resumed)):
        torch.manual_seed(0)
        backward(run[0], 2)
        run[0].head.bias.grad.fill_(math.nan)
        run[1].step()
    assert_same(resumed.features, optimizer.features)
    assert_same(results(fresh, resumed), results(model, optimizer))


def test_the_first_step_of_all():
    """No features to fall back on: still finite."""
    model, optimizer = make(modulator=Attention(init="xavier"), learning=Hypergradient())
    backward(model, 0)
    model.head.weight.grad.fill_(math.nan)
    optimizer.step()
    assert finite(optimizer)


@pytest.mark.parametrize("mode", ["lookahead", "online"])
def test_a_step_skipped_by_a_grad_scaler_leaves_everything(mode):
    """After an overflow the scaler does not call ``step()``: α, β and the learner wait."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model, optimizer = prepared(mode=mode)
    model.zero_grad()
    scaler.scale(loss_fn(model, batch(2))).backward()
    model.head.weight.grad[0, 0] = math.inf
    before = full_snapshot(model, optimizer)["learned"], snapshot(model, optimizer)["params"]
    scaler.step(optimizer)
    scaler.update()
    after = full_snapshot(model, optimizer)["learned"], snapshot(model, optimizer)["params"]
    assert_same(after, before)
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("mode", ["lookahead", "online"])
def test_a_scaled_run_equals_an_unscaled_one(mode):
    """Powers of two scale exactly; overflows in between are as if the batch had not been."""

    def run(scaled: bool):
        model, optimizer = make(
            modulator=Attention(init="xavier", layers=1),
            learning=learning_of(mode, every=2, lr=1e-2),
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        for index in range(9):
            torch.manual_seed(index)
            optimizer.zero_grad()
            scaler.scale(loss_fn(model, batch(index))).backward()
            if index % 4 == 1:
                if not scaled:
                    continue
                model.head.bias.grad.fill_(math.inf)
            scaler.step(optimizer)
            scaler.update()
            if optimizer.meta_update_due:
                assert meta_update(model, optimizer, index).applied
        return results(model, optimizer)

    assert_same(run(scaled=True), run(scaled=False))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -2.0], True),
        ([], True),
        ([3e38, 3e38], True),  # finite, though their sum is not
        ([math.inf, -math.inf], False),
        ([1.0, math.nan], False),
    ],
)
def test_finite_numbers_are_told_from_their_sum(values: list[float], expected: bool) -> None:
    assert _finite(None, torch.tensor(values)) is expected
