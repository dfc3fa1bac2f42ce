"""On an accelerator nothing is read back in ``step()``: seen here on the CPU, with the same code.

``capturable=True`` takes the accelerator's way on any device. A dispatch mode then sees every
operation: reading a number back is ``_local_scalar_dense``, and a number that is brought to the
device, which would wait for it, is a fresh constant.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaadamw import (
    Attention,
    Factors,
    MetaAdamW,
    TwoHorizons,
    Windows,
    fine_grained_groups,
)
from tests.learning import learning_of
from tests.training import batch, loss_fn, make

READS = ("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero")
CONSTANTS = ("lift_fresh", "lift_fresh_copy")


class Watch(TorchDispatchMode):
    """Names of the operations that would stall an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.stalls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS + CONSTANTS:
            self.stalls.append(name)
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_a_read_and_a_constant() -> None:
    with Watch() as watch:
        torch.ones(()).item()
        torch.tensor([1.0, 2.0])
    assert watch.stalls == ["_local_scalar_dense", "lift_fresh"]


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}])
@pytest.mark.parametrize("mode", ["lookahead", "online", "off"])
@pytest.mark.parametrize("features", ["basic", "norm_basic_plus", "enhanced", "scale_free"])
def test_no_stall_in_fifty_steps(path: dict[str, bool], mode: Any, features: str) -> None:
    model, optimizer = make(
        modulator=Attention(features=features, init="xavier", feature_gating=True),
        learning=learning_of(mode),
        capturable=True,
        **path,
    )
    stalls = []
    for index in range(50):
        optimizer.zero_grad()
        loss_fn(model, batch(index % 5)).backward()
        if index == 0:  # the first step creates state
            optimizer.step()
            continue
        with Watch() as watch:
            optimizer.step()
            optimizer.metrics()
        stalls += watch.stalls
        if optimizer.meta_update_due:
            optimizer.update_attention(model, loss_fn, batch(7), batch(8), batch(9))
    # "enhanced" counts zeros with constants for tensors that are missing: there are none here.
    assert stalls == []


@pytest.mark.parametrize(
    "preset", [(Factors(), TwoHorizons()), (Factors(), Windows())], ids=["online", "windows"]
)
def test_no_stall_in_windows(preset: tuple[Any, Any]) -> None:
    """Also where one ends, and where single steps learn as well.

    Learning rates are brought there, but on an accelerator through pinned memory, without waiting.
    """
    modulator, meta = preset
    model, optimizer = make(
        modulator=modulator, learning=replace(meta, window=5), capturable=True, foreach=True
    )
    stalls = []
    for index in range(30):
        optimizer.zero_grad()
        loss_fn(model, batch(index % 5)).backward()
        with Watch() as watch:
            optimizer.step()
        if index:  # the first step creates state
            stalls += [name for name in watch.stalls if name in READS]
    assert stalls == []
    assert (optimizer.modulation.alpha != 1).all()


@pytest.mark.parametrize("mode", ["lookahead", "online"])
def test_the_accelerators_way_gives_the_numbers_of_the_hosts(mode: Any) -> None:
    """Factors as tensors or as numbers: the same up to float32 rounding of the factors."""
    weights = []
    for capturable in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        optimizer = MetaAdamW(
            fine_grained_groups(model),
            lr=1e-2,
            modulator=Attention(init="xavier"),
            learning=learning_of(mode, every=4, lr=1e-2),
            foreach=True,
            capturable=capturable,
        )
        data = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
            return (model(rows).squeeze(1) - rows.sum(1)).square().mean()

        for index in range(20):
            optimizer.zero_grad()
            loss(model, data[index : index + 8]).backward()
            optimizer.step()
            if optimizer.meta_update_due:
                optimizer.update_attention(model, loss, data[:8], data[8:16], data[16:24])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # Counters are float32 there: 1 - beta2^t carries up to 6e-5 into each of 20 steps of lr 1e-2.
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=20 * 1e-2 * 6e-5)


@pytest.mark.parametrize("mode", ["lookahead", "online"])
def test_what_a_step_leaves_for_the_next_stays_in_place(mode: Any) -> None:
    """A captured CUDA graph reads and writes the same memory at every replay."""
    model, optimizer = make(
        modulator=Attention(init="xavier"), learning=learning_of(mode), capturable=True
    )
    seen = set()
    for index in range(6):
        optimizer.zero_grad()
        loss_fn(model, batch(index)).backward()
        optimizer.step()
        learner = optimizer._controller
        kept = [learner.features, *optimizer.modulation, learner.device_steps]
        last = getattr(learner.learning, "last", None)
        kept += list(last[:3]) if last is not None else []
        if index >= 2:  # the first two are the warm-up
            seen.add(tuple(t.data_ptr() for t in kept if t is not None))
    assert len(seen) == 1
