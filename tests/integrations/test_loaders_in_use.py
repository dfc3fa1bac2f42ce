"""Meta-batches are those of the loader in use, whatever a framework does to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import BatchSizeFinder
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from metaadamw import LookAhead, MetaAdamW, NumberedBatches
from metaadamw.integrations import lightning, transformers
from metaadamw.integrations.loaders import LoaderBatches, batch_size_of, own_copy
from tests.integrations.killed_lightning import QUIET

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*LeafSpec",
    "ignore:The number of training",
    "ignore:a meta-update was due",
    "ignore:.*not have the attribute",
)
SEEN: list[tuple[str, int, list[float]]] = []  # what evaluates, the size, which examples


class Values(Dataset):
    """Examples that say which data set they are of: ``kind``, then their number in it."""

    def __init__(self, kind: int, length: int = 32) -> None:
        self.kind, self.length = kind, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= self.length:
            raise IndexError(index)
        x = torch.tensor([float(self.kind), float(index)])
        return {"x": x, "labels": x.sum()}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": (self.layer(x / 32).squeeze(1) - labels / 32).square().mean()}


class Noting(MetaAdamW):
    """Says while a meta-update runs."""

    updating = False

    def update_attention(self, *arguments: Any, **options: Any) -> Any:
        Noting.updating = True
        try:
            return super().update_attention(*arguments, **options)
        finally:
            Noting.updating = False


def note(x: Tensor) -> None:
    SEEN.append(("meta" if Noting.updating else "train", len(x), x.tolist()))


def kinds(name: str) -> list[tuple[int, set[float]]]:
    """Size and data sets of the batches."""
    return [(size, {kind for kind, _ in rows}) for seen, size, rows in SEEN if seen == name]


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


# Lightning ---------------------------------------------------------------------------------------


class Module(LightningModule):
    limit = 10**9

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if len(batch["x"]) > self.limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        note(batch["x"])
        return self.net(**batch)["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return Noting(self.parameters(), lr=1e-3, learning=LookAhead(every=2))


class PerEpoch(LightningDataModule):
    """Another data set and batch size in every epoch, for training and validation."""

    def __init__(self, size: Any = lambda epoch: 4) -> None:
        super().__init__()
        self.size = size

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch
        return DataLoader(Values(epoch, 24 + 24 * epoch), self.size(epoch))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Values(100 + self.trainer.current_epoch), 4)


def fit(module: Module, tmp_path: Any, *callbacks: Any, data: Any = None, **options: Any) -> Any:
    trainer = LightningTrainer(
        **{
            **QUIET,
            "enable_checkpointing": False,
            "default_root_dir": tmp_path,
            "num_sanity_val_steps": 0,
            "max_epochs": 3,
            **options,
        },
        callbacks=[*callbacks, lightning.MetaAdamWCallback()],
    )
    trainer.fit(module, datamodule=data or PerEpoch())
    return trainer


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("size", [lambda epoch: 4, lambda epoch: 4 - epoch], ids=["4", "4, 3, 2"])
def test_reloaded_loaders(tmp_path, size, every):
    module = Module()
    marks: list[int] = []

    class Epochs(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            marks.append(len(SEEN))

    fit(module, tmp_path, Epochs(), data=PerEpoch(size), reload_dataloaders_every_n_epochs=every)
    everything = list(SEEN)
    for epoch, (start, end) in enumerate(zip([0, *marks], marks, strict=False)):
        SEEN[:] = everything[start:end]
        loaded = epoch // every * every
        assert set(map(str, kinds("train"))) == {str((size(loaded), {float(loaded)}))}
        meta = kinds("meta")
        assert {n for n, _ in meta} == {size(loaded)}
        training = {k for _, found in meta for k in found if k < 100}
        assert training == {float(loaded)}
        validation = {k for _, found in meta for k in found if k >= 100}
        # Lightning loads the validation set of an epoch when that is over.
        assert validation <= {100.0 + e for e in range(epoch + 1)}
        assert validation


@pytest.mark.parametrize("mode", ["power", "binsearch"])
@pytest.mark.parametrize("limit", [4, 7])
def test_batch_size_finder(tmp_path, limit, mode):
    """The size that was found, also in meta-updates."""

    class Data(PerEpoch):
        batch_size = 2

        def train_dataloader(self) -> DataLoader:
            return DataLoader(Values(0, 64), self.batch_size)

    module, data = Module(), Data()
    module.limit = limit
    finder = BatchSizeFinder(mode=mode, steps_per_trial=1)
    trainer = fit(module, tmp_path, finder, data=data, max_epochs=2)
    assert 1 < data.batch_size <= limit
    assert {size for size, _ in kinds("meta")} == {data.batch_size}
    assert int(trainer.optimizers[0].metrics()["meta/applied"]) > 0


# Trainer -----------------------------------------------------------------------------------------


class Base(Trainer):
    limit = 10**9

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if len(inputs["x"]) > self.limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        note(inputs["x"])
        return super().compute_loss(model, inputs, *rest, **options)


def trainer_of(tmp_path: Any, kind: type[Base] = Base, callback: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "remove_unused_columns": False,
        **options,
    }
    trainer = kind(
        Net(),
        TrainingArguments(str(tmp_path), **settings),
        train_dataset=Values(0, 64),
        eval_dataset=Values(100, 64),
        optimizer_cls_and_kwargs=(Noting, {"lr": 1e-3, "learning": LookAhead(every=2)}),
        callbacks=callback,
    )
    trainer.add_callback(transformers.MetaAdamWCallback(trainer))
    return trainer


@pytest.mark.parametrize("limit", [1, 3, 5, 8, 100])
def test_auto_find_batch_size(tmp_path, limit):
    trainer = trainer_of(tmp_path, auto_find_batch_size=True)
    trainer.limit = limit
    trainer.train()
    found = trainer._train_batch_size
    assert found == min(limit, 8)
    assert {size for size, _ in kinds("meta")} == {found}
    assert int(trainer.optimizer.optimizer.metrics()["meta/applied"]) == 6


class Short(Base):
    """Memory is shorter in a meta-update than in a step."""

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if Noting.updating and len(inputs["x"]) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return super().compute_loss(model, inputs, *rest, **options)


@pytest.mark.filterwarnings("error:a meta-update was due")
def test_memory_is_too_short_for_a_meta_update_only(tmp_path):
    trainer = trainer_of(tmp_path, Short, auto_find_batch_size=True)
    trainer.train()
    assert trainer._train_batch_size == 3
    assert trainer.state.global_step == 12
    assert {size for size, _ in kinds("meta")} == {3}


class Own(Base):
    """Loaders of the user's own."""

    size = 5

    def get_train_dataloader(self) -> Any:
        return self.accelerator.prepare(DataLoader(Values(7, 60), self.size, shuffle=True))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        kind = 200 + int(self.state.epoch or 0)
        return self.accelerator.prepare(DataLoader(Values(kind, 60), 2))


@pytest.mark.parametrize("size", [3, 5, 20])
def test_loaders_of_a_subclass(tmp_path, size):
    trainer = trainer_of(tmp_path, type("Sized", (Own,), {"size": size}), num_train_epochs=3)
    trainer.args.max_steps = -1
    trainer.train()
    assert {size for size, _ in kinds("train")} == {size}
    assert {size for size, _ in kinds("meta")} == {size}
    training = {k for _, found in kinds("meta") for k in found if k < 100}
    validation = {k for _, found in kinds("meta") for k in found if k >= 100}
    assert training == {7.0}
    assert validation == {200.0, 201.0, 202.0}


class Change(TrainerCallback):
    """Other data in every epoch, as curricula and active learning set them."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.change(self.trainer, round(state.epoch or 0), objects)


def changed_in_place(trainer: Any, epoch: int, objects: Any) -> None:
    trainer.train_dataset.kind = epoch
    trainer.eval_dataset.kind = 100 + epoch


def eval_set_replaced(trainer: Any, epoch: int, objects: Any) -> None:
    trainer.train_dataset.kind = epoch
    trainer.eval_dataset = Values(100 + epoch, 40)


def shorter(trainer: Any, epoch: int, objects: Any) -> None:
    trainer.eval_dataset.length = 64 - 24 * epoch
    changed_in_place(trainer, epoch, objects)


@pytest.mark.parametrize("change", [changed_in_place, eval_set_replaced, shorter])
def test_data_set_of_the_epoch(tmp_path, change):
    callback = Change(change)
    trainer = trainer_of(tmp_path, callback=[callback], max_steps=24)  # eight steps in an epoch
    callback.trainer = trainer
    trainer.train()
    step = 0
    for seen, size, rows in SEEN:
        step += seen == "train"
        epoch = (step - 1) // 8
        assert size == 8
        assert {kind for kind, _ in rows} <= {float(epoch), 100.0 + epoch}
        if change is shorter and rows[0][0] >= 100:
            assert max(number for _, number in rows) < 64 - 24 * epoch


# The parts ---------------------------------------------------------------------------------------


def test_a_split_by_the_sampler_keeps_the_rest_out():
    indices = [3, 5, 8, 13, 21]
    loader = DataLoader(Values(0), 2, sampler=SubsetRandomSampler(indices))
    batches = LoaderBatches().of(loader, 2)
    assert {n for i in range(20) for n in batches[i]["x"][:, 1].tolist()} == set(indices)


def test_made_anew_only_for_another_loader_or_size():
    loader, other = DataLoader(Values(0), 4), DataLoader(Values(1), 4)
    batches = LoaderBatches(seed=3)
    first = batches.of(loader, 4)
    assert batches.of(loader, 4) is first
    assert batches.of(loader, 3) is not first
    assert batches.of(other, 4)[0]["x"][0, 0] == 1
    expected = NumberedBatches(Values(0), 4, seed=3)[5]["x"]
    assert torch.equal(batches.of(loader, 4)[5]["x"], expected)


def test_batch_size_of():
    assert batch_size_of(DataLoader(Values(0), 4)) == 4
    sampler = torch.utils.data.BatchSampler(range(10), 3, drop_last=False)
    assert batch_size_of(DataLoader(Values(0), batch_sampler=sampler)) == 3
    assert batch_size_of(DataLoader(Values(0), batch_size=None)) is None
    assert batch_size_of(DataLoader(Values(0), batch_sampler=[[0, 1]])) is None


def test_a_copy_of_ones_own():
    batch = {"x": torch.zeros(2), "rest": [torch.zeros(1), ("text", torch.zeros(1))], "n": 3}
    copy = own_copy(batch)
    copy["x"].add_(1), copy["rest"][0].add_(1), copy["rest"][1][1].add_(1)
    assert all(t.sum() == 0 for t in (batch["x"], batch["rest"][0], batch["rest"][1][1]))
    assert (copy["n"], copy["rest"][1][0]) == (3, "text")


@pytest.mark.parametrize("lengths", [[10, 4, 30], [3, 10, 1], [7, 7, 2]])
def test_a_data_set_that_changes_its_length(lengths):
    data = Values(0)
    data.length = lengths[0]
    batches = NumberedBatches(data, 4)
    for length in lengths:
        data.length = length
        fresh = NumberedBatches(Values(0, length), 4)
        for n in range(12):
            assert torch.equal(batches[n]["x"], fresh[n]["x"])
    data.length = 0
    with pytest.raises(ValueError, match="must hold at least one example"):
        batches[0]
