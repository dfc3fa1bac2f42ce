"""A step in one pass on a CPU: the bits of torch, and what it knows for later."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaadamw import Attention, MetaAdamW, Off
from metaadamw.state.token import Token
from metaadamw.statistics.features import needed_products, tensor_columns
from metaadamw.statistics.known import Known
from metaadamw.statistics.layout import Layout
from metaadamw.update.adamw import adamw_plain
from metaadamw.update.one_pass import adamw_in_one_pass, rounding, torch_fused_adamw

SIZES = [1, 3, 4, 7, 8, 9, 15, 17, 511, 512, 513, 519, 16_383, 16_384, 16_385, 40_003]
PATHS = ["plain", "fused"]
SQUARES = (("param", "param"), ("exp_avg_sq", "exp_avg_sq"))


def a_token(sizes, dtype, seed=0, *, missing=(), betas=(0.9, 0.999), eps=1e-8, step=3.0) -> Token:
    generator = torch.Generator().manual_seed(seed)

    def values(scale: float) -> list[Tensor]:
        return [scale * torch.randn(n, generator=generator, dtype=dtype) for n in sizes]

    grads = [None if i in missing else g for i, g in enumerate(values(1.0))]
    squares = [v.square() for v in values(0.1)]
    steps = [torch.tensor(step) for _ in sizes]
    nothing: list[Any] = [None] * len(sizes)
    group = {"betas": betas, "eps": eps}
    return Token(group, values(1.0), grads, values(0.1), squares, steps, *[nothing] * 3)


def columns_of(token: Token) -> list[list[Tensor]]:
    there = [i for i, grad in enumerate(token.grads) if grad is not None]
    columns = (token.params, token.grads, token.exp_avgs, token.exp_avg_sqs, token.steps)
    return [[column[i].clone() for i in there] for column in columns]


groups = st.lists(
    st.builds(
        dict,
        sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=4),
        missing=st.sets(st.integers(0, 3), max_size=2),
        betas=st.tuples(st.sampled_from([0.0, 0.4, 0.5, 0.9]), st.sampled_from([0.9, 0.999])),
        eps=st.sampled_from([1e-8, 1e-3]),
        step=st.sampled_from([0.0, 1.0, 999.0]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(
    groups=groups,
    lr=st.floats(1e-6, 3.0),
    weight_decay=st.sampled_from([0.0, 0.1, 0.37]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    squares=st.booleans(),
    path=st.sampled_from(PATHS),
)
def test_the_bits_of_torch(groups, lr, weight_decay, dtype, squares, path):
    if rounding(path, dtype) is None:
        pytest.skip("torch was built otherwise; its own operations are used")
    tokens = [a_token(dtype=dtype, seed=i, **group) for i, group in enumerate(groups)]
    expected = [columns_of(token) for token in tokens]
    rates, decays = [lr * (g + 1) for g in range(len(tokens))], [weight_decay] * len(tokens)
    done, written = adamw_in_one_pass(path, tokens, rates, decays, squares=squares)
    assert done == any(columns[0] for columns in expected)
    for token, columns, rate in zip(tokens, expected, rates, strict=True):
        numbers = {"betas": token.group["betas"], "eps": token.group["eps"]}
        if columns[0] and path == "plain":
            adamw_plain(*columns, lr=rate, weight_decay=weight_decay, **numbers)
        elif columns[0]:
            torch._foreach_add_(columns[4], 1)
            torch_fused_adamw(*columns, (rate, weight_decay, *numbers["betas"], numbers["eps"]))
        for ours, theirs in zip(columns_of(token), columns, strict=True):
            assert all(map(torch.equal, ours, theirs))
    assert (written is not None) == (done and squares)


def steps(params: list[Tensor], count: int = 3, **options: Any) -> list[Tensor]:
    """Parameters and features after some steps."""
    options = {"modulator": Attention(init="xavier"), **options}
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:]}]
    optimizer = MetaAdamW(groups, learning=Off(), **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        optimizer.step()
    return [*(p.detach().clone() for p in params), optimizer.features, optimizer.modulation.alpha]


def some_params(dtype=torch.float32, shape=(3, 30)):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(n, *shape, generator=generator, dtype=dtype))
        for n in (3, 700, 1, 20)
    ]


@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_is_the_same_with_the_operations_of_torch(dtype, fused, monkeypatch):
    ours = steps(some_params(dtype), fused=fused)
    monkeypatch.setattr("metaadamw.update.adamw.adamw_in_one_pass", lambda *_, **__: (False, None))
    theirs = steps(some_params(dtype), fused=fused)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("fused", [True, None])
def test_memory_in_another_order_is_left_to_torch(fused, monkeypatch):
    def channels_last(params):
        for param in params:
            param.data = param.data.unsqueeze(-1).to(memory_format=torch.channels_last)
        return params

    ours = steps(channels_last(some_params()), fused=fused)
    monkeypatch.setattr("metaadamw.update.adamw.adamw_in_one_pass", lambda *_, **__: (False, None))
    assert all(map(torch.equal, ours, steps(channels_last(some_params()), fused=fused)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_kernel_on_one_thread_does_not_replace_torch_on_many(threads, path, monkeypatch):
    monkeypatch.setattr("metaadamw.update.one_pass.shares_threads", lambda: False)
    torch.set_num_threads(threads)
    done, _ = adamw_in_one_pass(path, [a_token([5], torch.float32)], [1.0], [0.0])
    assert done == (threads == 1 and rounding(path, torch.float32) is not None)


@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_state_of_another_size_is_an_error(name, fused):
    params = some_params()
    optimizer = MetaAdamW(params, fused=fused, learning="lookahead")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.state[params[1]][name] = torch.zeros(3)
    with pytest.raises((RuntimeError, ValueError), match=r"size|shape"):
        optimizer.step()


@pytest.mark.parametrize("fused", [True, None])
def test_autograd_is_told(fused):
    (param,) = params = [torch.nn.Parameter(torch.randn(5))]
    optimizer = MetaAdamW(params, fused=fused, learning="lookahead")
    for _ in range(2):
        param.grad = torch.ones(5)
        loss = (param**2).sum()
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("fused", [True, None])
def test_not_a_bit_depends_on_the_number_of_threads(fused):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(steps(some_params(), fused=fused))
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))


def test_a_build_that_rounds_otherwise_is_noticed():
    """Torch without AVX2 never fuses a product with a sum."""
    words = (
        "import torch, tests.kernels.test_adamw as t;"
        "from metaadamw.update.one_pass import rounding;"
        "print(*(rounding(p, d) for p in t.PATHS for d in (torch.float32, torch.float64)));"
        "ours = t.steps(t.some_params(), count=1), t.steps(t.some_params(), count=1, fused=True);"
    )
    done = subprocess.run(
        [sys.executable, "-c", words],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["None"] * 4


# What is known of the next statistics -------------------------------------------------------------


def statistics(known: Known, tokens: list[Token], layout: Layout) -> dict[Any, Tensor]:
    pairs = needed_products(MetaAdamW([torch.zeros(1)], learning="lookahead")._controller.table)
    return known.products(layout, tensor_columns(tokens), pairs)


@settings(max_examples=40, deadline=None)
@given(
    groups=groups,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    path=st.sampled_from(PATHS),
)
def test_what_is_known_is_what_would_be_read(groups, dtype, path):
    if rounding(path, dtype) is None:
        pytest.skip("torch was built otherwise; its own operations are used")
    tokens = [a_token(dtype=dtype, seed=i, **group) for i, group in enumerate(groups)]
    layout = Layout([{"params": token.params} for token in tokens], torch.device("cpu"), dtype)
    ones = [1.0] * len(tokens)
    known = Known()
    known.keep(adamw_in_one_pass(path, tokens, ones, ones, squares=True)[1])
    for token in tokens:  # those of the next step
        token.grads = [torch.randn_like(p) for p in token.params]
    read = statistics(Known(), tokens, layout)
    ours = statistics(known, tokens, layout)
    assert ours.keys() == read.keys()
    assert all(torch.equal(ours[pair], read[pair]) for pair in read)


@pytest.mark.parametrize("fused", [True, None])
def test_it_is_not_read_again(fused, monkeypatch):
    if rounding("fused" if fused else "plain", torch.float32) is None:
        pytest.skip("torch was built otherwise; its own operations are used")
    read = []

    def products(self, columns, pairs):
        read.append(
            {name for name, column in columns.items() if any(t is not None for t in column)}
        )
        return whole(self, columns, pairs)

    whole = Layout.products
    monkeypatch.setattr(Layout, "products", products)
    steps(some_params(), fused=fused)
    everything = {"grad", "exp_avg", "param", "exp_avg_sq"}
    assert read == [everything, {"grad", "exp_avg"}, {"grad", "exp_avg"}]
