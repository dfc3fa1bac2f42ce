"""Float32 master weights in two halves: the same numbers as masters kept whole, to the last bit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaadamw import Attention, MetaAdamW
from metaadamw.state.master_weights import LOW_BITS, join, split
from tests.learning import learning_of
from tests.training import assert_same, make, meta_update, results, train

XAVIER = Attention(init="xavier", layers=1)
paths = pytest.mark.parametrize(
    "path", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str
)


def all_kinds_of_numbers() -> Tensor:
    """Random bit patterns, and every upper half with the lower halves where rounding turns."""
    random = torch.randint(-(2**31), 2**31, (200_000,), dtype=torch.int64)
    uppers = torch.arange(-(2**15), 2**15).repeat_interleave(6) * 2**16
    lowers = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]).repeat(2**16)
    bits = torch.cat([random, uppers + lowers]).to(torch.int32)
    return bits.view(torch.float32)


def test_the_halves_are_the_number() -> None:
    numbers = all_kinds_of_numbers()
    rounded, low_bits = split(numbers)
    assert (rounded.dtype, low_bits.dtype) == (torch.bfloat16, torch.int16)
    known = ~numbers.isnan()
    assert_same(join(rounded, low_bits)[known], numbers[known])
    assert rounded[~known].isnan().all()
    assert join(rounded, low_bits)[~known].isnan().all()


def test_the_upper_half_is_the_nearest() -> None:
    numbers = all_kinds_of_numbers()
    numbers = numbers[~numbers.isnan()]
    rounded, low_bits = split(numbers)
    tie = low_bits == -(2**15)
    assert_same(rounded[~tie], numbers.bfloat16()[~tie])
    assert (rounded[tie].float().abs() > numbers[tie].abs()).all()


def test_a_parameter_that_was_written_to() -> None:
    """The old lower half moves the new number by half a unit at most, and never a zero."""
    numbers = torch.tensor([0.0, -0.0, 1.0, -3.0, 2.0**-126, 1e38]).bfloat16()
    numbers, lower = numbers.repeat_interleave(4), torch.tensor([-(2**15), -1, 1, 2**15 - 1])
    joined = join(numbers, lower.to(torch.int16).repeat(6))
    zeros = numbers == 0
    assert (joined[zeros].abs() < torch.finfo(torch.float32).tiny).all()
    assert ((joined / numbers.float())[~zeros] - 1).abs().max() <= 2**-8


def bfloat16_parameters() -> tuple[list[nn.Parameter], list[Tensor]]:
    values = [torch.randn(shape) for shape in ((3, 4), (5,), (), (0, 2))]
    return [nn.Parameter(v.bfloat16()) for v in values], values


@paths
def test_masters_in_two_halves_are_masters(path: dict[str, bool]) -> None:
    """AdamW on whole float32 masters, of which the model sees the rounded values."""
    params, _ = bfloat16_parameters()
    masters = [nn.Parameter(p.detach().float()) for p in params]
    ours = MetaAdamW(params, lr=1e-4, master_weights=True, learning="lookahead", **path)
    theirs = torch.optim.AdamW(masters, lr=1e-4, **path)
    for step in range(50):
        for param, master in zip(params, masters, strict=True):
            rounded = split(master.detach())[0]
            assert_same(param.detach(), rounded)
            param.grad = (rounded * rounded).sin() + 0.1 * step
            master.grad = param.grad.float()
        ours.step()
        theirs.step()
    for param, master in zip(params, masters, strict=True):
        assert_same(join(param.detach(), ours.state[param][LOW_BITS]), master.detach())


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_modulated_run_is_that_of_masters(mode: Any) -> None:
    """α and β come from the rounded parameters; what they scale is not rounded."""
    params, _ = bfloat16_parameters()
    options: dict[str, Any] = {"modulator": XAVIER, "learning": learning_of(mode, lr=1e-2)}
    ours = MetaAdamW([{"params": [p]} for p in params], lr=1e-3, master_weights=True, **options)
    masters = [p.detach().float() for p in params]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in masters]
    for t in range(1, 21):
        for param in params:
            param.grad = (3 * param.detach()).cos()
        grads = [p.grad.float() for p in params if p.grad is not None]
        ours.step()
        alphas, betas = ours.modulation.alpha, ours.modulation.beta
        for g, (master, grad, (m, v)) in enumerate(zip(masters, grads, moments, strict=True)):
            m.lerp_(grad, 0.1)
            v.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
            direction = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            master -= 1e-3 * alphas[g] * (direction + betas[g] * 1e-2 * master)
    for param, master in zip(params, masters, strict=True):
        # 20 steps, each rounded in its own order
        torch.testing.assert_close(
            join(param.detach(), ours.state[param][LOW_BITS]), master, rtol=1e-5, atol=1e-7
        )


def test_nothing_is_too_small() -> None:
    """Steps of 2e-5, half of it decay, from 1, where the spacing of bfloat16 is 4e-3."""
    moved = []
    for master_weights in (False, True):
        param = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = MetaAdamW(
            [param],
            lr=1e-5,
            weight_decay=1.0,
            master_weights=master_weights,
            eps=0.0,
            learning="lookahead",
        )
        for _ in range(200):
            param.grad = torch.ones_like(param)
            optimizer.step()
        kept = optimizer.state[param].get(LOW_BITS, torch.zeros(4, dtype=torch.int16))
        moved.append(1 - join(param.detach(), kept))
    assert_same(moved[0], torch.zeros(4))
    torch.testing.assert_close(moved[1], torch.full((4,), 4e-3), rtol=1e-2, atol=0)


def test_bytes_of_state() -> None:
    param = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = MetaAdamW([param], master_weights=True, learning="lookahead")
    param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state[param]
    size = sum(t.nbytes for name, t in state.items() if name != "step")
    assert size == (4 + 4 + 2) * param.numel()


def bfloat16_run(mode: Any, **options: Any) -> tuple[Any, MetaAdamW]:
    meta = learning_of(mode, every=2, lr=1e-2)
    settings = {"lr": 1e-4, "master_weights": True, "modulator": XAVIER, "learning": meta}
    return make(torch.bfloat16, **{**settings, **options})


def steps(model: nn.Module, optimizer: MetaAdamW, indices: range) -> None:
    for index in indices:
        torch.manual_seed(index)
        train(model, optimizer, [index])
        if optimizer.meta_update_due:
            meta_update(model, optimizer, index)


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_resume(mode: Any) -> None:
    model, optimizer = bfloat16_run(mode)
    steps(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save(results(model, optimizer), file)
    steps(model, optimizer, range(5, 10))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other_model, other = bfloat16_run(mode)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    steps(other_model, other, range(5, 10))
    assert_same(results(other_model, other), results(model, optimizer))
    assert any(bool(s[LOW_BITS].any()) for s in other.state.values())
    copied_model, copied = copy.deepcopy((model, optimizer))
    steps(model, optimizer, range(10, 13))
    steps(copied_model, copied, range(10, 13))
    assert_same(results(copied_model, copied), results(model, optimizer))


def test_checkpoints_with_and_without() -> None:
    """Switched on, the halves start at zero; switched off, they are dropped."""
    model, optimizer = bfloat16_run("online")
    steps(model, optimizer, range(3))
    off_model, off = bfloat16_run("online", master_weights=False)
    off.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not any(LOW_BITS in state for state in off.state.values())
    off_model.load_state_dict(model.state_dict())
    steps(off_model, off, range(3, 6))
    on_model, on = bfloat16_run("online")
    on.load_state_dict(copy.deepcopy(off.state_dict()))
    steps(on_model, on, range(6, 9))
    assert all(LOW_BITS in state for state in on.state.values())


def test_a_damaged_lower_half_is_refused() -> None:
    model, optimizer = bfloat16_run("online")
    steps(model, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][LOW_BITS] = torch.zeros(2, dtype=torch.int16)
    with pytest.raises(ValueError, match=LOW_BITS):
        optimizer.load_state_dict(saved)


def test_a_meta_update_leaves_the_lower_halves() -> None:
    model, optimizer = bfloat16_run("lookahead")
    train(model, optimizer, range(2))
    before = copy.deepcopy(torch.optim.Optimizer.state_dict(optimizer))
    assert meta_update(model, optimizer).applied
    assert_same(torch.optim.Optimizer.state_dict(optimizer), before)


def test_wider_parameters_need_none() -> None:
    runs = []
    for master_weights in (False, True):
        model, optimizer = make(master_weights=master_weights)
        train(model, optimizer, range(3))
        runs.append({"model": model.state_dict(), "state": optimizer.state_dict()["state"]})
    assert_same(runs[1], runs[0])


def test_mixed_with_float32_in_one_group() -> None:
    params = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.bfloat16, torch.float32)]
    optimizer = MetaAdamW(params, lr=1e-4, master_weights=True, learning="lookahead")
    for _ in range(10):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    half, full = params
    assert_same(join(half.detach(), optimizer.state[half][LOW_BITS]), full.detach())


def test_float16_is_refused() -> None:
    with pytest.raises(ValueError, match=r"param_groups\[0\].params.*float16"):
        MetaAdamW(
            [nn.Parameter(torch.ones(2, dtype=torch.float16))],
            master_weights=True,
            learning="lookahead",
        )
    with pytest.raises(TypeError, match=r"master_weights.*'yes'"):
        MetaAdamW([nn.Parameter(torch.ones(2))], master_weights="yes", learning="lookahead")  # type: ignore[arg-type]
