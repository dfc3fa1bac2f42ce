"""Eqs. 1-4: bit-identity with torch.optim.AdamW, and the twin's trajectory where alpha is not 1."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from metaadamw import Attention, Hypergradient, MetaAdamW, Off, fine_grained_groups
from tests.learning import learning_of
from tests.reference.adamw import metaadamw_step
from tests.reference.modulator import modulator_from_library
from tests.reference.state import fresh_state, groups_from_optimizer

STEPS = 40
PATHS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
DTYPES = [torch.float64, torch.float32]
SHAPES = [(5, 3), (5,), (2, 3, 4), (), (0, 4), (17,)]  # 0-d and zero-size parameters among them

path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def set_gradients(
    params: list[nn.Parameter], step: int, missing: Callable[[int, int], bool] | None = None
) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for index, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
        param.grad = None if missing is not None and missing(step, index) else grad


def assert_identical(ours: MetaAdamW, theirs: torch.optim.Optimizer) -> None:
    """Parameters, moments and step counts agree in every bit."""
    for own, other in zip(
        (p for group in ours.param_groups for p in group["params"]),
        (p for group in theirs.param_groups for p in group["params"]),
        strict=True,
    ):
        assert torch.equal(own, other)
        kept = set(ours.state.get(own, {})) - {"window_start", "displacement"}
        assert kept == set(theirs.state.get(other, {}))
        for key, value in theirs.state.get(other, {}).items():
            value = ours.state[own][key]
            assert torch.equal(value, theirs.state[other][key]), key
            assert value.dtype == theirs.state[other][key].dtype


def compare(
    options: dict[str, Any],
    dtype: torch.dtype,
    *,
    grouped: Callable[[list[nn.Parameter]], Any] = list,
    missing: Callable[[int, int], bool] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    **ours_only: Any,
) -> None:
    """40 steps of both optimizers on the same gradients, compared after each of them."""
    own, other = parameters(dtype), parameters(dtype)
    # A learning rate as a tensor is changed in place by schedulers: each needs its own.
    paper = {"modulator": "attention", "learning": "lookahead"}
    ours = MetaAdamW(grouped(own), **(paper | copy.deepcopy(options) | ours_only))
    theirs = torch.optim.AdamW(grouped(other), **copy.deepcopy(options))
    schedulers = [] if scheduler is None else [scheduler(ours), scheduler(theirs)]
    start = [p.detach().clone() for p in other]
    for step in range(STEPS):
        set_gradients(own, step, missing)
        set_gradients(other, step, missing)
        ours.step()
        theirs.step()
        assert_identical(ours, theirs)
        for each in schedulers:
            if isinstance(each, lr_scheduler.ReduceLROnPlateau):
                each.step(1.0)  # no improvement, ever
            else:
                each.step()
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert float(a["lr"]) == float(b["lr"])
            assert a["betas"] == b["betas"]
    assert all(not torch.equal(a, b) for a, b in zip(start, other, strict=True) if a.numel())


def two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": params[:2], "lr": 0.1, "betas": (0.8, 0.99), "weight_decay": 0.0},
        {"params": params[2:5], "eps": 1e-4},
        {"params": params[5:], "lr": 1e-4, "weight_decay": 0.5},
    ]


@dtypes
@path
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.05, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.3},
        {"weight_decay": 0.0},
        {"maximize": True},
    ],
    ids=["default", "other", "no-decay", "maximize"],
)
def test_bit_identity(path: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]) -> None:
    compare(path | options, dtype)


@dtypes
@path
def test_bit_identity_with_groups_and_missing_gradients(
    path: dict[str, Any], dtype: torch.dtype
) -> None:
    def missing(step: int, index: int) -> bool:
        late = index == 1 and step < 13  # its first gradient comes when others have 13 steps
        return late or (step + index) % 4 == 0 or step == 7  # and one step without any

    compare(path, dtype, grouped=two_groups, missing=missing)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": functools.partial(lr_scheduler.StepLR, step_size=7, gamma=0.3),
    "cosine": functools.partial(lr_scheduler.CosineAnnealingLR, T_max=30),
    "lambda": functools.partial(lr_scheduler.LambdaLR, lr_lambda=lambda t: 1 / (1 + t)),
    "warm-up": functools.partial(lr_scheduler.LinearLR, start_factor=0.01, total_iters=20),
    "plateau": functools.partial(lr_scheduler.ReduceLROnPlateau, patience=3),
    # The next two move beta1 as well.
    "one-cycle": functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS + 1),
    "cyclic": functools.partial(
        lr_scheduler.CyclicLR, base_lr=1e-3, max_lr=0.1, step_size_up=5, cycle_momentum=True
    ),
    "restarts": functools.partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=9),
}


@dtypes
@path
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_bit_identity_with_schedulers(
    path: dict[str, Any], dtype: torch.dtype, scheduler: Callable[[torch.optim.Optimizer], Any]
) -> None:
    compare(path, dtype, scheduler=scheduler, missing=lambda step, index: step % 5 == index)


@dtypes
@pytest.mark.parametrize("path", ["plain", "fused"])  # torch refuses it for foreach on the CPU
@pytest.mark.parametrize("scheduler", [None, SCHEDULERS["cosine"]], ids=["constant", "cosine"])
def test_bit_identity_with_a_learning_rate_tensor(
    path: str, dtype: torch.dtype, scheduler: Callable[[torch.optim.Optimizer], Any] | None
) -> None:
    compare(PATHS[path] | {"lr": torch.tensor(0.01)}, dtype, scheduler=scheduler)


@dtypes
@pytest.mark.parametrize(
    "ours_only",
    [
        {"modulator": Attention(init="xavier", alpha_range=0.0, beta_range=0.0)},
        {"modulator": Attention(features="enhanced", feature_gating=True, update_every=7)},
        {"learning": Hypergradient(lr=0.0)},
        {"learning": Off()},
    ],
    ids=["no-range", "enhanced", "online", "off"],
)
def test_bit_identity_does_not_depend_on_modulator_or_mode(
    dtype: torch.dtype, ours_only: dict[str, Any]
) -> None:
    compare({}, dtype, grouped=two_groups, **ours_only)


@path
@dtypes
def test_fine_grained_groups_train_like_one_group(path: dict[str, Any], dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 1))
    model = model.to(dtype)
    twin = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 1))
    twin = twin.to(dtype)
    twin.load_state_dict(model.state_dict())
    groups = fine_grained_groups(model)
    assert len(groups) > 3
    ours = MetaAdamW(groups, lr=0.01, learning="lookahead", **path)
    theirs = torch.optim.AdamW(twin.named_parameters(), lr=0.01, **path)
    for _ in range(STEPS):
        tokens = torch.randint(7, (6,))
        for each, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            each(tokens).pow(2).mean().backward()
            nn.utils.clip_grad_norm_(each.parameters(), 0.1)
            optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


@pytest.mark.parametrize("foreach", [False, True])
def test_capturable_on_the_cpu(foreach: bool) -> None:
    """The bias corrections come from float32 counters.

    Then 1 - beta2^t has an absolute error of 2^-24 or so, 6e-5 relative at t = 1, its root 3e-5;
    an update is about lr in size, so each step may differ by lr * 6e-5 at most.
    """
    own, other = parameters(), parameters()
    ours = MetaAdamW(own, lr=0.01, foreach=foreach, capturable=True, learning="lookahead")
    theirs = torch.optim.AdamW(other, lr=0.01, foreach=foreach)
    for step in range(STEPS):
        set_gradients(own, step)
        set_gradients(other, step)
        ours.step()
        theirs.step()
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=STEPS * 0.01 * 6e-5)


@dtypes
@path
def test_mixed_precision_in_one_group(path: dict[str, Any], dtype: torch.dtype) -> None:
    def mixed(params: list[nn.Parameter]) -> list[nn.Parameter]:
        other = torch.float32 if dtype == torch.float64 else torch.float64
        for param in params[::2]:
            param.data = param.data.to(other)
        return params

    compare(path, dtype, grouped=mixed)


@path
def test_bfloat16_parameters_keep_float32_moments(path: dict[str, Any]) -> None:
    """Each step is AdamW in float32 from the rounded parameter, rounded again: to the last bit."""
    own = parameters(torch.bfloat16)
    other = [nn.Parameter(p.detach().float()) for p in own]
    ours = MetaAdamW(own, lr=0.01, learning="lookahead", **path)
    theirs = torch.optim.AdamW(other, lr=0.01, **path)
    for step in range(STEPS):
        set_gradients(own, step)
        for a, b in zip(own, other, strict=True):
            assert a.grad is not None
            b.grad = a.grad.float()
        ours.step()
        theirs.step()
        for a, b in zip(own, other, strict=True):
            b.data = b.data.bfloat16().float()
            assert torch.equal(a.float(), b)
            for key in ("exp_avg", "exp_avg_sq"):
                assert ours.state[a][key].dtype == torch.float32
                assert torch.equal(ours.state[a][key], theirs.state[b][key])


@pytest.mark.parametrize("path", ["plain", "foreach"])
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64], ids=str)
def test_complex_parameters(path: str, dtype: torch.dtype) -> None:
    own = [nn.Parameter(torch.randn(3, 2, dtype=dtype)), nn.Parameter(torch.randn(4).double())]
    other = [nn.Parameter(p.detach().clone()) for p in own]
    ours = MetaAdamW(own, lr=0.01, learning="lookahead", **PATHS[path])
    theirs = torch.optim.AdamW(other, lr=0.01, **PATHS[path])
    for _ in range(STEPS):
        for a, b in zip(own, other, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
        assert_identical(ours, theirs)


# Where alpha and beta are not 1 -----------------------------------------------------------------


@path
@pytest.mark.parametrize("eps_inside_sqrt", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_trajectory_of_a_modulated_optimizer(
    path: dict[str, Any], eps_inside_sqrt: bool, maximize: bool
) -> None:
    """Algorithm 1 whole: features, modulation and step, 40 times, each fed by the step before.

    A step's rounding differs by a few units in 1e-16 and is fed forward 40 times: 1e-12.
    """
    params = parameters()
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    options = {"lr": 0.05, "modulator": Attention(init="xavier", alpha_range=2.0), **path}
    options |= {"maximize": maximize, "total_steps": STEPS, "seed": 3, "learning": "lookahead"}
    groups = [{**g, "depth": 0.5} for g in two_groups(params)]
    if path.get("fused") and eps_inside_sqrt:
        with pytest.raises(ValueError, match="eps_inside_sqrt"):
            MetaAdamW(groups, eps_inside_sqrt=True, **options)
        return
    groups[1]["eps"] = 0.3  # large enough for the place of eps to matter
    optimizer = MetaAdamW(groups, eps_inside_sqrt=eps_inside_sqrt, **options)
    twin = modulator_from_library(
        optimizer.modulator.state_dict(), feature_count=6, heads=1, alpha_range=2.0
    )
    reference_groups = groups_from_optimizer(optimizer, named)
    state = fresh_state(dict(named))
    factors = []
    for step in range(STEPS):
        set_gradients(params, step, missing=lambda step, index: (step + index) % 4 == 0)
        grads = {n: None if p.grad is None else p.grad * (1 - 2 * maximize) for n, p in named}
        optimizer.step()
        state, modulation, features = metaadamw_step(
            state,
            reference_groups,
            grads,
            twin,
            step=step + 1,
            total_steps=STEPS,
            eps_inside_sqrt=eps_inside_sqrt,
        )
        torch.testing.assert_close(optimizer.features, features, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            optimizer.modulation.alpha, modulation.alpha, rtol=1e-12, atol=1e-12
        )
        for name, param in named:
            expected = state.parameters[name]
            torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-12)
        factors.append(torch.stack([modulation.alpha, modulation.beta]))
    spread = torch.stack(factors)
    assert (spread - 1).abs().min() > 0
    assert spread.std(0).min() > 0  # they move from step to step
    # alpha and beta never reach what belongs to the user
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.05, 1e-4]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 1e-2, 0.5]


@pytest.mark.parametrize("path", ["foreach", "fused"])
@pytest.mark.parametrize("capturable", [False, True])
def test_paths_agree_where_alpha_is_not_one(path: str, capturable: bool) -> None:
    """In float64 to 1e-12 relative; a float32 counter (capturable) as in the test above."""
    own, other = parameters(), parameters()
    options: dict[str, Any] = {"lr": 0.01, "modulator": Attention(init="xavier")}
    first = MetaAdamW(own, **options, **PATHS["plain"])
    second = MetaAdamW(other, **options, **PATHS[path], capturable=capturable)
    for step in range(STEPS):
        set_gradients(own, step)
        set_gradients(other, step)
        first.step()
        second.step()
    tolerance = STEPS * 0.01 * 6e-5 if capturable else 1e-12
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=tolerance)
    assert not torch.equal(first.modulation.alpha, torch.ones(1, dtype=torch.float64))


DOUBLE = {"dtype": torch.float64}
ORDERS: dict[str, tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "gradient transposed": (lambda: torch.randn(6, 4, **DOUBLE), lambda g: g.T.contiguous().T),
    "parameter transposed": (lambda: torch.randn(4, 6, **DOUBLE).T, lambda g: g),
    "channels last": (
        lambda: torch.randn(2, 3, 4, 5, **DOUBLE).to(memory_format=torch.channels_last),
        lambda g: g.contiguous(),
    ),
    "columns of a wider matrix": (lambda: torch.randn(6, 8, **DOUBLE)[:, 2:5], lambda g: g),
}


@path
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", ["off", "online"])
def test_tensors_in_different_orders(path: dict[str, Any], order: str, mode: str) -> None:
    """torch's fused kernel, left to itself, mixes up their entries and writes between them."""
    make, reorder = ORDERS[order]
    torch.manual_seed(0)
    param = nn.Parameter(make())
    twin = nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
    beside = nn.Parameter(torch.ones(3, dtype=torch.float64))
    ours = MetaAdamW(
        [param, beside], lr=0.1, modulator="attention", learning=learning_of(mode), **path
    )
    theirs = MetaAdamW(
        [twin, copy.deepcopy(beside)], lr=0.1, modulator="attention", learning=learning_of(mode)
    )
    for step in range(4):
        set_gradients([twin, theirs.param_groups[0]["params"][1]], step)
        param.grad, beside.grad = reorder(twin.grad), theirs.param_groups[0]["params"][1].grad
        ours.step()
        theirs.step()
    torch.testing.assert_close(param, twin, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.modulation.alpha, theirs.modulation.alpha, rtol=1e-9, atol=0)


def test_what_lies_between_the_columns_of_a_parameter_stays() -> None:
    matrix = torch.zeros(6, 8)
    param = nn.Parameter(matrix[:, 2:5])
    param.grad = torch.ones(6, 3)
    MetaAdamW([param], fused=True, learning=Off()).step()
    assert matrix[:, 2:5].ne(0).all()
    assert matrix[:, :2].eq(0).all()
    assert matrix[:, 5:].eq(0).all()
