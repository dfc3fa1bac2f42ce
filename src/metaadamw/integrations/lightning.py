"""Lightning: meta-updates in a callback.

Mode "online" needs nothing from here: return ``MetaAdamW`` from ``configure_optimizers``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader

from metaadamw import LookAhead, MetaAdamW, MetaUpdate, NumberedBatches
from metaadamw.integrations import require
from metaadamw.integrations.kept import kept
from metaadamw.integrations.loaders import LoaderBatches, batch_size_of, own_copy

require("lightning", extra="lightning")

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from torchmetrics import Metric  # noqa: E402

__all__ = ["MetaAdamWCallback"]


class MetaAdamWCallback(Callback):
    """Mode "lookahead" in a ``Trainer``: calls ``update_attention`` when it is due.

    Training batches come from a second, independent pass over the train set, validation batches
    from the validation set, each of the size of a training batch. They are of the loaders in use,
    also when those are reloaded or given another batch size. All of them follow from the seed of
    ``seed_everything`` and the optimizer's step, so that ``fit(ckpt_path=...)`` continues exactly
    and nothing has to be saved.

    What the loss notes in attributes of the module is put back: numbers, tensors, arrays, and
    lists, dicts, sets and deques of them. What happens inside objects of another kind (a meter, a
    ``torch.Generator``, a file) stays: give ``loss_fn`` then.

    Args:
        loss_fn: ``loss_fn(module, batch)`` -> scalar, or None for a batch to be left out. None:
            ``training_step``, whose ``self.log`` is silent meanwhile; for automatic optimization
            only.
        train_dataset: examples of the meta-updates' training batches. None: those of the trainer.
        val_dataset: examples of their validation batches. None: those of the trainer. They are a
            training signal here; keep others for the numbers you report.

    Raises:
        TypeError: at the start of the training, if there is no MetaAdamW, a loader is no
            ``DataLoader`` or a data set has no length; or when such a loader is loaded later.
        ValueError: likewise, if it does not learn by look-ahead, there are several such optimizers,
            no or several validation sets, or no loss.
        RuntimeError: in a meta-update, if ``training_step`` counts its batches in a metric.

    Example:
        >>> trainer = Trainer(callbacks=[MetaAdamWCallback()])  # doctest: +SKIP
    """

    def __init__(
        self,
        loss_fn: Callable[[LightningModule, Any], Tensor | None] | None = None,
        *,
        train_dataset: Any = None,
        val_dataset: Any = None,
    ) -> None:
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable as loss_fn(module, batch), got {loss_fn!r}")
        self.loss_fn, self.train_dataset, self.val_dataset = loss_fn, train_dataset, val_dataset
        self.last_update: MetaUpdate | None = None
        """Report of the latest meta-update."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the optimizer and the data sets."""
        self.optimizer = _optimizer(trainer)
        arguments = inspect.signature(pl_module.training_step).parameters
        if self.loss_fn is None:
            if not pl_module.automatic_optimization or "dataloader_iter" in arguments:
                raise ValueError(
                    "loss_fn must be given where training_step does more than return the loss of a "
                    "batch (manual optimization, dataloader_iter)"
                )
            self.index: tuple[int, ...] = (0,) if len(arguments) > 1 else ()
        self.train_batches = _batches(trainer, self.train_dataset)
        self.val_batches = _batches(trainer, self.val_dataset)
        _, validation = self._numbered(trainer)  # what does not fit is refused now
        learning = cast(LookAhead, self.optimizer.learning)
        if validation is None and "val_batch" in learning.needed_batches():
            raise ValueError(
                f"objective={learning.objective!r} needs validation batches: "
                "give fit() val_dataloaders, or MetaAdamWCallback a val_dataset"
            )

    def _numbered(self, trainer: Trainer) -> tuple[NumberedBatches, NumberedBatches | None]:
        """Training and validation batches of the loaders that the trainer has now."""
        loader = _one_loader("train_dataloader", trainer.train_dataloader)
        size = batch_size_of(loader)
        if size is None:
            raise ValueError(
                "train_dataloader must have a batch_size for MetaAdamWCallback, got None; for "
                "batches of another kind call update_attention in a hook of your module"
            )
        train, val_loader = self.train_batches.of(loader, size), loader
        if self.val_dataset is None:
            if not trainer.val_dataloaders:
                return train, None
            val_loader = _one_loader("val_dataloaders", trainer.val_dataloaders)
        return train, self.val_batches.of(val_loader, size)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A checkpoint may have been written between a step and the meta-update due after it."""
        self._update(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the optimizer's step; Lightning's own checkpoints are written later."""
        self._update(trainer, pl_module)

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.optimizer.meta_update_due:
            return

        def loss(model: nn.Module, batch: Any) -> Tensor | None:
            # Here, so that hooks which augment draw the same numbers for the same batch, and
            # nothing of the training's random streams.
            with kept(pl_module):
                batch = trainer.precision_plugin.convert_input(own_copy(batch))
                batch = pl_module._on_before_batch_transfer(batch)
                batch = trainer.strategy.batch_to_device(batch)
                with trainer.precision_plugin.train_step_context():
                    return self._loss(pl_module, batch)

        train, validation = self._numbered(trainer)
        n = self.optimizer.steps // cast(LookAhead, self.optimizer.learning).every
        self.last_update = self.optimizer.update_attention(
            pl_module if trainer.model is None else trainer.model,  # DDP knows the other processes
            loss,
            train[2 * n],
            train[2 * n + 1],
            None if validation is None else validation[n],
        )

    def _loss(self, pl_module: LightningModule, batch: Any) -> Tensor | None:
        if self.loss_fn is not None:
            return self.loss_fn(pl_module, batch)
        with _unlogged(pl_module):
            output: Any = pl_module.training_step(batch, *self.index)
        loss: Tensor | None = output["loss"] if isinstance(output, Mapping) else output
        return loss


def _optimizer(trainer: Trainer) -> MetaAdamW:
    found = [o for o in trainer.optimizers if isinstance(o, MetaAdamW)]
    if not found:
        names = [type(o).__name__ for o in trainer.optimizers]
        raise TypeError(
            f"MetaAdamWCallback needs MetaAdamW, got {names}; return one from configure_optimizers"
        )
    looking = [o for o in found if isinstance(o.learning, LookAhead)]
    if len(looking) != 1:
        raise ValueError(
            "MetaAdamWCallback needs one optimizer with learning='lookahead', got "
            f"{[type(o.learning).__name__ for o in found]}; what learns inside step() does without "
            "it, and for several call update_attention yourself"
        )
    return looking[0]


def _one_loader(name: str, loaders: Any) -> DataLoader[Any]:
    loader = loaders[0] if isinstance(loaders, (list, tuple)) and len(loaders) == 1 else loaders
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"{name} must be one DataLoader for MetaAdamWCallback, got {loader!r}; for anything "
            "else call update_attention in a hook of your module"
        )
    return loader


def _batches(trainer: Trainer, dataset: Any) -> LoaderBatches:
    return LoaderBatches(
        dataset,
        seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )


@contextmanager
def _unlogged(pl_module: LightningModule) -> Iterator[None]:
    """``self.log`` does nothing; a metric that counts a batch all the same is an error."""
    metrics = [m for m in pl_module.modules() if isinstance(m, Metric)]
    counts = [metric.update_count for metric in metrics]
    pl_module.log = lambda *values, **options: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del pl_module.log
    for metric, count in zip(metrics, counts, strict=True):
        if metric.update_count != count:
            raise RuntimeError(
                f"training_step counts the batches of a meta-update in {type(metric).__name__}; "
                "give MetaAdamWCallback a loss_fn that only computes the loss"
            )
