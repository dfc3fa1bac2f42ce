"""Hugging Face ``Trainer``: fine-grained groups, and meta-updates in a callback.

Mode "online" needs nothing from here: ``optimizer_cls_and_kwargs=(MetaAdamW, {...})``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from metaadamw import MetaAdamW, MetaUpdate, NumberedBatches, fine_grained_groups
from metaadamw.integrations import require
from metaadamw.lookahead import needed_batches

require("transformers", extra="transformers")

from transformers import (  # noqa: E402
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

__all__ = ["MetaAdamWCallback", "fine_grained"]


def fine_grained(model: nn.Module, **options: Any) -> tuple[type[MetaAdamW], dict[str, Any]]:
    """``optimizer_cls_and_kwargs`` with the Trainer's own groups split finer.

    The Trainer makes two groups, with and without weight decay, and knows no others. Each of them
    is split by layer type, depth and bias, and keeps its decay.

    Args:
        model: the model that the Trainer gets.
        options: the keywords of ``MetaAdamW``. Give ``lr``: ``TrainingArguments.learning_rate``
            reaches only the Trainer's own optimizers.

    Example:
        >>> Trainer(  # doctest: +SKIP
        ...     model,
        ...     args,
        ...     optimizer_cls_and_kwargs=fine_grained(
        ...         model, lr=1e-3, meta=MetaConfig(mode="online")
        ...     ),
        ... )
    """
    return _FineGrained, {"split": model, **options}


class _FineGrained(MetaAdamW):
    """Splits the groups it is given like ``split``; the Trainer hands them over without it."""

    def __init__(self, params: ParamsT, *, split: nn.Module, **options: Any) -> None:
        groups = cast("list[dict[str, Any]]", params)
        super().__init__(fine_grained_groups(split, groups), **options)


class MetaAdamWCallback(TrainerCallback):  # type: ignore[misc]
    """Mode "lookahead" in a ``Trainer``: calls ``update_attention`` when it is due.

    Uses the Trainer's own ``compute_loss``. Training batches come from a second, independent pass
    over the train set, validation batches from the eval set, each of the size of a device's
    training batch. All of them follow from the seed and the optimizer's step, so that
    ``resume_from_checkpoint`` continues exactly and nothing has to be saved.

    Args:
        trainer: the Trainer, as this callback is added to it.
        train_dataset: examples of the meta-updates' training batches. None: those of the Trainer.
        eval_dataset: examples of their validation batches. None: those of the Trainer. They are a
            training signal here; keep others for the numbers you report.

    Raises:
        TypeError: at the start of the training, if the optimizer is no MetaAdamW or a data set has
            no length.
        ValueError: likewise, if the optimizer's mode is not "lookahead", or there are no or several
            eval sets.

    Example:
        >>> trainer.add_callback(MetaAdamWCallback(trainer))  # doctest: +SKIP
    """

    def __init__(
        self, trainer: Trainer, *, train_dataset: Any = None, eval_dataset: Any = None
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"trainer must be a transformers.Trainer, got {type(trainer).__name__}; construct "
                "it first, then trainer.add_callback(MetaAdamWCallback(trainer))"
            )
        self.trainer = trainer
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.last_update: MetaUpdate | None = None
        """Report of the latest meta-update."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **objects: Any,
    ) -> None:
        """Find the optimizer, which now exists, and the data sets."""
        optimizer = self.trainer.optimizer
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # inside that of Accelerate
        if not isinstance(self.optimizer, MetaAdamW):
            raise TypeError(
                f"MetaAdamWCallback needs MetaAdamW, got {type(self.optimizer).__name__}; "
                "Trainer(..., optimizer_cls_and_kwargs=(MetaAdamW, {'lr': ...}))"
            )
        meta = self.optimizer._learning.meta
        if meta.mode != "lookahead":
            raise ValueError(
                f"MetaAdamWCallback needs meta.mode='lookahead', got {meta.mode!r}, which does "
                "without it"
            )
        self.every = meta.every
        train_loader, eval_loader = objects["train_dataloader"], None
        if self.train_dataset is not None:
            train_loader = self.trainer.get_test_dataloader(self.train_dataset)
        if self.eval_dataset is not None:
            eval_loader = self.trainer.get_test_dataloader(self.eval_dataset)
        elif isinstance(self.trainer.eval_dataset, Mapping):
            raise ValueError(
                f"eval_dataset must be one data set, the Trainer has {[*self.trainer.eval_dataset]}"
                "; choose one with MetaAdamWCallback(trainer, eval_dataset=...)"
            )
        elif self.trainer.eval_dataset is not None:
            eval_loader = self.trainer.get_eval_dataloader()
        elif "val_batch" in needed_batches(meta):
            raise ValueError(
                f"objective={meta.objective!r} needs validation batches: give the Trainer or "
                "MetaAdamWCallback an eval_dataset"
            )
        self.train_batches = self._batches(train_loader)
        self.eval_batches = None if eval_loader is None else self._batches(eval_loader)

    def _batches(self, loader: Any) -> NumberedBatches:
        """As the Trainer's loader makes them, in an order of their own."""
        args = self.trainer.args
        return NumberedBatches(
            loader.dataset,
            args.per_device_train_batch_size,
            loader.collate_fn,
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            world_size=args.world_size,
        )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **objects: Any,
    ) -> None:
        """After the optimizer's step, before a checkpoint is written."""
        if not self.optimizer.meta_update_due:
            return
        n = self.optimizer.steps // self.every
        self.last_update = self.optimizer.update_attention(
            self.trainer.model_wrapped,
            self._loss,
            self._prepared(self.train_batches[2 * n]),
            self._prepared(self.train_batches[2 * n + 1]),
            None if self.eval_batches is None else self._prepared(self.eval_batches[n]),
        )

    def _prepared(self, batch: Any) -> Any:
        return self.trainer._prepare_inputs(batch)  # to the device, and what subclasses add

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        with self.trainer.compute_loss_context_manager():
            # A copy: with label smoothing compute_loss takes the labels out of the batch.
            loss = cast(Tensor, self.trainer.compute_loss(model, dict(batch)))
        return loss.mean()  # DataParallel gives one for each device
