"""DDP and FSDP2 on one global batch take the same steps as a single process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from metaadamw import Hypergradient, MetaAdamW, fine_grained_groups
from tests.distributed.cases import (
    TWO_HORIZONS,
    WINDOWS,
    Case,
    Collectives,
    Net,
    assert_like_one_process,
    backward,
    batch_of,
    build,
    data_shard,
    loss_fn,
    train,
)
from tests.distributed.processes import Processes, device

SIZES = (1, 2, 4)


@pytest.mark.parametrize("features", ["basic", "enhanced", "scale_free"])
@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_online(wrap: str, features: str, processes: Callable[[int], Processes]) -> None:
    case = Case(modulator={"features": features}, steps=30 if features == "basic" else 10)
    single = train(case)
    assert (single["modulation"][-1] - 1).abs().max() > 0.1  # it has learned something
    for size in SIZES:
        ranks = processes(size).run(train, replace(case, wrap=wrap))
        assert_like_one_process(ranks, single)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp", "mixed", "tp"])
@pytest.mark.parametrize("options", [WINDOWS, TWO_HORIZONS], ids=["windows", "two horizons"])
def test_windows(options: dict[str, Any], wrap: str, processes: Callable[[int], Processes]) -> None:
    case = Case(**options, steps=15)
    single = train(case)
    assert (single["modulation"][-1] - 1).abs().max() > 0.1  # it has learned something
    for size in (2, 4):
        assert_like_one_process(processes(size).run(train, replace(case, wrap=wrap)), single)


@pytest.mark.parametrize(
    ("wrap", "sizes"),
    [
        ("mixed", (2, 4)),
        ("hsdp", (2, 4)),
        ("tp", (2, 4)),
        ("sequence_parallel", (2, 4)),
        ("tp_fsdp", (4,)),
    ],
)
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_meshes(
    mode: str, wrap: str, sizes: tuple[int, ...], processes: Callable[[int], Processes]
) -> None:
    """Sharded, replicated and partial tensors in one optimizer, on one mesh and on slices of it."""
    case = Case(mode=mode, modulator={"features": "enhanced"}, steps=8)
    single = train(case)
    for size in sizes:
        assert_like_one_process(processes(size).run(train, replace(case, wrap=wrap)), single)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "options",
    [
        {"clip": 0.3},
        {"accumulate": 2},
        {"unused": True},
        {"optimizer": {"foreach": True}},
        {"optimizer": {"fused": True}},
        {"optimizer": {"capturable": True}},
        {"modulator": {"update_every": 3}},
    ],
    ids=lambda options: "-".join(map(str, (k for v in options.items() for k in v))),
)
def test_options(options: dict[str, Any], wrap: str, processes: Callable[[int], Processes]) -> None:
    case = Case(steps=6, **options)
    ranks = processes(4).run(train, replace(case, wrap=wrap))
    assert_like_one_process(ranks, train(case))


def communication(case: Case) -> tuple[list[tuple[str, int]], int]:
    """The collectives of one step, and the number of tensors."""
    model, optimizer = build(case)
    for step in range(2):
        loss_fn(model, batch_of(step, shard=data_shard(case))).backward()
        with Collectives() as collectives:
            optimizer.step()
    return collectives.seen, len(list(model.parameters()))


def test_one_all_reduce_a_step(processes: Callable[[int], Processes]) -> None:
    for seen, tensors in processes(2).run(communication, Case(wrap="fsdp")):
        # ⟨g,g⟩, ⟨g,m⟩, ⟨m,m⟩, ⟨θ,θ⟩, ⟨v,v⟩, and in online mode ⟨g,θ⟩ and the three with û
        assert seen == [("allreduce_", 9 * tensors)]
    for seen, _ in processes(2).run(communication, Case(wrap="ddp")):
        assert seen == []


def state_placements(case: Case) -> None:
    """Moments lie as their parameters do, also in checkpoints."""
    model, optimizer = build(case)
    loss_fn(model, batch_of(0, shard=data_shard(case))).backward()
    optimizer.step()
    for param in model.parameters():
        state = optimizer.state[param]
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            assert isinstance(moment, DTensor)
            assert moment.placements == param.placements
            assert moment.shape == param.shape
        assert type(state["step"]) is torch.Tensor


def test_moments_lie_as_their_parameters(processes: Callable[[int], Processes]) -> None:
    processes(4).check(state_placements, Case(wrap="fsdp"))


def resume(case: Case) -> None:
    """Save and load in the middle, bit for bit."""
    model, optimizer = build(case)
    other_model, other = build(case)
    shard = data_shard(case)
    for step in range(6):
        loss_fn(model, batch_of(step, shard=shard)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 2:
            other_model.load_state_dict(model.state_dict())
            other.load_state_dict(optimizer.state_dict())
        if step > 2:
            loss_fn(other_model, batch_of(step, shard=shard)).backward()
            other.step()
            other.zero_grad()
    for ours, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(ours.to_local(), theirs.to_local())
    assert torch.equal(optimizer.modulation.alpha, other.modulation.alpha)


def test_state_dict_of_shards(processes: Callable[[int], Processes]) -> None:
    processes(2).check(resume, Case(wrap="fsdp"))


def flattened() -> None:
    options = {"device_id": device(), "use_orig_params": True}
    model = FullyShardedDataParallel(Net().to(device()), **options)
    with pytest.raises(ValueError, match="use fully_shard instead"):
        MetaAdamW(model.parameters(), learning="lookahead")


def test_flat_parameters_are_refused(processes: Callable[[int], Processes]) -> None:
    """Those of the older FSDP look like ordinary ones, of another size on every rank."""
    processes(2).check(flattened)


def unrelated_meshes() -> None:
    rank = dist.get_rank()
    meshes = [DeviceMesh(device().type, ranks) for ranks in ([0, 1], [2, 3])]
    own = meshes[rank // 2]
    other = init_device_mesh(device().type, (2, 2), mesh_dim_names=("a", "b"))["a"]
    params = [
        nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)])) for mesh in (own, other)
    ]
    with pytest.raises(ValueError, match="must lie on one device mesh and slices of it"):
        MetaAdamW(params, learning="lookahead")


def test_unrelated_meshes_are_refused(processes: Callable[[int], Processes]) -> None:
    processes(4).check(unrelated_meshes)


def parts_of_the_world(case: Case) -> Tensor:
    """Two models, each trained by half of the processes, as the stages of a pipeline are."""
    rank = dist.get_rank()
    mesh = init_device_mesh(device().type, (2, 2), mesh_dim_names=("stage", "data"))["data"]
    model = fully_shard(Net().double().to(device()), mesh=mesh)
    optimizer = MetaAdamW(
        fine_grained_groups(model), modulator="attention", learning=Hypergradient()
    )
    if rank < 2:  # the others do not even step
        for step in range(3):
            loss_fn(model, batch_of(step, shard=(rank, 2))).backward()
            optimizer.step()
    return optimizer.modulation.alpha


def test_part_of_the_world(processes: Callable[[int], Processes]) -> None:
    first, second, *_ = processes(4).run(parts_of_the_world, Case())
    assert torch.equal(first, second)


def master_weights(case: Case) -> Tensor:
    """Half-precision shards with master weights; their halves lie as the parameters do."""
    model, optimizer = build(case)
    for step in range(3):
        backward(model, case, step)
        optimizer.step()
        optimizer.zero_grad()
    for param in model.parameters():
        for name, value in optimizer.state[param].items():
            assert name == "step" or value.placements == param.placements
    return optimizer.modulation.alpha


def test_master_weights_of_shards(processes: Callable[[int], Processes]) -> None:
    options = {"master_weights": True}
    case = Case("fsdp", dtype=torch.bfloat16, optimizer=options)
    first, second = processes(2).run(master_weights, case)
    assert torch.equal(first, second)
