"""One small training problem, run by one process or many: what every rank does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metaadamw import MetaAdamW, fine_grained_groups
from tests.distributed.processes import device
from tests.learning import learning_of, modulator_of

BATCH = 16
WIDTH, CLASSES = 10, 3  # neither is a multiple of 2 or 4: uneven shards, and empty ones


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """Embedding, two blocks, a head with fewer rows than there may be ranks, and a scalar."""

    def __init__(
        self, width: int = WIDTH, *, unused: bool = False, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)
        self.scale = nn.Parameter(torch.ones(1))
        self.batch_norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        if unused:
            self.unused = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).mean(1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.batch_norm(x)) * self.scale


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, target = batch
    return nn.functional.cross_entropy(model(tokens), target)


def batch_of(number: int, *, shard: tuple[int, int] = (0, 1)) -> tuple[Tensor, Tensor]:
    """Batch ``number``, or the part of it that one of several ranks sees."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(7, (BATCH, 4), generator=generator)
    target = (tokens.sum(1) + number) % CLASSES
    rank, size = shard
    return tokens[rank::size].to(device()), target[rank::size].to(device())


WINDOWS: dict[str, Any] = {
    "modulator": {"features": "scale_free", "layers": 1, "scale": "log", "alpha_range": 2.0},
    "meta": {"window": 3, "optimizer": "gauss_newton", "lr": 2.0},
}
"""Arguments of a ``Case`` in online mode that learns in windows."""

TWO_HORIZONS: dict[str, Any] = {
    "modulator": {"layers": 0, "scale": "log", "alpha_range": 2.0, "update_every": 2},
    "meta": {"window": 3, "mean_speed": 0.5, "consecutive_lr": 0.05},
}
"""And from single steps too."""


@dataclass
class Case:
    """What is trained and how.

    Attributes:
        wrap: a name of ``WRAPPERS``.
        mode: of ``MetaConfig``.
        modulator: arguments of ``ModulatorConfig``.
        meta: arguments of ``MetaConfig``.
        optimizer: arguments of ``MetaAdamW``.
        steps: how many.
        clip: clip gradients to this norm.
        accumulate: micro-batches of a step.
        reuse: meta-updates take loss and gradient of the training step.
        unused: the model has a part without gradient.
        frozen: most of the model is not trained.
        batch_norm: the model has a batch norm, whose statistics are buffers.
        dtype: of the parameters.
    """

    wrap: str = "none"
    mode: str = "online"
    modulator: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    steps: int = 30
    clip: float | None = None
    accumulate: int = 1
    reuse: bool = False
    unused: bool = False
    frozen: bool = False
    batch_norm: bool = False
    dtype: torch.dtype = torch.float64


def wrap_ddp(model: Net, case: Case) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=case.unused)


def wrap_fsdp(model: Net, case: Case, mesh: DeviceMesh | None = None, **options: Any) -> nn.Module:
    mesh = mesh or init_device_mesh(device().type, (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def wrap_mixed(model: Net, case: Case) -> nn.Module:
    """Norms, head and scalar stay whole on every rank, and are averaged by hand."""
    whole = {*model.head.parameters(), model.scale}
    whole |= {p for layer in model.layers for p in layer.norm.parameters()}
    return wrap_fsdp(model, case, ignored_params=whole)


def wrap_hsdp(model: Net, case: Case) -> nn.Module:
    shape = (2, dist.get_world_size() // 2)
    mesh = init_device_mesh(device().type, shape, mesh_dim_names=("replicate", "shard"))
    return wrap_fsdp(model, case, mesh)


def wrap_tp(model: Net, case: Case, mesh: DeviceMesh | None = None) -> nn.Module:
    """Column- and row-wise linear layers; all else is plain, and every rank sees the same batch."""
    mesh = mesh or init_device_mesh(device().type, (dist.get_world_size(),))
    for layer in model.layers:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def wrap_sequence_parallel(model: Net, case: Case) -> nn.Module:
    """As ``wrap_tp``, and each rank normalises a part of the rows: partial gradients."""
    mesh = init_device_mesh(device().type, (dist.get_world_size(),))
    rows, everything = Shard(0), Replicate()
    for layer in model.layers:
        plan = {
            "norm": SequenceParallel(sequence_dim=0),
            "up": ColwiseParallel(input_layouts=rows),
            "down": RowwiseParallel(output_layouts=rows),
        }
        parallelize_module(layer, mesh, plan)
        split = PrepareModuleInput(
            input_layouts=everything, desired_input_layouts=rows, use_local_output=True
        )
        joined = PrepareModuleOutput(output_layouts=rows, desired_output_layouts=everything)
        parallelize_module(layer, mesh, split)
        parallelize_module(layer, mesh, joined)
    return model


def wrap_tp_fsdp(model: Net, case: Case) -> nn.Module:
    shape = (dist.get_world_size() // 2, 2)
    mesh = init_device_mesh(device().type, shape, mesh_dim_names=("data", "tensor"))
    return wrap_fsdp(wrap_tp(model, case, mesh["tensor"]), case, mesh["data"])


WRAPPERS: dict[str, Callable[..., nn.Module]] = {
    "none": lambda model, case: model,
    "ddp": wrap_ddp,
    "fsdp": wrap_fsdp,
    "fsdp_kept": lambda model, case: wrap_fsdp(model, case, reshard_after_forward=False),
    "fsdp_bfloat16": lambda model, case: wrap_fsdp(
        model, case, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    ),
    "mixed": wrap_mixed,
    "hsdp": wrap_hsdp,
    "tp": wrap_tp,
    "sequence_parallel": wrap_sequence_parallel,
    "tp_fsdp": wrap_tp_fsdp,
}


META: dict[str, dict[str, Any]] = {
    "lookahead": {"every": 3, "lr": 0.3, "hvp": "finite_difference"},
    "online": {"lr": 0.05},
}


def build(case: Case) -> tuple[nn.Module, MetaAdamW]:
    torch.manual_seed(0)
    net = Net(unused=case.unused, batch_norm=case.batch_norm).to(device(), case.dtype)
    if case.frozen:
        net.embedding.requires_grad_(False)
        net.layers.requires_grad_(False)
    model = WRAPPERS[case.wrap](net, case)
    meta = learning_of(case.mode, **{**META.get(case.mode, {}), **case.meta})
    optimizer = MetaAdamW(
        fine_grained_groups(model),
        lr=1e-2,
        weight_decay=0.1,
        modulator=modulator_of(**{"init": "xavier", **case.modulator}),
        learning=meta,
        **case.optimizer,
    )
    return model, optimizer


def data_shard(case: Case) -> tuple[int, int]:
    """Which part of every batch this rank sees."""
    if case.wrap in ("none", "tp", "sequence_parallel"):
        return 0, 1
    rank, size = dist.get_rank(), dist.get_world_size()
    return (rank // 2, size // 2) if case.wrap == "tp_fsdp" else (rank, size)


def backward(model: nn.Module, case: Case, number: int) -> Tensor:
    """The training gradient of a batch, in micro-batches, as a training loop takes it."""
    total = torch.zeros((), dtype=case.dtype, device=device())
    rank, size = data_shard(case)
    for micro in range(case.accumulate):
        last = micro == case.accumulate - 1
        part = batch_of(number, shard=(rank + micro * size, size * case.accumulate))
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        quiet = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if quiet else nullcontext():
            loss = loss_fn(model, part) / case.accumulate
            loss.backward()
            total += loss.detach()
    if case.wrap == "mixed":
        for param in model.parameters():
            if not isinstance(param, DTensor):
                dist.all_reduce(param.grad)
                param.grad /= size
    if case.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), case.clip)
    return total


def train(case: Case) -> dict[str, Any]:
    """α, β of every step, the parameters at the end, and what the meta-updates reported."""
    model, optimizer = build(case)
    shard = data_shard(case)
    history, updates = [], []
    for step in range(case.steps):
        loss = backward(model, case, step)
        if optimizer.meta_update_due:
            batches = [batch_of(1000 + 3 * step + i, shard=shard) for i in range(3)]
            if case.reuse:
                update = optimizer.update_attention(
                    model, loss_fn, None, *batches[1:], training_loss=loss
                )
            else:
                update = optimizer.update_attention(model, loss_fn, *batches)
            assert update.applied, update.skipped_reason
            updates.append(update.total)
        optimizer.step()
        optimizer.zero_grad()
        history.append(torch.stack(optimizer.modulation[:2]).detach().cpu())
    return {
        "modulation": torch.stack(history),
        "updates": torch.tensor(updates, dtype=torch.float64),
        "params": full_parameters(model),
        "modulator": [p.detach().cpu() for p in optimizer.modulator.parameters()],
    }


def full_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Whole parameters by the names of the bare model."""
    return {
        name.removeprefix("module."): whole(param).detach().cpu().clone()
        for name, param in model.named_parameters()
    }


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_like_one_process(ranks: list[dict[str, Any]], single: dict[str, Any]) -> None:
    """α, β, parameters within float64 round-off of one process, and the same bits on all ranks."""
    for result in ranks:
        for key in ("modulation", "updates"):
            torch.testing.assert_close(result[key], single[key], rtol=1e-9, atol=1e-9)
        assert result["params"].keys() == single["params"].keys()
        for name, param in single["params"].items():
            torch.testing.assert_close(result["params"][name], param, rtol=1e-9, atol=1e-9)
        assert torch.equal(result["modulation"], ranks[0]["modulation"])
        for name, param in ranks[0]["params"].items():
            assert torch.equal(result["params"][name], param)


class Collectives(TorchDispatchMode):
    """Notes every collective, with the number of elements it sends or receives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            size = sum(t.numel() for t in tree_leaves(args[0]) if isinstance(t, Tensor))
            self.seen.append((func.overloadpacket.__name__, size))
        return func(*args, **(kwargs or {}))
