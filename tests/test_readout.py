"""Plain numbers of ``metrics``."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaadamw import Attention, Factors, Hypergradient, LookAhead, Off, TwoHorizons
from metaadamw.state.readout import plain_numbers
from tests.training import make, meta_update, train

FLOATS = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(-(2**62), 2**62),
            st.floats(allow_nan=False),
            st.integers(-(2**62), 2**62).map(torch.tensor),
            st.builds(
                lambda x, dtype: torch.tensor(x, dtype=dtype),
                st.floats(-60000, 60000),
                FLOATS,
            ),
        )
    )
)
def test_every_number_to_the_last_bit(numbers):
    given = {f"n{i}": number for i, number in enumerate(numbers)}
    plain = plain_numbers(given)
    assert list(plain) == list(given)
    for name, number in given.items():
        expected = number.item() if isinstance(number, torch.Tensor) else number
        assert (type(plain[name]), plain[name]) == (type(expected), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["off", "online", "lookahead", "preset"])
def test_metrics_as_float(mode, dtype):
    options = {"learning": LookAhead(every=2) if mode == "lookahead" else Hypergradient()}
    if mode == "off":
        options = {"learning": Off(), "modulator": Attention(init="xavier")}
    if mode == "preset":
        options = dict(zip(("modulator", "learning"), (Factors(), TwoHorizons()), strict=True))
    model, optimizer = make(dtype, **options)
    for step in range(4):
        plain, lazy = optimizer.metrics(as_float=True), optimizer.metrics()
        assert list(plain) == list(lazy)
        assert {type(value) for value in plain.values()} <= {int, float}
        assert all(plain[name] == float(value) for name, value in lazy.items())
        assert type(plain["meta/applied"]) is type(plain["meta/steps"]) is int
        assert json.loads(json.dumps(plain)) == plain
        train(model, optimizer, [step])
        if optimizer.meta_update_due:
            meta_update(model, optimizer, step)
    assert isinstance(optimizer.metrics(as_float=False)["meta/applied"], torch.Tensor)


def test_one_read(monkeypatch):
    _, optimizer = make(learning=Hypergradient())
    reads = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: reads.append(self.numel()) or cpu(self))
    optimizer.metrics(as_float=True)
    assert len(reads) == 1
    optimizer.metrics()
    assert len(reads) == 1


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_bad_input(value):
    _, optimizer = make()
    with pytest.raises(TypeError, match=f"as_float must be True or False, got {value!r}"):
        optimizer.metrics(as_float=value)
