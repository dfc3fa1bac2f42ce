"""The kernel behind ``online_signal`` against torch's operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaadamw.learning.hypergradient import ONLINE_PRODUCTS, online_signal
from metaadamw.statistics.layout import Layout
from metaadamw.update.directions import LastStep

NUMBERS = st.sampled_from([0.0, 1e-30, 1e-6, 0.3, 1.0, 40.0])


def products_of(x, dtype):
    """From vectors g, d, θ of every tensor, so that the products fit together."""
    vectors = dict(zip(("grad", "direction", "param"), x, strict=True))
    return {(a, b): (vectors[a] * vectors[b]).sum(1).to(dtype) for a, b in ONLINE_PRODUCTS}


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=4, max_size=4),
    rates=st.lists(st.sampled_from([0.0, 1e-3, 0.1]), min_size=2, max_size=2),
    decays=st.lists(st.sampled_from([0.0, 0.01, 1.0]), min_size=2, max_size=2),
    moved=st.lists(st.booleans(), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
    poison=st.sampled_from([None, float("nan"), float("inf")]),
)
def test_the_same_signal(sizes, rates, decays, moved, dtype, seed, poison):
    torch.manual_seed(seed)
    params = [torch.zeros(3, dtype=dtype) for _ in range(4)]
    layout = Layout([{"params": params[:2]}, {"params": params[2:]}], torch.device("cpu"), dtype)
    x = (
        torch.randn(3, 4, 3, dtype=torch.float64)
        * torch.tensor(sizes, dtype=torch.float64).T[..., None]
    )
    if poison is not None:
        x[0, 1, 1] = poison
    products = products_of(x, dtype)
    last = LastStep(
        torch.zeros(2, 1),
        torch.tensor(rates, dtype=dtype),
        torch.tensor(decays, dtype=dtype),
        tuple(moved),
        ((0.9, 0.99, 1e-8),) * 2,
    )
    ours = online_signal(products, last, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metaadamw.learning.hypergradient.signal", lambda *_: None)
        theirs = online_signal(products, last, layout)
    # The same operations; torch may take a root of several numbers at once and round it otherwise.
    close = {"rtol": 1e-5 if dtype == torch.float32 else 1e-13, "atol": 0.0, "equal_nan": True}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **close)
