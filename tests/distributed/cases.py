"""One small training problem, run by one process or many: what every rank does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from metaadamw import MetaAdamW, MetaConfig, ModulatorConfig, fine_grained_groups
from tests.distributed.processes import device

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

    def __init__(self, width: int = WIDTH, *, unused: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)
        self.scale = nn.Parameter(torch.ones(1))
        if unused:
            self.unused = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).mean(1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x) * self.scale


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
        unused: the model has a part without gradient.
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
    unused: bool = False
    dtype: torch.dtype = torch.float64


def wrap_ddp(model: Net, case: Case) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=case.unused)


def wrap_fsdp(model: Net, case: Case, mesh: DeviceMesh | None = None, **options: Any) -> nn.Module:
    mesh = mesh or init_device_mesh(device().type, (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


WRAPPERS: dict[str, Callable[..., nn.Module]] = {
    "none": lambda model, case: model,
    "ddp": wrap_ddp,
    "fsdp": wrap_fsdp,
}


META: dict[str, dict[str, Any]] = {
    "lookahead": {"every": 3, "lr": 0.3, "hvp": "finite_difference"},
    "online": {"lr": 0.05},
}


def build(case: Case) -> tuple[nn.Module, MetaAdamW]:
    torch.manual_seed(0)
    model = WRAPPERS[case.wrap](Net(unused=case.unused).to(device(), case.dtype), case)
    default = {
        "lookahead": {"every": 3, "lr": 0.3, "hvp": "finite_difference"},
        "online": {"lr": 0.05},
    }
    meta = MetaConfig(mode=case.mode, **{**default.get(case.mode, {}), **case.meta})
    optimizer = MetaAdamW(
        fine_grained_groups(model),
        lr=1e-2,
        weight_decay=0.1,
        modulator=ModulatorConfig(**{"init": "xavier", **case.modulator}),
        meta=meta,
        **case.optimizer,
    )
    return model, optimizer


def data_shard(case: Case) -> tuple[int, int]:
    """Which part of every batch this rank sees."""
    if case.wrap == "none":
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def train(case: Case) -> dict[str, Any]:
    """α, β of every step, the parameters at the end, and what the meta-updates reported."""
    model, optimizer = build(case)
    shard = data_shard(case)
    history, updates = [], []
    for step in range(case.steps):
        loss_fn(model, batch_of(step, shard=shard)).backward()
        if case.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        optimizer.step()
        optimizer.zero_grad()
        history.append(torch.stack(optimizer.modulation[:2]).detach().cpu())
        if optimizer.meta_update_due:
            batches = [batch_of(1000 + 3 * step + i, shard=shard) for i in range(3)]
            update = optimizer.update_attention(model, loss_fn, *batches)
            assert update.applied, update.skipped_reason
            updates.append(update.total)
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
