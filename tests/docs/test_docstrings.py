"""Every example in a docstring of the library runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaadamw
from metaadamw import LookAhead

MODULES = [
    "metaadamw",
    *(
        module.name
        for module in pkgutil.iter_modules(metaadamw.__path__, "metaadamw.")
        if not module.ispkg
    ),
]


def setting() -> dict[str, Any]:
    """What an example may take for granted: the public names, and a training in progress."""
    model = nn.Linear(4, 1)
    optimizer = metaadamw.MetaAdamW(
        metaadamw.fine_grained_groups(model), learning=LookAhead(every=1)
    )
    batches = [torch.randn(8, 4) for _ in range(3)]

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    def training_step(batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        return loss

    training_step(batches[0])
    names = {name: getattr(metaadamw, name) for name in metaadamw.__all__}
    names |= zip(("batch1", "batch2", "val_batch"), batches, strict=True)
    return names | {
        "model": model,
        "optimizer": optimizer,
        "batches": batches,
        "loss_fn": loss_fn,
        "training_step": training_step,
    }


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write files
    torch.manual_seed(0)
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(
        module, extraglobs=setting(), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failures == 0
