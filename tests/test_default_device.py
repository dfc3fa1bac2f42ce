"""A default device of the user's: what belongs on the CPU or beside a parameter stays there."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from metaadamw import (
    Attention,
    Factors,
    Hypergradient,
    LookAhead,
    MetaAdamW,
    Off,
    PriorityUncertaintyWeighting,
    Schedule,
    TwoHorizons,
    Windows,
)
from metaadamw.modulators.attention import AttentionModulator
from metaadamw.state.streams import BatchOrder
from metaadamw.update.one_pass import rounding
from tests.training import Batch, assert_same, batch, loss_fn, make, results

XAVIER = Attention(init="xavier", features="enhanced", layers=1)
ONLINE = Hypergradient(lr=1e-2)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"modulator": XAVIER, "learning": ONLINE, "foreach": False},
    "foreach": {"modulator": XAVIER, "learning": ONLINE, "foreach": True},
    "fused": {"modulator": XAVIER, "learning": ONLINE, "fused": True},
    "fused, known squares": {
        "modulator": Attention(init="xavier", features="scale_free", layers=1),
        "learning": Off(),
        "fused": True,
    },
    "windows": {"modulator": XAVIER, "learning": Windows(window=2, mean_speed=1.0)},
    "no attention": {
        "modulator": Factors(alpha_range=1.0, scale="linear", update_every=1),
        "learning": Windows(window=2, mean_speed=1.0),
    },
    "two horizons": {
        "modulator": Factors(update_every=2, alpha_range=1.0, scale="linear"),
        "learning": TwoHorizons(window=3, consecutive_lr=0.05, mean_speed=1.0),
    },
    "lookahead": {"modulator": XAVIER, "learning": LookAhead(every=2, lr=1e-2)},
}
META = torch.device("meta")


def train(model: nn.Module, optimizer: MetaAdamW, data: list[Batch]) -> None:
    for index, each in enumerate(data):
        model.zero_grad()
        if index == 2:
            model.head.requires_grad_(False)  # some squares are known, others not
        loss_fn(model, each).backward()
        optimizer.step()
        if optimizer.meta_update_due:
            assert optimizer.update_attention(model, loss_fn, *data[:3]).applied


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_same_bits(options):
    """Of training, of a checkpoint and of what comes after it."""
    data = [batch(index) for index in range(8)]
    model, _ = make()

    def run(model: nn.Module) -> Any:
        groups = [{"params": [p]} for p in model.parameters()]
        optimizer = MetaAdamW(groups[:-1], lr=1e-2, **options)
        optimizer.add_param_group(groups[-1])
        train(model, optimizer, data[:4])
        again = MetaAdamW(groups, lr=1e-2, **options)
        again.load_state_dict(optimizer.state_dict())
        train(model, again, data[4:])
        return results(model, again)

    other = copy.deepcopy(model)
    torch.manual_seed(0)
    expected = run(model)
    rounding.cache_clear()  # what was found out before was found out elsewhere
    torch.manual_seed(0)
    with META:
        found = run(other)
    assert_same(found, expected)


def test_a_schedule_and_the_moments_of_adamw(tmp_path):
    Schedule(("0",), torch.tensor([[0.5]]), torch.tensor([[1.5]])).save(tmp_path / "schedule.json")
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    adamw = AdamW([param])
    adamw.step()
    state = adamw.state_dict()
    state["state"][0]["step"] = 1.0  # a number, as older versions of torch have it
    with META:
        schedule = Schedule.load(tmp_path / "schedule.json")
        optimizer = MetaAdamW([{"params": [param], "name": "0"}], modulator=schedule)
        with pytest.warns(UserWarning, match="no learned part"):
            optimizer.load_state_dict(state)
        optimizer.step()
    assert optimizer.modulation.alpha.tolist() == [0.5]
    assert float(optimizer.state[param]["step"]) == 2.0


def test_the_step_that_only_creates_state():
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.zeros(3)
    with META:
        optimizer = MetaAdamW([param], lr=0.0, learning="lookahead")
        optimizer.step()
    assert optimizer.steps == 0
    assert param in optimizer.state


def test_squares_that_are_written_are_known():
    """Of a device they would never be believed, and all read again."""
    model, optimizer = make(**OPTIONS["fused, known squares"])
    data = batch(0)
    loss_fn(model, data).backward()
    with META:
        optimizer.step()
    written = optimizer._controller.known._written
    assert rounding("fused", torch.float32) is None or written.squares.is_cpu


@pytest.mark.parametrize("stream", ["order", None])
def test_the_order_of_batches(stream):
    with META:
        order = BatchOrder(10, 4, 3, 0, stream)
        found = [order[n] for n in range(6)]
    order = BatchOrder(10, 4, 3, 0, stream)
    assert_same(found, [order[n] for n in range(6)])


def test_modules_of_their_own_are_on_the_default_device():
    with META:
        modules = (AttentionModulator(6, 3, Attention()), PriorityUncertaintyWeighting([1.0, 2.0]))
    for module in modules:
        assert {t.device for t in module.state_dict().values()} == {META}


@pytest.mark.parametrize("capturable", [False, True])
def test_steps_are_counted_whatever_the_default_precision_is(capturable):
    """bfloat16 knows no odd number above 256."""
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer = MetaAdamW([param], capturable=capturable, learning="lookahead")
        state = {"step": 257.0, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
        adamw = AdamW([param]).state_dict() | {"state": {0: state}}
        with pytest.warns(UserWarning, match="no learned part"):
            optimizer.load_state_dict(adamw)
        optimizer.step()
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(optimizer.state[param]["step"]) == 259.0
    expected = 2 / (1 + math.exp(-259 / 1000)) - 1
    # The exponential in float32.
    assert math.isclose(float(optimizer.features[0, -1]), expected, rel_tol=1e-6)
