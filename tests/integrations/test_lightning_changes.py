"""Lightning modules that leave batches out, and parameters that begin to train later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metaadamw import LookAhead, MetaAdamW, fine_grained_groups
from metaadamw.integrations.lightning import MetaAdamWCallback
from tests.integrations.killed_lightning import QUIET
from tests.integrations.test_lightning import (
    BARE,
    OFF,
    Module,
    applied,
    callbacks_of,
    fit,
    inner,
    modes,
)
from tests.training import assert_same

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:Checkpoint directory"
)
RUNS = ("whole", "resumed")


class Skipping(Module):
    """Leaves batches out, as Lightning allows; counts what it has seen."""

    def __init__(self, *arguments: Any, odd: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.odd, self.outputs, self.examples = odd, [], 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.examples += len(batch[0])
        result = super().training_step(batch, batch_idx)
        self.outputs.append(result["loss"].detach())
        batch[1].fill_(torch.nan)  # nobody needs these any more
        return None if self.odd(batch[0]) else result["loss"]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("threshold", [1, 8, 14, 25])
def test_a_training_step_that_returns_none(threshold):
    """Skipped with the reason; the training is that of a run without meta-updates."""

    def odd(x: Tensor) -> bool:
        return int(x.sum()) >= threshold

    class Reports(MetaAdamWCallback):
        reasons: list[str | None]

        def _update(self, *arguments: Any) -> None:
            before = self.last_update
            super()._update(*arguments)
            if self.last_update is not before:
                self.reasons.append(self.last_update.skipped_reason)

    callback = Reports()
    callback.reasons = []
    runs = []
    for meta in (LookAhead(every=2, lr=0.0), OFF):
        callbacks = [] if meta is OFF else [callback]
        runs.append(fit(Skipping(meta, odd=odd), *callbacks, accumulate_grad_batches=1))
    modules = [trainer.lightning_module for trainer in runs]
    assert inner(runs[0]).steps == inner(runs[1]).steps
    assert len(callback.reasons) == inner(runs[0]).steps // 2
    expected = {f"no loss on {name}: loss_fn returned None" for name in ("batch1", "batch2")}
    expected |= {"no loss on val_batch: loss_fn returned None", None}
    assert set(callback.reasons) <= expected
    assert (None in callback.reasons) == (applied(runs[0]) > 0)
    for name in ("outputs", "examples"):
        assert_same(*(getattr(module, name) for module in modules))
    assert_same(*(dict(module.net.state_dict()) for module in modules))


class Finetuned(LightningModule):
    """A frozen backbone that thaws while the head is trained."""

    def __init__(self, meta: Any, fine: bool) -> None:
        super().__init__()
        seed_everything(7, verbose=False)
        self.meta, self.fine = meta, fine
        self.backbone = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4))
        self.head = torch.nn.Linear(4, 1)

    def on_train_start(self) -> None:
        # Lightning freezes it again when a run is resumed, with any optimizer.
        self.backbone.requires_grad_(self.current_epoch > 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return (self.head(self.backbone(x)) - y).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> MetaAdamW:
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: Any = fine_grained_groups(self) if self.fine else trained
        return MetaAdamW(groups, lr=1e-2, modulator="attention", learning=self.meta)


class Still(Dataset):
    """Nothing random: Lightning does not save the streams."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(index % 7), torch.tensor([float(index % 5)])


def finetune(meta: Any, fine: bool, epochs: int, path: Path, resume: Path | None = None):
    thaw = BackboneFinetuning(
        unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3, train_bn=False
    )
    callbacks = [thaw, *callbacks_of(meta)]
    trainer = Trainer(**{**QUIET, **BARE, "max_epochs": epochs}, callbacks=callbacks)
    module = Finetuned(meta, fine)
    trainer.fit(module, DataLoader(Still(), 4), DataLoader(Still(), 4), ckpt_path=resume)
    trainer.save_checkpoint(path)
    return trainer


@modes
@pytest.mark.parametrize("fine", [False, True], ids=["plain", "fine"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_backbone_finetuning(tmp_path, meta, fine, stop):
    """The backbone's group is added while training; stopped before or after, it goes on exactly."""
    whole = finetune(meta, fine, 4, tmp_path / "whole.ckpt")
    optimizer = inner(whole)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in whole.lightning_module.parameters()}
    assert optimizer.steps == 48
    assert len(optimizer.group_names) == len(set(optimizer.group_names)) == (3 if fine else 2)
    finetune(meta, fine, stop, tmp_path / "part.ckpt")
    resumed = finetune(meta, fine, 4, tmp_path / "resumed.ckpt", tmp_path / "part.ckpt")
    one, other = (torch.load(tmp_path / f"{n}.ckpt", weights_only=False) for n in RUNS)
    for checkpoint in (one, other):
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group.pop("differentiable", None)  # torch adds it to what comes after a load
    for key in ("state_dict", "optimizer_states"):
        assert_same(other[key], one[key])
    assert applied(resumed) == applied(whole) > 0
