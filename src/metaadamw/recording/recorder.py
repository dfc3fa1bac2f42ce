"""Keep α, β, features and meta-losses of every step; write, draw and replay them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaadamw.learning.lookahead.meta_update import MetaUpdate
from metaadamw.modulators.schedule import Schedule
from metaadamw.optimizer import MetaAdamW

__all__ = ["Recorder"]

_META = ("total", "gradient_alignment", "loss_decrease", "generalization_gap")


class Recorder:
    """Records what an optimizer does, step by step.

    ``record`` only keeps copies of small device tensors, [G] and [G, F]; they are read back when
    something is written.

    Args:
        optimizer: the optimizer to watch.

    Example:
        >>> recorder = Recorder(optimizer)
        >>> for batch in batches:
        ...     loss = training_step(batch)
        ...     recorder.record(loss)
        >>> recorder.to_csv("trajectory.csv")
    """

    def __init__(self, optimizer: MetaAdamW) -> None:
        self.optimizer = optimizer
        self.groups = tuple(optimizer.group_names)
        self.columns = tuple(optimizer.feature_names)
        self._steps: list[int] = []
        self._alpha: list[Tensor] = []
        self._beta: list[Tensor] = []
        self._features: list[Tensor | None] = []
        self._losses: list[Tensor | float | None] = []
        self._updates: list[tuple[int, MetaUpdate]] = []

    def __len__(self) -> int:
        """Number of recorded steps."""
        return len(self._steps)

    def record(self, loss: Tensor | float | None = None, update: MetaUpdate | None = None) -> None:
        """Keep the present modulation; call it after ``optimizer.step()``.

        Args:
            loss: the training loss of the step.
            update: the report of the meta-update after this step, if there was one.

        Raises:
            ValueError: groups were added to the optimizer since the recorder was made.
        """
        if tuple(self.optimizer.group_names) != self.groups:
            raise ValueError(
                f"optimizer has the groups {self.optimizer.group_names}, the recorder was made for "
                f"{list(self.groups)}: make a new one"
            )
        modulation = self.optimizer.modulation
        self._steps.append(self.optimizer.steps)
        features = self.optimizer.features
        # Copies, because with capturable=True the next step writes into the same memory.
        self._alpha.append(modulation.alpha.clone())
        self._beta.append(modulation.beta.clone())
        self._features.append(None if features is None else features.clone())
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        if update is not None:
            self._updates.append((self.optimizer.steps, update))

    @property
    def alpha(self) -> Tensor:
        """α of every recorded step, [T, G], on the CPU."""
        return self._history(self._alpha)

    @property
    def beta(self) -> Tensor:
        """β of every recorded step, [T, G], on the CPU."""
        return self._history(self._beta)

    def _history(self, rows: list[Tensor]) -> Tensor:
        if not rows:
            raise ValueError("nothing was recorded: call record() after optimizer.step()")
        return torch.stack(rows).cpu()

    def span(self, start: int | None = None, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """α and β of the recorded steps from ``start`` on and before ``stop``, counted from 0.

        Raises:
            ValueError: no step in it was recorded.
        """
        low, high = start or 0, self.optimizer.steps if stop is None else stop
        rows = [i for i, step in enumerate(self._steps) if low < step <= high]
        if not rows:
            raise ValueError(
                f"no recorded step from start={start} on and before stop={stop}; recorded are "
                f"{self._steps[:1]} to {self._steps[-1:]}"
            )
        return self.alpha[rows], self.beta[rows]

    def schedule(self) -> Schedule:
        """The trajectory as a plain schedule, for ``MetaAdamW(groups, modulator=schedule)``.

        Raises:
            ValueError: nothing was recorded, or not every step from the first on.
        """
        alpha, beta = self.alpha, self.beta
        if self._steps != list(range(1, len(self._steps) + 1)):
            raise ValueError(
                f"a schedule needs every step from 1 on, got {len(self)} records of steps "
                f"{self._steps[0]}..{self._steps[-1]}"
            )
        return Schedule(self.groups, alpha, beta)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict for each step: step, loss, α, β, features, and the meta-update after it."""
        updates = dict(self._updates)
        losses = [x.item() if isinstance(x, Tensor) else x for x in self._losses]
        rows = []
        for i, (step, loss, alpha, beta) in enumerate(
            zip(self._steps, losses, self.alpha.tolist(), self.beta.tolist(), strict=True)
        ):
            row: dict[str, Any] = {"step": step, "loss": loss}
            row |= {f"{name}/alpha": a for name, a in zip(self.groups, alpha, strict=True)}
            row |= {f"{name}/beta": b for name, b in zip(self.groups, beta, strict=True)}
            features = self._features[i]
            if features is not None:
                for name, values in zip(self.groups, features.tolist(), strict=True):
                    row |= {f"{name}/{c}": v for c, v in zip(self.columns, values, strict=True)}
            if step in updates:
                row |= {f"meta/{key}": getattr(updates[step], key) for key in _META}
                row["meta/applied"] = updates[step].applied
            rows.append(row)
        return rows

    def to_csv(self, path: str | Path) -> None:
        """Write ``rows`` as CSV; a cell without a value is empty."""
        rows = self.rows()
        names = list(dict.fromkeys(key for row in rows for key in row))
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    def to_tensorboard(self, log_dir: str | Path) -> None:
        """Write every number as a TensorBoard scalar (needs the package ``tensorboard``)."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "to_tensorboard needs tensorboard: pip install tensorboard"
            ) from error
        with SummaryWriter(str(log_dir)) as writer:
            for row in self.rows():
                for key, value in row.items():
                    if key != "step" and value is not None:
                        writer.add_scalar(key, value, row["step"])

    def heatmap(self, path: str | Path) -> None:
        """Draw α and β, group × step, as a picture (needs the package ``matplotlib``)."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.colors import TwoSlopeNorm
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("heatmap needs matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(10, 1.6 + 0.5 * len(self.groups)), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, history, symbol in zip(
            figure.subplots(2, 1, sharex=True), (self.alpha, self.beta), ("α", "β"), strict=True
        ):
            spread = max(float((history - 1).abs().max()), 1e-6)
            image = axes.imshow(
                history.T.double().numpy(),
                aspect="auto",
                interpolation="nearest",
                cmap="RdBu_r",
                norm=TwoSlopeNorm(1.0, 1.0 - spread, 1.0 + spread),
                extent=(self._steps[0] - 0.5, self._steps[-1] + 0.5, len(self.groups) - 0.5, -0.5),
            )
            axes.set_yticks(range(len(self.groups)), self.groups)
            axes.set_ylabel(symbol)
            figure.colorbar(image, ax=axes)
        axes.set_xlabel("step")
        figure.savefig(path, dpi=150)
