"""The model of ``examples/lightning_text.py`` on one process or several; not a test."""

from __future__ import annotations

import os
import runpy
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from metaadamw.integrations.lightning import MetaAdamWCallback
from tests.integrations.killed_lightning import EXAMPLE, QUIET


def train(mode: str) -> dict[str, Any]:
    """Two epochs of six steps in float64, with a global batch of sixteen; what is left behind."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    example = runpy.run_path(str(EXAMPLE))
    seed_everything(0, verbose=False)
    training, meta_validation, _ = example["load"]()
    training = TensorDataset(*training[:96])
    distributed: dict[str, Any] = {}
    # Lightning distributes a shuffled loader itself, by the same permutation.
    order: dict[str, Any] = {"sampler": DistributedSampler(training, num_replicas=1, rank=0)}
    if size > 1:  # as torchrun starts processes
        rank = str(dist.get_rank())
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(size)}
        environment = TorchElasticEnvironment()
        distributed = {"strategy": "ddp", "devices": size, "plugins": [environment]}
        order = {"shuffle": True}
    trainer = Trainer(
        **QUIET,
        **distributed,
        max_epochs=2,
        precision="64-true",
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        callbacks=[MetaAdamWCallback(val_dataset=meta_validation)] * (mode == "lookahead"),
    )
    model = example["CharacterModel"](mode, 12)
    trainer.fit(model, DataLoader(training, 16 // size, **order))
    optimizer = trainer.optimizers[0]
    return {
        "model": model.state_dict(),
        "learned": optimizer.meta_state_dict()["modulator"],
        "modulation": [optimizer.modulation.alpha, optimizer.modulation.beta],
        "applied": int(optimizer.metrics()["meta/applied"]),
    }
