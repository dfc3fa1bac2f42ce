"""The real Trainer of Lightning; what is compared is compared to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric

from metaadamw import Hypergradient, LookAhead, MetaAdamW, Off, fine_grained_groups
from metaadamw.integrations.lightning import MetaAdamWCallback
from tests.distributed.processes import Processes
from tests.integrations.ddp_lightning import train as train_on_processes
from tests.integrations.killed_lightning import QUIET, train
from tests.training import Net, assert_same, loss_fn

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:Checkpoint directory"
)
ONLINE = Hypergradient(lr=1e-2)
LOOKAHEAD = LookAhead(every=2, lr=1e-2, optimizer="adam")
OFF = Off()
BARE: dict[str, Any] = {"enable_checkpointing": False, "num_sanity_val_steps": 0}
modes = pytest.mark.parametrize("meta", [ONLINE, LOOKAHEAD], ids=["online", "lookahead"])


class Data(Dataset):
    """Examples with random noise, drawn when they are loaded."""

    def __init__(self, start: int, length: int = 48) -> None:
        self.start, self.length = start, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.tensor((self.start + index) % 7)
        return x, (x.float().sin() + 0.1 * torch.randn(())).reshape(1)


class Module(LightningModule):
    """Batch norm, dropout, hooks that draw random numbers, logging, a metric of the validation."""

    def __init__(self, meta: Any | None, dropout: float = 0.3, **options: Any) -> None:
        super().__init__()
        seed_everything(7, verbose=False)
        self.net, self.meta, self.options = Net(dropout), meta, options
        self.validated = MeanMetric()
        self.losses: list[Tensor] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x, y + 0.1 * torch.randn_like(y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = loss_fn(self.net, batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach().clone())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated(loss_fn(self.net, batch))
        self.log("validation", self.validated)

    def configure_optimizers(self) -> Any:
        groups = fine_grained_groups(self)
        if self.meta is None:
            optimizer: Any = torch.optim.AdamW([{"params": g["params"]} for g in groups], lr=1e-2)
        else:
            options = {"modulator": "attention", "learning": self.meta, **self.options}
            optimizer = MetaAdamW(groups, lr=1e-2, **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Manual(Module):
    """The same by hand."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = loss_fn(self.net, batch) / 2
        self.manual_backward(loss)
        if batch_idx % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.5)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return {"loss": loss}


def fit(
    module: Module, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any
) -> Trainer:
    """Accumulation and clipping are on; twelve batches and six steps in an epoch."""
    if module.automatic_optimization:
        options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, **options}
    trainer = Trainer(**{**QUIET, **BARE, "max_epochs": 2, **options}, callbacks=list(callbacks))
    seed_everything(7, verbose=False)
    data = {"train_dataloaders": DataLoader(Data(0), 4), "val_dataloaders": DataLoader(Data(3), 4)}
    trainer.fit(module, **data, ckpt_path=ckpt_path)
    return trainer


def callbacks_of(meta: Any | None, **options: Any) -> list[Callback]:
    return [MetaAdamWCallback(**options)] if meta is LOOKAHEAD else []


def inner(trainer: Trainer) -> MetaAdamW:
    return trainer.optimizers[0]


def applied(trainer: Trainer) -> int:
    return int(inner(trainer).metrics()["meta/applied"])


def outcome(trainer: Trainer) -> Any:
    module = trainer.lightning_module
    logged = {name: value.clone() for name, value in trainer.callback_metrics.items()}
    return module.losses, dict(module.net.state_dict()), logged


def test_without_learning_it_is_adamw():
    ours, theirs = fit(Module(OFF)), fit(Module(None))
    assert_same(outcome(ours), outcome(theirs))
    assert len(ours.lightning_module.losses) == 24


def test_online_mode_is_one_changed_line():
    trainer = fit(Module(ONLINE))
    assert (inner(trainer).steps, applied(trainer)) == (12, 11)
    assert not torch.equal(inner(trainer).modulation.alpha, torch.ones(()))


def test_meta_updates_do_not_disturb_the_training():
    """With a modulator that cannot move, look-ahead changes no loss, weight or logged value."""
    callback = MetaAdamWCallback()
    still = fit(Module(LookAhead(every=2, lr=0.0)), callback)
    assert applied(still) == 6
    assert callback.last_update.applied
    assert_same(outcome(still), outcome(fit(Module(OFF))))


def test_what_a_meta_update_sees():
    """Two training batches and one of the validation set, after all hooks, always the same."""
    seen: list[Tensor] = []

    def loss(module: Module, batch: Any) -> Tensor:
        seen.append(batch[1].detach().clone())
        return loss_fn(module.net, batch)

    module = Module(LOOKAHEAD)
    fit(module, MetaAdamWCallback(loss, val_dataset=Data(100, 4)), max_steps=2)
    distinct = {tuple(y.flatten().tolist()) for y in seen}
    assert len(distinct) == 3
    assert len(seen) > 3
    assert all(len(y) == 4 for y in seen)
    learned = inner(module.trainer).meta_state_dict()["modulator"]
    module = Module(LOOKAHEAD)
    fit(module, MetaAdamWCallback(val_dataset=Data(100, 4)), max_steps=2)
    assert_same(inner(module.trainer).meta_state_dict()["modulator"], learned)


@modes
def test_manual_optimization(meta):
    """By hand or not: the same numbers."""

    def loss(module: Module, batch: Any) -> Tensor:
        return loss_fn(module.net, batch)

    manual = fit(Manual(meta), *callbacks_of(meta, loss_fn=loss))
    automatic = fit(Module(meta), *callbacks_of(meta))
    assert (inner(manual).steps, applied(manual)) == (12, 11 if meta is ONLINE else 6)
    assert_same(outcome(manual)[:2], outcome(automatic)[:2])
    assert_same(inner(manual).state_dict()["state"], inner(automatic).state_dict()["state"])


class SaveFirst(Callback):
    """A checkpoint right after a step, before the meta-update that is due after it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (0, 11):
            assert inner(trainer).meta_update_due
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_before_a_meta_update(tmp_path):
    path = tmp_path / "last.ckpt"
    options = {"dropout": 0.0}

    class Plain(Module):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, _ = batch
            return x, x.float().sin().unsqueeze(1)  # Lightning does not save random streams

    whole = fit(Plain(LOOKAHEAD, **options), SaveFirst(path), MetaAdamWCallback())
    resumed = fit(Plain(LOOKAHEAD, **options), MetaAdamWCallback(), ckpt_path=path)
    assert_same(resumed.lightning_module.net.state_dict(), whole.lightning_module.net.state_dict())
    assert_same(inner(resumed).state_dict(), inner(whole).state_dict())
    assert applied(whole) == 6


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_killed_and_started_again(tmp_path, mode):
    """Killed in the third epoch, it goes on from the end of the second, exactly."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = str(Path(__file__).with_name("killed_lightning.py"))
    command = [sys.executable, script, str(killed), mode, "8"]
    # As many threads as here: sums depend on how they are shared out.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == -signal.SIGKILL, process.stderr
    train(killed, mode)  # the same call in another process
    assert applied(train(whole, mode)) == (11 if mode == "online" else 2)
    expected, seen = ((run / "losses.txt").read_text().splitlines() for run in (whole, killed))
    assert len(expected) == 24
    assert seen == expected[:16] + expected[12:]  # what came after the checkpoint is done again
    one, other = (torch.load(run / "last.ckpt", weights_only=False) for run in (whole, killed))
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(other[key], one[key])


@modes
def test_bfloat16_autocast(meta):
    seen = []
    module = Module(meta)
    module.net.head.register_forward_hook(lambda m, inputs, output: seen.append(output.dtype))
    trainer = fit(module, *callbacks_of(meta), precision="bf16-mixed", limit_val_batches=1)
    assert set(seen) == {torch.bfloat16}
    assert applied(trainer) == (11 if meta is ONLINE else 6)


class Overflow(Callback):
    """Infinite gradients in the third step."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == 5 and trainer.current_epoch == 0:
            next(pl_module.parameters()).grad.fill_(float("inf"))


@modes
def test_loss_scaling(meta):
    """The scaler's statistics are of unscaled gradients; a step that it skips advances nothing."""

    def scaled(initial: float) -> Trainer:
        scaler = torch.amp.GradScaler("cpu", init_scale=initial, growth_interval=1000)
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        return fit(Module(meta), Overflow(), *callbacks_of(meta), plugins=[plugin])

    small, large = scaled(1.0), scaled(1024.0)
    assert inner(small).steps == 11
    assert applied(small) == (10 if meta is ONLINE else 5)
    # Powers of two scale and unscale without rounding.
    assert_same(outcome(large), outcome(small))
    assert_same(inner(large).state_dict(), inner(small).state_dict())


class Counting(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.validated.update(batch_idx)
        return super().training_step(batch, batch_idx)


def test_a_metric_that_counts_meta_batches_is_refused():
    with pytest.raises(RuntimeError, match="counts the batches of a meta-update in MeanMetric"):
        fit(Counting(LOOKAHEAD), MetaAdamWCallback())


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(Data(0))


class Several(Module):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass


def error_of(module: Module, callback: Callback, **data: Any) -> str:
    trainer = Trainer(**QUIET, **BARE, max_steps=4, callbacks=[callback])
    loaders = {"train_dataloaders": DataLoader(Data(0), 4), **data}
    with pytest.raises((TypeError, ValueError)) as caught:
        trainer.fit(module, **loaders)
    assert trainer.global_step == 0
    return str(caught.value)


def test_what_does_not_fit_is_refused_at_the_start():
    validation = DataLoader(Data(0), 4)
    callback = MetaAdamWCallback()
    assert "needs MetaAdamW, got ['AdamW']" in error_of(Module(None), callback)
    assert "learning='lookahead', got ['Hypergradient']" in error_of(Module(ONLINE), callback)
    assert "needs validation batches" in error_of(Module(LOOKAHEAD), callback)
    several = error_of(Several(LOOKAHEAD), callback, val_dataloaders=[validation] * 2)
    assert "val_dataloaders must be one DataLoader" in several
    message = error_of(
        Module(LOOKAHEAD), callback, train_dataloaders={"a": validation}, val_dataloaders=validation
    )
    assert "train_dataloader must be one DataLoader" in message
    message = error_of(
        Module(LOOKAHEAD),
        callback,
        train_dataloaders=DataLoader(Stream(), 4),
        val_dataloaders=validation,
    )
    assert "dataset must have a length" in message
    assert "loss_fn must be given" in error_of(Manual(LOOKAHEAD), callback)
    with pytest.raises(TypeError, match=r"loss_fn must be callable.*got 3"):
        MetaAdamWCallback(3)


def test_an_objective_without_validation_needs_no_validation_set():
    meta = LookAhead(every=2, objective="gradient_alignment")
    module = Module(meta)
    trainer = Trainer(**QUIET, **BARE, max_steps=4, callbacks=[MetaAdamWCallback()])
    trainer.fit(module, DataLoader(Data(0), 4))
    assert applied(trainer) == 2


def test_a_compiled_network():
    """Look-ahead takes differences."""
    callback = MetaAdamWCallback()
    module = Module(LOOKAHEAD, dropout=0.0)
    module.net = torch.compile(module.net, backend="aot_eager")
    trainer = fit(module, callback, max_steps=4)
    assert applied(trainer) == 2
    assert callback.last_update.hvp == "finite_difference"


@pytest.fixture(scope="module")
def two_processes() -> Iterator[Processes]:
    processes = Processes(2)
    yield processes
    processes.close()


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_two_processes(two_processes, mode):
    """DDP: the processes agree to the last bit, and with one process up to rounding."""
    first, second = two_processes.run(train_on_processes, mode)
    assert_same(second, first)
    one = train_on_processes(mode)
    assert first["applied"] == one["applied"] == (11 if mode == "online" else 2)
    torch.testing.assert_close(first, one, rtol=1e-9, atol=1e-9)
