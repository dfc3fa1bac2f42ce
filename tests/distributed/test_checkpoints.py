"""Distributed checkpoints, saved by some number of processes and continued by another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from metaadamw import Hypergradient, MetaAdamW, fine_grained_groups
from tests.distributed.cases import (
    TWO_HORIZONS,
    WINDOWS,
    Case,
    batch_of,
    build,
    data_shard,
    full_parameters,
    loss_fn,
    whole,
)
from tests.distributed.processes import Processes
from tests.training import assert_same

CUT, END = 4, 8
FORMS = {"nested": StateDictOptions(), "flat": StateDictOptions(flatten_optimizer_state_dict=True)}
# Of "none" every process computes the same on whole batches: nothing depends on their number.
WRAPPERS = ("none", "ddp", "fsdp")
MODES = ("lookahead", "online")
MOVES = [(2, 4), (4, 1), (1, 2), (2, 2)]


def advance(model: nn.Module, optimizer: MetaAdamW, case: Case, steps: Iterable[int]) -> None:
    shard = data_shard(case)
    for step in steps:
        loss_fn(model, batch_of(step, shard=shard)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.meta_update_due:
            batches = [batch_of(1000 + 3 * step + i, shard=shard) for i in range(3)]
            assert optimizer.update_attention(model, loss_fn, *batches).applied


def everything(model: nn.Module, optimizer: MetaAdamW) -> dict[str, Any]:
    """Whole parameters and moments by name, and the learned part."""
    state = get_optimizer_state_dict(model, optimizer)["state"]
    return {
        "params": full_parameters(model),
        "moments": {n: {k: whole(v).cpu().clone() for k, v in s.items()} for n, s in state.items()},
        "learned": copy.deepcopy(optimizer.meta_state_dict()),
    }


def save(case: Case, directory: str) -> dict[str, Any]:
    """Train to the cut, save in every form, and go on to the end without a stop."""
    model, optimizer = build(case)
    advance(model, optimizer, case, range(CUT))
    for name, options in FORMS.items():
        parts = get_state_dict(model, optimizer, options=options)
        saved = dict(zip(("model", "optimizer"), parts, strict=True))
        dcp.save(saved, checkpoint_id=f"{directory}/{name}")
    at_cut = everything(model, optimizer)
    advance(model, optimizer, case, range(CUT, END))
    return {"cut": at_cut, "end": everything(model, optimizer)}


def load_into(
    model: nn.Module, optimizer: MetaAdamW, directory: str | Path, form: str, **how: Any
) -> None:
    parts = get_state_dict(model, optimizer, options=FORMS[form])
    state = dict(zip(("model", "optimizer"), parts, strict=True))
    dcp.load(state, checkpoint_id=f"{directory}/{form}", **how)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=FORMS[form],
    )


def load(case: Case, directory: str, form: str) -> dict[str, Any]:
    """Go on from a checkpoint."""
    model, optimizer = build(case)
    load_into(model, optimizer, directory, form)
    at_cut = everything(model, optimizer)
    advance(model, optimizer, case, range(CUT, END))
    return {"cut": at_cut, "end": everything(model, optimizer)}


def assert_close(actual: Any, expected: Any, where: str = "") -> None:
    """Tensors and numbers equal to 1e-11 (sums of another order), everything else equal."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_close(actual[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for i, pair in enumerate(zip(actual, expected, strict=True)):
            assert_close(*pair, f"{where}/{i}")
    elif isinstance(expected, (torch.Tensor, float)):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    else:
        assert actual == expected, where


@pytest.fixture(scope="module")
def saved(
    processes: Callable[[int], Processes], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case, int], tuple[Path, dict[str, Any]]]:
    """A checkpoint of a case on a number of processes, and what its run came to."""
    done: dict[tuple[str, str, int], tuple[Path, dict[str, Any]]] = {}

    def of(case: Case, size: int) -> tuple[Path, dict[str, Any]]:
        key = case.wrap, case.mode, size
        if key not in done:
            directory = tmp_path_factory.mktemp("checkpoint")
            ranks = processes(size).run(save, case, str(directory))
            for rank in ranks[1:]:
                assert_same(rank, ranks[0])
            done[key] = directory, ranks[0]
        return done[key]

    return of


@pytest.mark.parametrize(("before", "after"), MOVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_continue_on_another_number_of_processes(
    wrap: str, mode: str, before: int, after: int, processes: Any, saved: Any
) -> None:
    case = Case(wrap=wrap, mode=mode)
    directory, run = saved(case, before)
    assert run["cut"]["learned"]["steps"] == CUT
    for form in FORMS:
        ranks = processes(after).run(load, case, str(directory), form)
        for rank in ranks:
            assert_same(rank["cut"], run["cut"])  # nothing is lost or rounded on the way
            assert_same(rank, ranks[0])
        if wrap == "none" or before == after:
            assert_same(ranks[0]["end"], run["end"])
        else:  # the order of sums over processes differs
            for expected in (run, saved(case, after)[1]):
                assert_close(ranks[0]["end"], expected["end"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [WINDOWS, TWO_HORIZONS], ids=["windows", "two horizons"])
def test_windows_go_on(options: dict[str, Any], form: str, processes: Any, tmp_path: Path) -> None:
    """Starts and displacements of windows are shards like the moments."""
    case = Case(wrap="fsdp", **options)
    run = processes(2).run(save, case, str(tmp_path))[0]
    for rank in processes(4).run(load, case, str(tmp_path), form):
        assert_same(rank["cut"], run["cut"])
        assert_close(rank["end"], run["end"])


@pytest.mark.parametrize("form", FORMS)
def test_continue_without_processes(form: str, saved: Any) -> None:
    """A checkpoint of shards, in a process that knows nothing of any others."""
    case = Case(wrap="fsdp")
    directory, run = saved(case, 4)
    alone = load(replace(case, wrap="none"), str(directory), form)
    assert_same(alone["cut"], run["cut"])
    assert_close(alone["end"], run["end"])


def one_file(case: Case, path: str) -> dict[str, Any]:
    """Whole tensors on rank 0, one file, and back: what trainers do with shards."""
    model, optimizer = build(case)
    advance(model, optimizer, case, range(CUT))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    parts = get_state_dict(model, optimizer, options=options)
    if dist.get_rank() == 0:
        torch.save(parts, path)
    model_state: dict[str, Any] = {}
    optimizer_state: dict[str, Any] = {}
    if dist.get_rank() == 0:
        model_state, optimizer_state = torch.load(path, weights_only=True)
    fresh_model, fresh = build(case)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(fresh_model, model_state, options=options)
    set_optimizer_state_dict(fresh_model, fresh, optimizer_state, options=options)
    ends = []
    for run in ((model, optimizer), (fresh_model, fresh)):
        advance(*run, case, range(CUT, END))
        ends.append(everything(*run))
    return {"expected": ends[0], "found": ends[1]}


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_whole_on_one_rank(wrap: str, processes: Any, tmp_path: Path) -> None:
    for rank in processes(2).run(one_file, Case(wrap=wrap), str(tmp_path / "file")):
        assert_same(rank["found"], rank["expected"])


def look_at_a_fresh_optimizer(case: Case, look: bool) -> dict[str, Any]:
    model, optimizer = build(case)
    if look:  # it creates the state by a step
        before = full_parameters(model)
        get_optimizer_state_dict(model, optimizer)
        assert_same(full_parameters(model), before)
        assert len(optimizer.state) == len(before)
        assert optimizer.steps == 0
    advance(model, optimizer, case, range(CUT))
    return everything(model, optimizer)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_the_step_that_creates_state_changes_nothing(wrap: str, processes: Any) -> None:
    found, expected = (
        processes(2).run(look_at_a_fresh_optimizer, Case(wrap=wrap), look) for look in (True, False)
    )
    assert_same(found, expected)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def some_steps(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    for step in range(3):
        torch.manual_seed(step)
        model.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


ONLINE = Hypergradient()


@pytest.mark.parametrize("form", FORMS)
def test_several_optimizers_of_one_model(form: str, tmp_path: Path) -> None:
    """Each learned part comes back to its own optimizer."""

    def fresh() -> tuple[nn.Module, list[MetaAdamW]]:
        model = net()
        return model, [
            MetaAdamW(model[i].parameters(), lr=0.1, modulator="attention", learning=ONLINE)
            for i in (0, 2)
        ]

    model, optimizers = fresh()
    some_steps(model, *optimizers)
    _, state = get_state_dict(model, optimizers, options=FORMS[form])
    dcp.save({"optimizer": state}, checkpoint_id=tmp_path, no_dist=True)

    other, others = fresh()
    _, state = get_state_dict(other, others, options=FORMS[form])
    dcp.load({"optimizer": state}, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(other, others, optim_state_dict=state, options=FORMS[form])
    for ours, theirs in zip(others, optimizers, strict=True):
        assert_same(ours.meta_state_dict(), theirs.meta_state_dict())
    learned = [o.meta_state_dict()["modulator"]["output_weight"] for o in others]
    assert not torch.equal(*learned)


def test_the_learned_part_alone(tmp_path: Path) -> None:
    """A fresh one has every tensor that there will ever be, so nothing is passed over."""
    model = net()
    optimizer = MetaAdamW(model.parameters(), lr=0.1, modulator="attention", learning=ONLINE)
    some_steps(model, optimizer)
    dcp.save({"learned": optimizer.meta_state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other = MetaAdamW(net().parameters(), lr=0.1, modulator="attention", learning=ONLINE)
    learned = other.meta_state_dict()
    dcp.load({"learned": learned}, checkpoint_id=tmp_path, no_dist=True)
    other.load_meta_state_dict(learned)
    assert_same(other.meta_state_dict(), optimizer.meta_state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_adamw_warns(form: str, tmp_path: Path) -> None:
    """It has no learned part, and partial loading would leave that of the fresh optimizer."""
    model = net()
    adamw = torch.optim.AdamW(model.parameters(), lr=0.1)
    some_steps(model, adamw)
    state = get_optimizer_state_dict(model, adamw, options=FORMS[form])
    dcp.save({"optimizer": state}, checkpoint_id=tmp_path, no_dist=True)

    model = net()
    optimizer = MetaAdamW(model.parameters(), modulator="attention", learning=ONLINE)
    state = get_optimizer_state_dict(model, optimizer, options=FORMS[form])
    whole_state = {"optimizer": state}
    with pytest.raises(CheckpointException, match="Missing key"):
        dcp.load(whole_state, checkpoint_id=tmp_path, no_dist=True)
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(whole_state, checkpoint_id=tmp_path, no_dist=True, planner=planner)
    with pytest.warns(UserWarning, match="no learned part"):
        set_optimizer_state_dict(model, optimizer, optim_state_dict=state, options=FORMS[form])
    assert optimizer.steps == 3
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_groups_of_the_wrapped_model_are_those_of_the_bare_one() -> None:
    """Whether they were made before or after wrapping does not matter to a checkpoint."""
    model = net()
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel does
    compiled = torch.compile(model)
    for kinds in ("extended", "paper"):
        expected = fine_grained_groups(model, kinds=kinds)
        for other in (wrapped, compiled):
            found = fine_grained_groups(other, kinds=kinds)
            assert [{**g, "params": 0} for g in found] == [{**g, "params": 0} for g in expected]
    learned = MetaAdamW(model.named_parameters(), learning="lookahead").meta_state_dict()
    for other in (wrapped, compiled):
        MetaAdamW(other.named_parameters(), learning="lookahead").load_meta_state_dict(learned)
