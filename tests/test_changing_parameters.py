"""Parameters frozen, unfrozen and added while training: those and no others notice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from metaadamw import Attention, Factors, Hypergradient, LookAhead, MetaAdamW, Schedule, Windows
from tests.learning import learning_of
from tests.training import assert_same

XAVIER = Attention(init="xavier", layers=1)
modes = pytest.mark.parametrize("mode", ["online", "lookahead"])
METAS = {
    "online": Hypergradient(lr=0.0),
    "windows": Windows(window=3, lr=0.0, mean_speed=1.0),
    "lookahead": LookAhead(every=2, lr=0.0),
}
ways = pytest.mark.parametrize("way", ["requires_grad", "no gradient"])


class Towers(nn.Module):
    """Towers that do not see each other, so that a gradient depends on its own tower alone."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)) for _ in range(count)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([tower(x) for tower in self.towers], 1)


def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x.sin().sum(1, keepdim=True)).square().mean(0).sum()


def towers(count: int = 3) -> Towers:
    torch.manual_seed(0)
    return Towers(count).double()


def batch(index: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(16, 4, dtype=torch.float64, generator=generator)


def step(model: nn.Module, optimizer: Any, index: int, frozen: nn.Module | None = None) -> None:
    optimizer.zero_grad()
    loss_fn(model, batch(index)).backward()
    if frozen is not None:
        for param in frozen.parameters():
            param.grad = None
    optimizer.step()
    if isinstance(optimizer, MetaAdamW) and optimizer.meta_update_due:
        batches = [batch(1000 + 3 * index + i) for i in range(3)]
        assert optimizer.update_attention(model, loss_fn, *batches).applied


def groups_of(model: Towers) -> list[dict[str, Any]]:
    return [{"params": list(tower.parameters())} for tower in model.towers]


def states(model: Towers, optimizer: Any) -> list[Any]:
    """Weights, moments and counters of every tower."""
    return [
        [(p.detach().clone(), copy.copy(optimizer.state.get(p, {}))) for p in tower.parameters()]
        for tower in model.towers
    ]


def run(optimizer_of: Any, way: str, added: bool) -> tuple[Towers, Any]:
    """Twelve steps: the second tower rests in steps 4 to 7, the third may come in at step 6."""
    model = towers()
    groups = groups_of(model)
    optimizer = optimizer_of(groups[:2] if added else groups)
    for index in range(12):
        frozen = model.towers[1] if 4 <= index < 8 else None
        if way == "requires_grad":
            model.towers[1].requires_grad_(frozen is None)
            frozen = None
        if added and index == 6:
            optimizer.add_param_group(groups[2])
        step(model, optimizer, index, frozen)
    return model, optimizer


@modes
@ways
@pytest.mark.parametrize("added", [False, True])
def test_with_a_still_modulator_it_is_adamw(mode, way, added):
    """Counters of each parameter included: one that rested, or came late, has fewer steps."""

    def ours(groups: Any) -> MetaAdamW:
        return MetaAdamW(
            groups, lr=1e-2, modulator="attention", learning=learning_of(mode, every=2, lr=0.0)
        )

    mine, theirs = run(ours, way, added), run(lambda g: AdamW(g, lr=1e-2), way, added)
    assert_same(states(*mine), states(*theirs))
    counts = [float(mine[1].state[tower[0].weight]["step"]) for tower in mine[0].towers]
    assert counts == [12.0, 8.0, 6.0 if added else 12.0]


@modes
@ways
def test_a_resting_group_is_not_touched(mode, way):
    """Not by steps, nor by meta-updates; its gradient counts as zero in the features."""
    model = towers()
    optimizer = MetaAdamW(
        groups_of(model), lr=1e-2, modulator=XAVIER, learning=learning_of(mode, every=2, lr=1e-2)
    )
    for index in range(4):
        step(model, optimizer, index)
    resting = copy.deepcopy(states(model, optimizer)[1])
    if way == "requires_grad":
        model.towers[1].requires_grad_(False)
    for index in range(4, 8):
        step(model, optimizer, index, model.towers[1])
        assert optimizer.features[1, optimizer.feature_names.index("grad_norm")] == 0
        assert (optimizer.features[[0, 2], 0] > 0).all()
    assert_same(states(model, optimizer)[1], resting)
    model.towers[1].requires_grad_(True)
    step(model, optimizer, 8)
    assert float(optimizer.state[model.towers[1][0].weight]["step"]) == 5.0
    assert (optimizer.features[:, 0] > 0).all()


def test_resting_either_way_is_the_same():
    """In both the modulator learns the same, at every step of mode "online"."""

    def ours(groups: Any) -> MetaAdamW:
        meta = Hypergradient(lr=1e-2)
        return MetaAdamW(groups, lr=1e-2, modulator=XAVIER, learning=meta)

    (model, optimizer), (other, its) = run(ours, "requires_grad", True), run(ours, "none", True)
    assert_same(states(model, optimizer), states(other, its))
    assert_same(optimizer.meta_state_dict(), its.meta_state_dict())


@pytest.mark.parametrize("meta", METAS.values(), ids=METAS)
@pytest.mark.parametrize("moved", ["all", "not all"])
@pytest.mark.parametrize("change", ["longer", "shorter", "empty group", "one group less"])
def test_lists_of_parameters_that_somebody_changes(change, moved, meta):
    """As with AdamW, which asks ``param_groups`` anew at every step; the signal starts anew."""
    runs = []
    for kind in (
        lambda g: MetaAdamW(g, lr=1e-2, modulator="attention", learning=meta),
        lambda g: AdamW(g, lr=1e-2),
    ):
        model = towers()
        groups = groups_of(model)
        optimizer = kind(groups[:2])
        for index in range(10):
            if index == 5 and change == "longer":
                optimizer.param_groups[0]["params"].extend(groups[2]["params"])
            elif index == 5 and change == "shorter":
                optimizer.param_groups[0]["params"].pop(0)
            elif index == 5 and change == "empty group":
                optimizer.add_param_group({"params": []})
            elif index == 5:
                del optimizer.param_groups[0]
            step(model, optimizer, index, model.towers[1] if moved == "not all" else None)
        runs.append([p.detach().clone() for p in model.parameters()])
    assert_same(*runs)


def test_the_groups_that_were_there_see_what_they_saw():
    """Adding a group changes no feature of the others; the signal starts anew one step later.

    A matrix product of another shape may add in another order: a few units of float32.
    """
    model = towers()
    groups = groups_of(model)
    meta = Hypergradient(lr=1e-2)
    optimizer = MetaAdamW(groups[:2], lr=1e-2, modulator=XAVIER, learning=meta)
    for index in range(4):
        step(model, optimizer, index)
    alone = copy.deepcopy((model, optimizer))
    optimizer.add_param_group({"params": list(model.towers[2].parameters())})
    step(*alone, 4)
    step(model, optimizer, 4)
    torch.testing.assert_close(optimizer.features[:2], alone[1].features, rtol=1e-6, atol=1e-7)
    assert int(optimizer.metrics()["meta/applied"]) == 3
    assert int(alone[1].metrics()["meta/applied"]) == 4
    step(model, optimizer, 5)
    assert int(optimizer.metrics()["meta/applied"]) == 4


OWN_ROWS = {
    "scalars": ("raw", Factors(alpha_range=1.0, scale="linear", update_every=1)),
    "embedding": ("group_embedding", Attention(features="enhanced", init="xavier", layers=1)),
}


def rows(optimizer: MetaAdamW, name: str) -> dict[str, list[torch.Tensor]]:
    """What each group has of its own: its row of the modulator and of that row's Adam moments."""
    state = optimizer.meta_state_dict()
    place = [*state["modulator"]].index(name)
    moments = state["learning"]["meta_optimizer"]
    tensors = state["modulator"][name], moments["exp_avg"][place], moments["exp_avg_sq"][place]
    return {group: [t[i] for t in tensors] for i, group in enumerate(optimizer.group_names)}


@pytest.mark.parametrize(("name", "config"), OWN_ROWS.values(), ids=OWN_ROWS)
@pytest.mark.parametrize("change", ["away", "exchanged", "reversed"])
def test_what_a_group_has_learned_follows_it(change, name, config):
    """A group taken away, one in its place, another order: the others keep what is theirs."""
    model = towers(4)
    groups = groups_of(model)
    meta = Hypergradient(lr=1e-2)
    optimizer = MetaAdamW(groups[:3], lr=1e-2, modulator=config, learning=meta)
    for index in range(4):
        step(model, optimizer, index)
    before = rows(optimizer, name)
    assert not torch.equal(before["group0"][0], before["group2"][0])
    if change == "reversed":
        optimizer.param_groups.reverse()
    else:
        for param in optimizer.param_groups.pop(0)["params"]:
            del optimizer.state[param]
        if change == "exchanged":
            optimizer.add_param_group({**groups[3], "name": "new"})
    optimizer.group_features()  # that is when it notices
    after = rows(optimizer, name)
    if change == "exchanged":
        start, *moments = after.pop("new")
        assert not any(moment.any() for moment in moments)
        assert not torch.equal(start, before["group0"][0])
    assert list(after) == optimizer.group_names[: len(after)]
    assert_same(after, {group: before[group] for group in after})
    applied = int(optimizer.metrics()["meta/applied"])
    for index in range(4, 7):
        step(model, optimizer, index)
    assert int(optimizer.metrics()["meta/applied"]) == applied + 2  # the signal starts anew
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())


def test_a_schedule_of_a_group_that_was_taken_away():
    model = towers(2)
    ones = torch.ones(3, 2)
    optimizer = MetaAdamW(groups_of(model), modulator=Schedule(("group0", "group1"), ones, ones))
    step(model, optimizer, 0)
    del optimizer.param_groups[0]
    for index in range(2):
        with pytest.raises(ValueError, match=r"recorded for the groups .* got \['group1'\]"):
            step(model, optimizer, index)
