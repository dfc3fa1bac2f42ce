"""What the tests train: a small network, its batches, and an exact comparison of everything."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaadamw import MetaAdamW, MetaUpdate, Schedule, fine_grained_groups

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Embedding, batch norm and dropout: every layer that a careless meta-update would disturb."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layers = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 5)
        )
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embedding(x))))


def make(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Net, MetaAdamW]:
    """The same network every time, and the paper's optimizer over its fine-grained groups."""
    torch.manual_seed(11)
    model = Net().to(dtype)
    paper = {"modulator": "attention", "learning": "lookahead"}
    if isinstance(options.get("modulator"), Schedule):
        paper["learning"] = "off"
    return model, MetaAdamW(fine_grained_groups(model), **{"lr": 1e-2, **paper, **options})


def batch(index: int, size: int = 12) -> Batch:
    """Batch number ``index``: 0, 1, … train; meta-updates use numbers from 1000 on."""
    generator = torch.Generator().manual_seed(index)
    x = torch.randint(0, 7, (size,), generator=generator)
    return x, (x.float().sin() + 0.1 * torch.randn(size, generator=generator)).unsqueeze(1)


def loss_fn(model: nn.Module, data: Batch) -> Tensor:
    x, y = data
    prediction = model(x)
    return (prediction - y.to(prediction)).square().mean()


def backward(model: nn.Module, index: int) -> Tensor:
    model.zero_grad()
    loss = loss_fn(model, batch(index))
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, indices: Iterable[int]) -> None:
    for index in indices:
        backward(model, index)
        optimizer.step()


def meta_update(
    model: nn.Module, optimizer: MetaAdamW, index: int = 0, loss: Any = loss_fn
) -> MetaUpdate:
    batches = [batch(1000 + 3 * index + i) for i in range(3)]
    return optimizer.update_attention(model, loss, *batches)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """A copy of all that training can see, random streams included; ``seen`` are identities."""
    named = dict(model.named_parameters())
    result: dict[str, Any] = {
        "params": {n: p.detach().clone() for n, p in named.items()},
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in named.items()},
        "requires_grad": {n: p.requires_grad for n, p in named.items()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "training": {n: m.training for n, m in model.named_modules()},
        "same_tensors": {n: id(t) for n, t in (*named.items(), *model.named_buffers())},
        "same_grads": {n: id(p.grad) for n, p in named.items()},
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "grad_mode": torch.is_grad_enabled(),
    }
    if optimizer is not None:
        result["optimizer"] = copy.deepcopy(torch.optim.Optimizer.state_dict(optimizer))
    return result


def full_snapshot(model: nn.Module, optimizer: MetaAdamW) -> dict[str, Any]:
    """Also the learned part."""
    return {**snapshot(model, optimizer), "learned": copy.deepcopy(optimizer.meta_state_dict())}


def results(model: nn.Module, optimizer: MetaAdamW) -> dict[str, Any]:
    """What a run leaves behind: weights, buffers, moments, groups and the learned part; no copy."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Equal to the last bit (NaN equals itself), in every tensor of a nested structure."""
    assert type(actual) is type(expected), f"{where}: {actual!r} and {expected!r}"
    if isinstance(expected, (Tensor, np.ndarray)):
        actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), where
        dense = torch.contiguous_format  # also where there is only one entry
        bits = [
            t.detach().reshape(-1).clone(memory_format=dense).view(torch.uint8)
            for t in (actual, expected)
        ]
        assert torch.equal(*bits), f"{where}: not the same bits"
    elif isinstance(expected, Mapping):
        assert set(actual) == set(expected), f"{where}: {list(actual)} and {list(expected)}"
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), f"{where}: {len(actual)} and {len(expected)} entries"
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert actual == expected, f"{where}: {actual!r} and {expected!r}"
