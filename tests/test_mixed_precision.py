"""Autocast and loss scaling: statistics of unscaled gradients, skipped steps advance nothing."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaadamw import Attention, Hypergradient, LookAhead, MetaAdamW, fine_grained_groups
from tests.training import assert_same, batch, full_snapshot, loss_fn, make, meta_update, results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
XAVIER = Attention(init="xavier", layers=1)
ONLINE = {"modulator": XAVIER, "learning": Hypergradient(lr=1e-2)}
LOOKAHEAD = {"modulator": XAVIER, "learning": LookAhead(every=2, lr=1e-2)}
modes = pytest.mark.parametrize("options", [ONLINE, LOOKAHEAD], ids=["online", "lookahead"])
paths = pytest.mark.parametrize(
    "path",
    [{"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True}],
    ids=str,
)


def scaler_of(scale: float, **options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000, **options)


@modes
@paths
@pytest.mark.parametrize("clip", [False, True])
def test_the_scale_is_not_seen(options, path, clip):
    """A power of two scales and unscales without rounding: the same run, with any scale or none."""

    def run(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
        model, optimizer = make(**options, **path)
        for index in range(8):
            optimizer.zero_grad()
            loss = loss_fn(model, batch(index))
            (loss if scaler is None else scaler.scale(loss)).backward()
            if clip:
                if scaler is not None:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if optimizer.meta_update_due:
                meta_update(model, optimizer, index)
        return results(model, optimizer)

    torch.manual_seed(0)
    expected = run(None)
    for scale in (1.0, 2.0**16):
        torch.manual_seed(0)
        assert_same(run(scaler_of(scale)), expected)


@pytest.mark.parametrize("path", [{}, {"fused": True}], ids=str)
def test_the_scaler_unscales_for_us(path):
    """It leaves that to optimizers that say they can, and asks old ones for a ``grad_scaler``."""
    _, optimizer = make(**path)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    assert "grad_scaler" not in inspect.signature(optimizer.step).parameters


@modes
@paths
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_skipped_step_advances_nothing(options, path, value):
    """Nor does it make a meta-update due; the step after it goes on from the one before."""

    def run(overflow: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        model, optimizer = make(**options, **path)
        scaler = scaler_of(4.0, backoff_factor=0.5)
        for index in range(6):
            for skipped in (True, False) if overflow and index in (0, 2, 3) else (False,):
                stream = torch.get_rng_state()
                optimizer.zero_grad()
                model.train(not skipped)  # batch norm keeps its counts
                scaler.scale(loss_fn(model, batch(index))).backward()
                if skipped:
                    model.head.weight.grad[0, 0] = value
                    before = full_snapshot(model, optimizer)
                    due = optimizer.meta_update_due
                scaler.step(optimizer)
                if skipped:
                    after = full_snapshot(model, optimizer)
                    unscaled = {"grads": None, "same_grads": None}
                    assert_same(after | unscaled, before | unscaled)
                    assert optimizer.meta_update_due == due
                    torch.set_rng_state(stream)
                scaler.update()
            if optimizer.meta_update_due:
                meta_update(model, optimizer, index)
        return results(model, optimizer)

    assert_same(run(overflow=True), run(overflow=False))


@pytest.mark.parametrize(
    ("objective", "hvp"),
    [
        ("gradient_alignment", "exact"),
        ("gradient_alignment", "finite_difference"),
        ("loss_decrease", "auto"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_meta_updates_under_autocast(dtype, objective, hvp):
    """The modulator moves as in single precision, up to the rounding of the loss."""
    # Large enough for the loss of 256 rows to average over its rounding errors.
    torch.manual_seed(0)
    rows = torch.randn(3, 256, 16, device=DEVICE)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x).float() - x.sin().sum(1, keepdim=True)).square().mean()

    def movement(autocast: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 1))
        model.to(DEVICE)
        meta = LookAhead(every=10, lr=1.0, weight_decay=0.0, hvp=hvp, objective=objective)
        optimizer = MetaAdamW(fine_grained_groups(model), lr=1e-2, modulator=XAVIER, learning=meta)
        for _ in range(10):
            optimizer.zero_grad()
            loss(model, rows[0]).backward()
            optimizer.step()
        before = {n: p.detach().clone() for n, p in optimizer.modulator.named_parameters()}
        with torch.autocast(DEVICE, dtype=dtype, enabled=autocast):
            with torch.no_grad():
                output = model(rows[0])
            assert optimizer.update_attention(model, loss, *rows).applied
            # Autocast keeps the weights that it has cast: none of another θ may be left.
            with torch.no_grad():
                assert_same(model(rows[0]), output)
        return {n: p.detach() - before[n] for n, p in optimizer.modulator.named_parameters()}

    exact, rounded = movement(False), movement(True)
    error = sum((exact[n] - rounded[n]).square().sum() for n in exact) ** 0.5
    size = sum(t.square().sum() for t in exact.values()) ** 0.5
    assert error <= {torch.bfloat16: 0.04, torch.float16: 0.002}[dtype] * size


def test_the_training_loss_serves_after_unscaling():
    """``training_loss=`` takes what is in .grad, so the scaler's unscale_ comes first."""

    def learned(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
        model, optimizer = make(modulator=XAVIER, learning=LookAhead(every=1, lr=1e-2))
        torch.manual_seed(0)
        loss = loss_fn(model, batch(0))
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        optimizer.update_attention(
            model, loss_fn, batch2=batch(1), val_batch=batch(2), training_loss=loss
        )
        return optimizer.meta_state_dict()

    assert_same(learned(scaler_of(2.0**12)), learned(None))
