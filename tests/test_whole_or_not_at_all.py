"""A step that raises leaves everything as it was; what AdamW takes, every way of learning takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metaadamw import MetaAdamW, fine_grained_groups
from tests.training import Net, assert_same, backward, full_snapshot

WAYS: dict[str, dict[str, Any]] = {
    "two horizons": {"learning": {"kind": "two_horizons", "window": 3}},
    "windows": {"learning": {"kind": "windows", "window": 3}},
    "windows, attention": {
        "modulator": "attention",
        "learning": {"kind": "windows", "window": 3},
    },
    "hypergradient": {"learning": "hypergradient"},
    "hypergradient, attention": {"modulator": "attention"},
    "off": {"learning": "off"},
}
ways = pytest.mark.parametrize("way", WAYS)


def trained(way: str, steps: int) -> tuple[Net, MetaAdamW]:
    torch.manual_seed(0)
    model = Net(dropout=0.0)
    optimizer = MetaAdamW(fine_grained_groups(model), lr=1e-2, **WAYS[way])
    for index in range(steps):
        backward(model, index)
        optimizer.step()
    return model, optimizer


@ways
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 6])
@pytest.mark.parametrize(
    "broken",
    [
        "metaadamw.optimizer.create_state",
        "metaadamw.optimizer.modulated_adamw",
        "metaadamw.controller.tensor_columns",
        "metaadamw.controller.group_features",
    ],
)
def test_what_fails_before_the_update_has_changed_nothing(way, steps, broken, monkeypatch):
    model, optimizer = trained(way, steps)
    backward(model, steps)
    before = full_snapshot(model, optimizer)

    def fails(*arguments: Any, **options: Any) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as patched:
        patched.setattr(broken, fails)
        refreshes = optimizer._controller.learning.refreshes(steps)
        reads = broken in (
            "metaadamw.controller.tensor_columns",
            "metaadamw.controller.group_features",
        )
        if reads and steps and not refreshes:
            return  # nothing is read at such a step
        with pytest.raises(MemoryError, match="injected"):
            optimizer.step()
    assert_same(full_snapshot(model, optimizer), before)
    optimizer.step()
    never_failed, _ = trained(way, steps + 1)
    assert_same(dict(model.state_dict()), dict(never_failed.state_dict()))


@ways
def test_anomaly_detection_changes_no_number(way):
    runs = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Net(dropout=0.0)
        optimizer = MetaAdamW(fine_grained_groups(model), lr=1e-2, **WAYS[way])
        for index in range(9):
            with torch.autograd.set_detect_anomaly(watched):
                backward(model, index)
                optimizer.step()
        runs.append(dict(model.state_dict()))
    assert_same(*runs)


@ways
def test_inference_mode(way):
    runs = []
    for inference in (False, True):
        torch.manual_seed(0)
        model = Net(dropout=0.0)
        optimizer = MetaAdamW(fine_grained_groups(model), lr=1e-2, **WAYS[way])
        for index in range(9):
            backward(model, index)
            with torch.inference_mode(inference):
                optimizer.step()
        runs.append(dict(model.state_dict()))
    assert_same(*runs)


@ways
@pytest.mark.parametrize(
    "frozen",
    [
        lambda: torch.randn(4, 4).to(torch.float8_e4m3fn),
        lambda: torch.ones(3, dtype=torch.int8),
        lambda: torch.empty(4, 4, device="meta"),
    ],
    ids=["float8", "int8", "meta"],
)
def test_what_can_never_move_decides_nothing(way, frozen):
    def run(*more: nn.Parameter) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = MetaAdamW([*model.parameters(), *more], lr=1e-2, **WAYS[way])
        for _ in range(9):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert_same(run(nn.Parameter(frozen(), requires_grad=False)), run())


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_a_gradient_with_a_negative_bit(path, shape):
    runs = []
    for resolved in (False, True):
        param = nn.Parameter(torch.full(shape, 0.5))
        optimizer = MetaAdamW([param], lr=0.1, **path)
        for _ in range(12):
            value = torch.complex(torch.ones(shape), 2 * torch.ones(shape)).conj().imag
            assert value.is_neg()
            param.grad = value.resolve_neg() if resolved else value
            optimizer.step()
        runs.append(param.detach().clone())
    assert_same(*runs)
    assert (runs[0] > 0.5).all()  # it goes against the gradient, which is -2


@pytest.mark.parametrize("key", ["lr_scale", "wrapper_state", "swa", "initial_betas"])
def test_unknown_keys_are_kept(key):
    optimizer = MetaAdamW([{"params": [nn.Parameter(torch.ones(2))], key: 3}])
    assert optimizer.state_dict()["param_groups"][0][key] == 3


def test_groups_without_names_beside_named_ones():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = MetaAdamW(fine_grained_groups(first))
    optimizer.add_param_group({"params": list(second.parameters())})
    assert len(set(optimizer.group_names)) == len(optimizer.group_names)
    optimizer.load_state_dict(optimizer.state_dict())
