"""One training run, step by step: a task, an arm, a seed.

Within a seed every arm starts from the same weights and sees the same batches and the same
dropout masks, so that differences between arms are paired.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metaadamw import MetaAdamW, MetaUpdate
from metaadamw.state.streams import BatchOrder, stream_seed
from metaadamw_bench.arm import Arm
from metaadamw_bench.config import RunConfig
from metaadamw_bench.parallel import Workplace
from metaadamw_bench.seconds import Seconds
from metaadamw_bench.tasks import Batch, Means, PreparedTask

__all__ = ["Trainer"]

# Batches whose statistics refresh batch norms before schedule-free weights are evaluated.
_REFRESHING_BATCHES = 50


class Trainer:
    """A model and its optimizer; ``state_dict`` is all that the next steps depend on.

    Args:
        task: the task with its data.
        arm: the optimizer.
        config: the resolved run.
        workplace: where to compute.
    """

    def __init__(
        self, task: PreparedTask, arm: Arm, config: RunConfig, workplace: Workplace
    ) -> None:
        self.task, self.config, self.workplace = task, config, workplace
        self.seconds = Seconds(clock=workplace.clock, wait=workplace.wait)
        torch.manual_seed(self._seed("initialisation"))
        self.model = task.build_model().to(workplace.device)
        self.optimizer = arm.build(self.model, config)
        self._switch("train")
        self._parallel = workplace.parallel(self.model)
        splits, steps = task.splits, config.steps_per_epoch
        sizes = len(splits.train), config.batch_size, steps, config.seed
        self._order = BatchOrder(*sizes, "order")
        self._order1, self._order2 = BatchOrder(*sizes, "batch1"), BatchOrder(*sizes, "batch2")
        # As a control, to learn from no example that the weights do not learn from.
        training = config.arm_settings.get("meta_updates") == "training"
        self._held_out = splits.train if training else splits.meta_validation
        # The paper's validation loader keeps the order of its data.
        examples = len(self._held_out)
        self._order_validation = BatchOrder(
            examples,
            config.batch_size,
            -(-examples // config.batch_size),
            config.seed,
            None if config.protocol == "paper" else "validation",
        )
        self.step = 0
        self.meta_updates = 0

    def _seed(self, stream: str, *place: int) -> int:
        return stream_seed(self.config.seed, stream, *place)

    def _batch(self, indices: Tensor, stream: str, place: int) -> Batch:
        batch: Batch = self.task.splits.train[indices]
        if self.task.augment is not None:
            generator = torch.Generator().manual_seed(self._seed(stream, place))
            batch = self.task.augment(batch, generator)
        return batch

    def _to_device(self, batch: Batch) -> Batch:
        return tuple(tensor.to(self.workplace.device) for tensor in batch)

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.workplace.autocast():
            return self.task.batch_loss(model, self._to_device(batch))

    def train_step(self) -> float:
        """Take one step and return the loss of its batch."""
        place, rank = self.step, self.workplace.rank
        with self.seconds.spent_on("train"):
            whole = self._batch(self._order[place], "augmentation", place)
            batch, weight = self.workplace.share(whole)
            torch.manual_seed(self._seed("dropout", place, rank))
            self.optimizer.zero_grad()
            loss = self._loss(self._parallel, batch) * weight
            loss.backward()
            with self.seconds.spent_on("optimizer_step"):
                self.optimizer.step()
            value = self.workplace.mean(loss)
        self.step += 1
        return value

    @property
    def meta_update_due(self) -> bool:
        """Whether to call ``meta_update`` now."""
        optimizer, settings = self.optimizer, self.config.arm_settings
        if not isinstance(optimizer, MetaAdamW):
            return False
        if settings["meta_updates"] != "paper" or settings["learning"]["kind"] != "lookahead":
            return optimizer.meta_update_due
        epoch, batch = divmod(self.step - 1, self.config.steps_per_epoch)
        return epoch >= 1 and (batch + 1) % settings["learning"]["every"] == 0

    def meta_update(self) -> MetaUpdate:
        """Let the modulator learn.

        Every process computes the same update on whole batches, so the modulators stay equal.
        """
        assert isinstance(self.optimizer, MetaAdamW)
        n = self.meta_updates
        with self.seconds.spent_on("meta"):
            torch.manual_seed(self._seed("meta", n))
            update = self.optimizer.update_attention(
                self.model,
                self._loss,
                self._batch(self._order1[n], "augmentation of batch1", n),
                self._batch(self._order2[n], "augmentation of batch2", n),
                self._held_out[self._order_validation[n]],
            )
        self.meta_updates += 1
        return update

    def evaluate(self, dataset: TensorDataset) -> tuple[Means, dict[str, Tensor]]:
        """Mean loss and metric over a whole split, and a copy of the weights they belong to."""
        with self.seconds.spent_on("evaluation"):
            self._switch("eval")
            means = self._means(dataset)
            state = self.model.state_dict()
            weights = {name: t.detach().to("cpu", copy=True) for name, t in state.items()}
            self._switch("train")
        return means, weights

    def evaluate_weights(self, weights: dict[str, Tensor], dataset: TensorDataset) -> Means:
        """Evaluate a copy that ``evaluate`` made; the model cannot be trained on after that."""
        self.model.load_state_dict(weights)
        with self.seconds.spent_on("evaluation"):
            return self._means(dataset)

    def _means(self, dataset: TensorDataset) -> Means:
        def compute() -> list[float]:
            total = torch.zeros(3, dtype=torch.float64)
            size = self.task.evaluation_batch_size
            for start in range(0, len(dataset), size):
                batch = self._to_device(dataset[start : start + size])
                with self.workplace.autocast():
                    total += self.task.sums(self.model, batch)
            return list(self.task.means(total))

        self.model.eval()
        loss, metric = self.workplace.from_rank_zero(compute, 2)
        self.model.train()
        return Means(loss, metric)

    def _switch(self, mode: str) -> None:
        """Schedule-free optimizers train one point and evaluate another."""
        switch = getattr(self.optimizer, mode, None)
        if switch is None:
            return
        switch()
        norms = nn.modules.batchnorm._BatchNorm
        if mode == "eval" and any(isinstance(module, norms) for module in self.model.modules()):
            # The running statistics belong to the training point; its package says to redo them.
            torch.manual_seed(self._seed("refresh", self.step))
            with torch.no_grad():
                for n in range(min(_REFRESHING_BATCHES, self.config.steps_per_epoch)):
                    self._loss(self.model, self._batch(self._order2[n], "refresh", n))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "meta_updates": self.meta_updates,
            "seconds": self.seconds.as_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.meta_updates = state["step"], state["meta_updates"]
        self.seconds.load(state["seconds"])
