"""What a task is: data, model, loss, metric and protocol, in one frozen object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.utils.data import TensorDataset

# The model's inputs, then the target.
Batch = tuple[Tensor, ...]


class Splits(NamedTuple):
    """Disjoint parts of a data set.

    The weights learn from ``train``, the modulator also from ``meta_validation``, and numbers
    are reported on ``validation``, which no arm ever learns from.
    """

    train: TensorDataset
    meta_validation: TensorDataset
    validation: TensorDataset


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number to report, a mean over examples.

    Attributes:
        name: name with unit, as shown in tables.
        direction: which way is better.
        measure: ``measure(output, target)``, the mean over one batch.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    measure: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: everything a training run needs to know, apart from the optimizer.

    Attributes:
        name: the task's name on the command line.
        title: the task in a few words, for tables and pictures.
        data: what the data are and where they come from.
        load: returns the splits; no download, no randomness.
        build_model: returns a freshly initialised model.
        loss: ``loss(output, target)``, a mean over the batch.
        metric: what is reported.
        batch_size: examples per training batch.
        steps: optimizer steps of one run.
        lr: learning rate of every arm.
        weight_decay: weight decay of every arm.
    """

    name: str
    title: str
    data: str
    load: Callable[[], Splits]
    build_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric
    batch_size: int
    steps: int
    lr: float
    weight_decay: float

    def batch_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of the model on one batch, in the form ``update_attention`` expects."""
        *inputs, target = batch
        return self.loss(model(*inputs), target)
