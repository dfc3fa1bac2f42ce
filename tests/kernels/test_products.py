"""The kernel behind ``Layout.products`` against torch's operations, over whatever tensors come."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaadamw import Attention, Hypergradient, MetaAdamW
from metaadamw.kernels.cpu import library
from metaadamw.learning.hypergradient import ONLINE_PRODUCTS
from metaadamw.statistics.features import needed_products, tensor_columns
from metaadamw.statistics.layout import ZEROS, Layout
from metaadamw.update.directions import LastDirections, NextDirections

NAMES = ("a", "b", "c")
PAIRS = [*itertools.combinations_with_replacement(NAMES, 2), ("a", ZEROS), ("c", ZEROS)]
# A float32 sum over 512 entries at a time, eight or more side by side: up to 64 roundings of 6e-8.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-14}


def torch_products(layout, columns, pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metaadamw.statistics.layout.tensor_products", lambda *_: None)
        return layout.products(columns, pairs)


def random_columns(sizes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def entry(size: int) -> Tensor:
        values = torch.randn(size, generator=generator, dtype=dtype)
        return values * (torch.rand(size, generator=generator) < 0.8)

    return {name: [entry(size) for size in sizes] for name in NAMES}


def layout_of(sizes, dtype):
    params = [torch.zeros(n, dtype=dtype) for n in sizes]
    return params, Layout([{"params": params}], torch.device("cpu"), dtype)


def assert_equal_products(ours, theirs, columns, dtype):
    for x, y in ours:
        if y == ZEROS:
            assert torch.equal(ours[x, y], theirs[x, y])
            continue
        sizes = [
            0.0 if a is None or b is None else (a.abs() * b.abs()).sum().item()
            for a, b in zip(columns[x], columns[y], strict=True)
        ]
        error = (ours[x, y] - theirs[x, y]).abs()
        assert (error <= TOLERANCE[dtype] * torch.tensor(sizes, dtype=dtype)).all()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([1, 2, 31, 511, 512, 513, 16_383, 16_384, 16_385, 40_000]), max_size=6
    ).map(lambda sizes: [3, *sizes]),
    missing=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5)), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_products_and_counts(sizes, missing, dtype, seed):
    assert library(dtype) is not None
    columns = random_columns(sizes, dtype, seed)
    params, layout = layout_of(sizes, dtype)
    for name, i in missing:
        if i < len(sizes):
            columns[name][i] = None
    columns["param"] = params
    theirs = torch_products(layout, columns, PAIRS)
    assert_equal_products(layout.products(columns, PAIRS), theirs, columns, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("eps_inside_sqrt", [False, True])
@pytest.mark.parametrize("features", ["basic", "enhanced", "scale_free"])
def test_those_of_an_optimizer(dtype, online, eps_inside_sqrt, features):
    params = [torch.nn.Parameter(torch.randn(n, 7, dtype=dtype)) for n in (3, 900, 1, 5000)]
    groups = [{"params": params[:2], "eps": 1e-3, "betas": (0.8, 0.9)}, {"params": params[2:]}]
    optimizer = MetaAdamW(
        groups,
        modulator=Attention(features=features),
        learning=Hypergradient(lr=0.1),
        eps_inside_sqrt=eps_inside_sqrt,
    )
    for step in range(3):
        for i, param in enumerate(params):
            param.grad = None if i == step else torch.randn_like(param)
        optimizer.step()
    learner, tokens = optimizer._controller, optimizer._tokens()
    columns, pairs = tensor_columns(tokens), needed_products(learner.table)
    if online:
        columns["direction"] = LastDirections(
            tokens, learner.learning.last, eps_inside_sqrt=eps_inside_sqrt
        )
        pairs = list(dict.fromkeys([*pairs, *ONLINE_PRODUCTS]))
    as_tensors = {
        name: [column(i) if callable(column) else column[i] for i in range(len(params))]
        for name, column in columns.items()
    }
    theirs = torch_products(learner.layout, columns, pairs)
    assert_equal_products(learner.layout.products(columns, pairs), theirs, as_tensors, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("missing", [[], [1], [0, 1, 2, 3]], ids=str)
def test_with_the_direction_of_the_next_step(dtype, missing):
    params = [torch.nn.Parameter(torch.randn(n, 7, dtype=dtype)) for n in (3, 900, 1, 5000)]
    groups = [{"params": params[:2], "eps": 1e-3, "betas": (0.8, 0.9)}, {"params": params[2:]}]
    optimizer = MetaAdamW(groups, fused=True, learning="lookahead")
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    grads = [None if i in missing else torch.randn_like(p) for i, p in enumerate(params)]
    directions = NextDirections(
        optimizer._tokens(grads), stored_moments=False, eps_inside_sqrt=False
    )
    assert directions.plain
    columns = {"a": [torch.randn_like(p) for p in params], "b": directions}
    pairs = [("a", "b"), ("b", "b")]
    layout = optimizer._controller.layout
    found, expected = layout.products(columns, pairs), torch_products(layout, columns, pairs)
    as_tensors = {"a": columns["a"], "b": [directions(i) for i in range(len(params))]}
    assert [t is None for t in as_tensors["b"]] == [i in missing for i in range(len(params))]
    assert_equal_products(found, expected, as_tensors, dtype)


def test_not_a_bit_depends_on_the_number_of_threads():
    sizes = [100_000, 3, 70_000]
    columns = random_columns(sizes, torch.float32)
    _, layout = layout_of(sizes, torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.stack(list(layout.products(columns, PAIRS).values())))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad):
    sizes = [2000, 20]
    columns = random_columns(sizes, torch.float32)
    _, layout = layout_of(sizes, torch.float32)
    columns["a"][0][1777] = bad
    products = layout.products(columns, PAIRS)
    assert products["a", "a"].isfinite().tolist() == [False, True]
    assert products["a", "b"].isfinite().tolist() == [False, True]
    assert products["b", "b"].isfinite().all()


def test_memory_in_another_order_is_left_to_torch():
    columns = random_columns([600, 600], torch.float32)
    columns = {n: [t.view(20, 30) for t in column] for n, column in columns.items()}
    _, layout = layout_of([600, 600], torch.float32)
    expected = layout.products(columns, PAIRS)
    columns["b"][1] = columns["b"][1].T.contiguous().T  # the same numbers
    assert not columns["b"][1].is_contiguous()
    assert_equal_products(layout.products(columns, PAIRS), expected, columns, torch.float32)


def test_half_precision_and_empty_tensors():
    sizes = [600, 0, 5]
    columns = random_columns(sizes, torch.float32)
    params, layout = layout_of(sizes, torch.float32)
    expected = layout.products(columns, PAIRS)
    assert all(product[1] == 0 for product in expected.values())
    halves = {n: [t.bfloat16() for t in column] for n, column in columns.items()}
    layout = Layout([{"params": [p.bfloat16() for p in params]}], layout.device, layout.dtype)
    found = layout.products(halves, PAIRS)
    for pair in PAIRS:  # entries lose all but eight bits
        torch.testing.assert_close(found[pair], expected[pair], rtol=0.1, atol=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_accelerators_way(dtype, monkeypatch):
    sizes = [600, 5, 0, 70]
    columns = random_columns(sizes, dtype)
    columns["b"][1] = columns["c"][3] = None
    if dtype == torch.float32:
        columns["a"][3] = columns["a"][3].half()
    columns["param"], layout = layout_of(sizes, dtype)
    expected = torch_products(layout, columns, PAIRS)
    whole, norms = torch._foreach_norm, []

    def foreach_norm(tensors):
        norms.append(len(tensors))
        return whole(tensors)

    monkeypatch.setattr(torch, "_foreach_norm", foreach_norm)
    layout.batched = True
    found = torch_products(layout, columns, PAIRS)
    assert sorted(norms) == ([3, 3, 3] if dtype == torch.float32 else [3, 3, 4])
    for pair in PAIRS:
        torch.testing.assert_close(found[pair], expected[pair])
