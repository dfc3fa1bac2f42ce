"""A model that moves after its optimizer was built: everything that learns goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    Schedule,
    TwoHorizons,
    Windows,
)
from tests.distributed.processes import Processes
from tests.fake_devices import moved_steps
from tests.training import Net, assert_same, backward, meta_update, results

XAVIER = Attention(init="xavier", layers=1)
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "off": lambda: {"modulator": XAVIER, "learning": Off()},
    "online": lambda: {"modulator": XAVIER, "learning": Hypergradient()},
    "windows": lambda: {"modulator": XAVIER, "learning": Windows(window=2, mean_speed=1.0)},
    "no attention": lambda: {
        "modulator": Factors(alpha_range=1.0, scale="linear", update_every=1),
        "learning": Windows(window=2, mean_speed=1.0),
    },
    "two horizons": lambda: {
        "modulator": Factors(update_every=2, alpha_range=1.0, scale="linear"),
        "learning": TwoHorizons(window=3, consecutive_lr=0.05, mean_speed=1.0),
    },
    "lookahead": lambda: {"modulator": XAVIER, "learning": LookAhead(every=2)},
    "schedule": lambda: {
        "modulator": Schedule(("a", "b"), torch.tensor([[0.5, 1.5]]), torch.tensor([[1.5, 0.5]]))
    },
}
options = pytest.mark.parametrize("kind", OPTIONS)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)


def build(model: Net, kind: str, **more: Any) -> MetaAdamW:
    groups = [
        {"params": list(model.layers.parameters()), "name": "a"},
        {"params": [*model.norm.parameters(), *model.head.parameters()], "name": "b"},
    ]
    model.embedding.requires_grad_(False)
    return MetaAdamW(groups, lr=1e-2, **OPTIONS[kind](), **more)


def train(model: Net, optimizer: MetaAdamW, indices: range) -> None:
    for index in indices:
        backward(model, index)
        optimizer.step()
        if optimizer.meta_update_due:
            assert meta_update(model, optimizer, index).applied


def net() -> Net:
    torch.manual_seed(11)
    return Net(dropout=0.0)


@options
@dtypes
@pytest.mark.parametrize("path", ["plain", "fused"])
def test_moved_before_the_first_step_is_built_after_the_move(kind, dtype, path):
    model, other = net(), net()
    optimizer = build(model, kind, fused=path == "fused")
    model.to(dtype)
    other.to(dtype)
    its = build(other, kind, fused=path == "fused")
    its.load_meta_state_dict(optimizer.meta_state_dict())  # drawn in float32, as the weights were
    train(model, optimizer, range(6))
    train(other, its, range(6))
    assert_same(results(model, optimizer), results(other, its))
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert optimizer.modulation.alpha.dtype == wanted
    assert all(weight.dtype == wanted for weight in optimizer.modulator.weights)


@options
def test_features_and_meta_updates_notice_first(kind):
    model = net()
    optimizer = build(model, kind)
    model.double()
    backward(model, 0)
    assert optimizer.group_features().dtype == torch.float64
    if kind == "lookahead":
        assert meta_update(model, optimizer).applied


@options
def test_first_noticed_in_inference_mode(kind):
    """In a validation, say: what is made in there could not be learned from or written to."""
    model, other = net(), net()
    optimizer, its = build(model, kind), build(other, kind)
    for each in (model, other):
        each.double()
        backward(each, 0)
    with torch.inference_mode():
        optimizer.group_features()
        optimizer.metrics()
    train(model, optimizer, range(5))
    train(other, its, range(5))
    assert_same(results(model, optimizer), results(other, its))


@options
def test_to_half_precision_between_steps(kind):
    """Moments stay in float32, so nothing stands in the way; ``torch.optim.AdamW`` cannot."""
    model = net()
    optimizer = build(model, kind)
    train(model, optimizer, range(3))
    model.bfloat16()
    train(model, optimizer, range(3, 6))
    assert optimizer.steps == 6
    assert all(p.isfinite().all() for p in model.parameters())


@options
@pytest.mark.parametrize("path", ["plain", "foreach", "fused"])
def test_to_double_precision_between_steps_fails_as_in_torch(kind, path):
    """The moments are in float32 still."""
    model = net()
    optimizer = build(model, kind, **({} if path == "plain" else {path: True}))
    theirs = AdamW(model.parameters())
    train(model, optimizer, range(3))
    theirs.step()
    model.double()
    backward(model, 3)
    for failing in (theirs, optimizer):
        with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
            failing.step()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Processes]:
    processes = Processes(1)
    yield processes
    processes.close()


@options
def test_to_another_device(elsewhere, kind):
    """Before the first step; and later if somebody brings the state along, as Lightning does."""
    (result,) = elsewhere.run(_moved_steps, kind, "state as well")
    assert result["seen"] == {"elsewhere:0", "later cpu"}  # also between the move and a step
    assert result["devices"] == {"elsewhere:0"}
    assert result["later"] == {"cpu"}
    assert result["unwaited"] == 0


def test_to_another_device_without_the_state(elsewhere):
    (raised,) = elsewhere.outcomes(_moved_steps, "online", "model only")
    assert raised.kind == "ValueError"
    assert "state must be on the device of its parameter, cpu" in raised.message


def _moved_steps(kind: str, what: str) -> dict[str, Any]:
    return moved_steps(lambda: nn.Linear(4, 4), OPTIONS[kind], what)
