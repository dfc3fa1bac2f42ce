"""Hugging Face ``Trainer``: fine-grained groups, and meta-updates in a callback.

What learns inside ``step()`` needs nothing from here:
``optimizer_cls_and_kwargs=(MetaAdamW, {...})``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from metaadamw import LookAhead, MetaAdamW, MetaUpdate, NumberedBatches, fine_grained_groups
from metaadamw.integrations import require
from metaadamw.integrations.kept import kept
from metaadamw.integrations.loaders import LoaderBatches, batch_size_of, own_copy

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
    is split by layer type, depth and bias, and keeps its decay. With ``model_init`` and in a
    hyperparameter search that is done for the model of every trial.

    Args:
        model: the model that the Trainer gets; under ``model_init`` any, as it makes its own.
        options: the keywords of ``MetaAdamW``. Without ``lr`` it is the Trainer's
            ``TrainingArguments.learning_rate`` when the optimizer is made, so that of the trial.

    Example:
        >>> Trainer(  # doctest: +SKIP
        ...     model,
        ...     args,
        ...     optimizer_cls_and_kwargs=fine_grained(
        ...         model, lr=1e-3, learning="hypergradient"
        ...     ),
        ... )
    """
    return _FineGrained, {"of": model, **options}


class _FineGrained(MetaAdamW):
    """Splits the groups it is given by the model they are of."""

    def __init__(self, params: ParamsT, *, of: nn.Module, **options: Any) -> None:
        groups = cast("list[dict[str, Any]]", params)
        trainer = _calling_trainer()
        if trainer is not None:
            options.setdefault("lr", trainer.args.learning_rate)
            own = {id(p) for p in of.parameters()}
            if any(id(p) not in own for group in groups for p in group["params"]):
                of = trainer.model  # it has made another one, for this trial
        super().__init__(fine_grained_groups(of, groups), **options)


def _calling_trainer() -> Trainer | None:
    """The Trainer that is making an optimizer; it tells the optimizer nothing about itself."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None


class MetaAdamWCallback(TrainerCallback):  # type: ignore[misc]
    """Look-ahead in a ``Trainer``: calls ``update_attention`` when it is due.

    Uses the Trainer's own ``compute_loss``. Training batches come from a second, independent pass
    over the train set, validation batches from the eval set, each of the size of a training batch,
    also of one that ``auto_find_batch_size`` has found. They are of the loader in use, made like
    its batches. All of them follow from the seed and the optimizer's step, so that
    ``resume_from_checkpoint`` continues exactly and nothing has to be saved.

    What ``_prepare_inputs`` and ``compute_loss`` note in attributes of the Trainer, its ``state``
    and its ``control`` is put back: numbers, tensors, arrays, and lists, dicts, sets and deques of
    them. What happens inside objects of another kind (a meter, a ``torch.Generator``, a file)
    stays: give ``loss_fn`` then.

    Args:
        trainer: the Trainer, as this callback is added to it.
        loss_fn: ``loss_fn(model, inputs)`` -> scalar, or None for a batch to be left out; the model
            as in ``compute_loss``. None: the Trainer's ``compute_loss``.
        train_dataset: examples of the meta-updates' training batches. None: those of the Trainer.
        eval_dataset: examples of their validation batches. None: those of the Trainer. They are a
            training signal here; keep others for the numbers you report.

    Raises:
        TypeError: ``loss_fn`` cannot be called; at the start of the training, if the optimizer is
            no MetaAdamW or a data set has no length.
        ValueError: likewise, if the optimizer does not learn by look-ahead, or there are no or
            several eval sets.

    Example:
        >>> trainer.add_callback(MetaAdamWCallback(trainer))  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: Trainer,
        loss_fn: Callable[[nn.Module, Any], Tensor | None] | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"trainer must be a transformers.Trainer, got {type(trainer).__name__}; construct "
                "it first, then trainer.add_callback(MetaAdamWCallback(trainer))"
            )
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable as loss_fn(model, inputs), got {loss_fn!r}")
        self.trainer, self.loss_fn = trainer, loss_fn
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
        learning = self.optimizer.learning
        if not isinstance(learning, LookAhead):
            raise ValueError(
                "MetaAdamWCallback needs learning='lookahead', got "
                f"{type(learning).__name__}, which does without it"
            )
        self.every = learning.every
        self.last_update = None
        self.train_batches, self.eval_batches = self._batches(), self._batches()
        self.train_source = None
        if self.train_dataset is not None:
            self.train_source = self.trainer.get_test_dataloader(self.train_dataset)
        self._find_eval_loader()
        self._numbered(objects["train_dataloader"])  # what does not fit is refused now

    def _batches(self) -> LoaderBatches:
        args = self.trainer.args
        return LoaderBatches(
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            world_size=args.world_size,
        )

    def _find_eval_loader(self) -> None:
        """Made here, as the Trainer makes one for every evaluation."""
        self.found_eval_dataset = self.trainer.eval_dataset
        self.eval_loader: Any = None
        learning = cast(LookAhead, self.optimizer.learning)
        if self.eval_dataset is not None:
            self.eval_loader = self.trainer.get_test_dataloader(self.eval_dataset)
        elif isinstance(self.trainer.eval_dataset, Mapping):
            raise ValueError(
                f"eval_dataset must be one data set, the Trainer has {[*self.trainer.eval_dataset]}"
                "; choose one with MetaAdamWCallback(trainer, eval_dataset=...)"
            )
        elif self.trainer.eval_dataset is not None:
            self.eval_loader = self.trainer.get_eval_dataloader()
        elif "val_batch" in learning.needed_batches():
            raise ValueError(
                f"objective={learning.objective!r} needs validation batches: give the Trainer or "
                "MetaAdamWCallback an eval_dataset"
            )

    def _numbered(self, loader: Any) -> tuple[NumberedBatches, NumberedBatches | None]:
        """Training and validation batches of the size of a batch of ``loader``, the Trainer's."""
        size = batch_size_of(loader) or self.trainer._train_batch_size
        source = loader if self.train_source is None else self.train_source
        train = self.train_batches.of(source, size)
        if self.eval_loader is None:
            return train, None
        return train, self.eval_batches.of(self.eval_loader, size)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **objects: Any,
    ) -> None:
        """The Trainer's loader may be another one for every evaluation."""
        if self.eval_dataset is None:
            self._find_eval_loader()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **objects: Any,
    ) -> None:
        """A meta-update for which memory was too short comes now, with smaller batches."""
        self._update(objects["train_dataloader"])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **objects: Any,
    ) -> None:
        """After the optimizer's step, before a checkpoint is written."""
        self._update(objects["train_dataloader"])

    def _update(self, loader: Any) -> None:
        if not self.optimizer.meta_update_due:
            return
        if self.eval_dataset is None and self.trainer.eval_dataset is not self.found_eval_dataset:
            self._find_eval_loader()
        train, validation = self._numbered(loader)
        n = self.optimizer.steps // self.every
        self.last_update = self.optimizer.update_attention(
            self.trainer.model_wrapped,
            self._loss,
            train[2 * n],
            train[2 * n + 1],
            None if validation is None else validation[n],
        )

    def _loss(self, model: nn.Module, batch: Any) -> Tensor | None:
        trainer = self.trainer
        with kept(
            trainer, trainer.state, trainer.control, leave_out=("train_dataset", "eval_dataset")
        ):
            # Here, so that inputs which are prepared at random are the same for the same batch, and
            # draw nothing of the training's random streams.
            inputs = trainer._prepare_inputs(own_copy(batch))
            with trainer.compute_loss_context_manager():
                if self.loss_fn is not None:
                    loss = self.loss_fn(model, inputs)
                else:
                    loss = cast(Tensor, trainer.compute_loss(model, inputs))
        # DataParallel gives one for each device.
        return loss.mean() if isinstance(loss, Tensor) else loss
