"""What a task is, and what it becomes once its data are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metaadamw_bench.names import unknown

# The model's inputs, then the target.
Batch = tuple[Tensor, ...]

# "paper": as its authors ran it, flaws included and named in the notes.
# "clean": train, meta-validation, validation and test share no example; test is read once.
Protocol = Literal["paper", "clean"]

# "full": the paper's model and data. "small": real data and the same kind of model, reduced
# until one run of AdamW takes about two minutes on one CPU core.
Size = Literal["small", "full"]


class Splits(NamedTuple):
    """Parts of a data set; ``dataset[index_tensor]`` is a batch.

    The weights learn from ``train``, the modulator also from ``meta_validation``; ``validation``
    picks the best epoch, and ``test`` is read once at the end (the ``paper`` protocol has none).
    """

    train: TensorDataset
    meta_validation: TensorDataset
    validation: TensorDataset
    test: TensorDataset | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number to report.

    Attributes:
        name: name with unit, as shown in tables.
        direction: which way is better.
        measure: ``measure(output, target)``, the mean over one batch; by default the loss.
        finish: turns the mean over a whole split into the number that is reported.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    measure: Callable[[Tensor, Tensor], Tensor] | None = None
    finish: Callable[[float], float] = float


class Means(NamedTuple):
    """Mean loss and reported metric over a split."""

    loss: float
    metric: float


def equal_epochs(epochs: int) -> dict[str, int]:
    """The same bound for every arm, for ``PreparedTask.max_epochs``."""
    return {"adamw": epochs, "metaadamw": epochs}


def epochs_of(
    sizes: Mapping[Size, int], paper: Mapping[str, int]
) -> Callable[[Protocol, Size], Mapping[str, int]]:
    """``Task.max_epochs``: those of the sizes, but as in the paper under its protocol."""
    return lambda protocol, size: (
        paper if (protocol, size) == ("paper", "full") else equal_epochs(sizes[size])
    )


def _every_element(target: Tensor) -> Tensor:
    return torch.tensor(target.numel())


@dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """A task in one protocol and size with its data: everything a run needs but the optimizer.

    Attributes:
        name: name of the task.
        protocol: the protocol.
        size: the size.
        splits: the data.
        build_model: returns a freshly initialised model.
        loss: ``loss(output, target)``, a mean over the scored elements of the batch.
        scored: how many elements of ``target`` count in the mean; all by default.
        metric: what is reported.
        batch_size: examples per training batch.
        drop_last: whether an incomplete last batch of an epoch is left out.
        max_epochs: upper bound for ``"adamw"`` (every arm without a modulator) and
            ``"metaadamw"``.
        patience: evaluations without improvement after which a run stops; None: never.
        min_delta: a validation loss must be lower by more than this to count as improved.
        lr: learning rate of every arm that is not tuned.
        weight_decay: weight decay of every arm that is not tuned.
        betas: Adam's decay rates.
        evaluation_batch_size: examples per batch of an evaluation.
        augment: ``augment(batch, generator)``, applied to training batches only.
        notes: what a reader has to know about this protocol and size.
    """

    name: str
    protocol: Protocol
    size: Size
    splits: Splits
    build_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    scored: Callable[[Tensor], Tensor] = _every_element
    metric: Metric
    batch_size: int
    drop_last: bool = False
    max_epochs: Mapping[str, int]
    patience: int | None
    min_delta: float = 0.0
    lr: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    evaluation_batch_size: int = 64
    augment: Callable[[Batch, torch.Generator], Batch] | None = None
    notes: tuple[str, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in one pass over the training part."""
        full, rest = divmod(len(self.splits.train), self.batch_size)
        return full + (rest > 0 and (not self.drop_last or full == 0))

    @cached_property
    def parameters(self) -> int:
        """Number of trainable numbers in the model."""
        with torch.device("meta"):  # counts without drawing random numbers
            model = self.build_model()
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def batch_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of the model on one batch, in the form ``update_attention`` expects."""
        *inputs, target = batch
        return self.loss(model(*inputs), target)

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed loss, summed measure and number of scored elements of a batch, in float64.

        Such sums may be added over batches and over processes; ``means`` ends the addition.
        """
        *inputs, target = batch
        output = model(*inputs)
        loss = self.loss(output, target)
        measure = loss if self.metric.measure is None else self.metric.measure(output, target)
        # On the host, since not every accelerator has float64.
        count = self.scored(target).cpu().double()
        return torch.stack([loss.cpu().double() * count, measure.cpu().double() * count, count])

    def means(self, sums: Tensor) -> Means:
        """Mean loss and reported metric from added ``sums``."""
        loss, measure = (sums[:2] / sums[2]).tolist()
        return Means(loss, self.metric.finish(measure))

    def evaluate(self, model: nn.Module, dataset: TensorDataset) -> Means:
        """Mean loss and metric over a whole split, in evaluation mode."""
        was_training = model.training
        model.eval()
        total = torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(dataset), self.evaluation_batch_size):
            batch = dataset[start : start + self.evaluation_batch_size]
            total += self.sums(model, batch)
        model.train(was_training)
        return self.means(total)


@dataclass(frozen=True, kw_only=True)
class PaperNumbers:
    """What the paper reports, one seed (42).

    Attributes:
        adamw: best validation metric of AdamW (Table 2).
        metaadamw: best validation metric of MetaAdamW (Table 2).
    """

    adamw: float
    metaadamw: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, described without its data.

    Attributes:
        name: the task's name on the command line.
        title: the task in a few words, for tables and pictures.
        data: what the data are and where they come from.
        metric: what is reported.
        build: ``build(protocol, size, data_dir)`` reads the data.
        max_epochs: ``max_epochs(protocol, size)`` is ``PreparedTask.max_epochs``.
        protocols: the protocols there are.
        sizes: the sizes there are.
        data_set: name of the data set for ``metaadamw data``; None if nothing is downloaded.
        paper: what the paper reports; None for a task that is not the paper's.
    """

    name: str
    title: str
    data: str
    metric: Metric
    build: Callable[[Protocol, Size, Path | None], PreparedTask] = field(repr=False)
    max_epochs: Callable[[Protocol, Size], Mapping[str, int]] = field(repr=False)
    protocols: tuple[Protocol, ...] = ("paper", "clean")
    sizes: tuple[Size, ...] = ("small", "full")
    data_set: str | None = None
    paper: PaperNumbers | None = None

    def prepare(
        self,
        *,
        protocol: Protocol = "clean",
        size: Size = "small",
        data_dir: str | Path | None = None,
    ) -> PreparedTask:
        """Read the data and return what a run needs.

        Args:
            protocol: one of ``protocols``.
            size: one of ``sizes``.
            data_dir: where the data are; by default ``METAADAMW_DATA``, then the cache, then
                a download.

        Raises:
            ValueError: the task has no such protocol or size.
            DataError: the data are missing or damaged; the message says what to do.
        """
        if protocol not in self.protocols:
            raise ValueError(f"protocol: {unknown(protocol, self.protocols)} ({self.name})")
        if size not in self.sizes:
            raise ValueError(f"size: {unknown(size, self.sizes)} ({self.name})")
        return self.build(protocol, size, None if data_dir is None else Path(data_dir))
