"""A small problem for the library, and what the reference says of the same problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaadamw import Attention, MetaAdamW, MetaUpdate
from tests.learning import learning_of
from tests.reference.meta import ReferenceMetaUpdate, meta_update
from tests.reference.modulator import ReferenceModulator, modulator_from_library
from tests.reference.state import groups_from_optimizer, state_from_optimizer

META_LR = 0.5


def mean_squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def small_model() -> nn.Module:
    """Smooth, so that derivatives of every order exist."""
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def small_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Three groups, each with hyperparameters of its own."""
    named = dict(model.named_parameters())

    def group(*names: str, **options: Any) -> dict[str, Any]:
        return {"params": [(name, named[name]) for name in names], **options}

    return [
        group("0.weight", lr=0.05, weight_decay=0.3, depth=0.0),
        group("2.weight", lr=0.02, weight_decay=0.2, depth=1.0),
        group("0.bias", "2.bias", lr=0.03, betas=(0.8, 0.9), weight_decay=0.1, depth=0.5),
    ]


def small_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3).double(), torch.randn(7, 2).double()


def reference_modulator(optimizer: MetaAdamW) -> ReferenceModulator:
    """The twin of the optimizer's modulator as it is now."""
    config = optimizer.modulator.options
    return modulator_from_library(
        {name: weight.double() for name, weight in optimizer.modulator.state_dict().items()},
        feature_count=len(optimizer.feature_names),
        heads=config.heads,
        alpha_range=config.alpha_range,
        beta_range=config.beta_range,
    )


class Problem:
    """A model with a library optimizer on it, batches, and the twin's view of both.

    Args:
        modulator: options of ``Attention`` that differ from Xavier birth.
        meta: options of ``LookAhead`` that differ from SGD without regulariser.
        steps: training steps before anything is asked.
        model: the model, by default a network of 32 parameters.
        groups: its param groups, by default three.
        loss_fn: the loss, by default the mean squared error.
        batch: draws a batch for it.
        options: further arguments of ``MetaAdamW``.
    """

    def __init__(
        self,
        modulator: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        *,
        steps: int = 3,
        model: Callable[[], nn.Module] = small_model,
        groups: Callable[[nn.Module], Any] = small_groups,
        loss_fn: Callable[[nn.Module, Any], Tensor] = mean_squared_error,
        batch: Callable[[], Any] = small_batch,
        **options: Any,
    ) -> None:
        torch.manual_seed(1)
        self.model, self.loss_fn = model(), loss_fn
        self.batches = {name: batch() for name in ("batch1", "batch2", "val_batch")}
        meta = dict(meta or {})
        modulator = dict(modulator or {})
        if "gate_sparsity" in meta:
            modulator["gate_sparsity"] = meta.pop("gate_sparsity")
        self.config = Attention(
            **{"init": "xavier", "alpha_range": 1.3, **modulator}  # type: ignore[arg-type]
        )
        self.meta = learning_of(**{"optimizer": "sgd", "lr": META_LR, "weight_decay": 0.0, **meta})
        self.options: dict[str, Any] = {"total_steps": 20, **options}
        self.optimizer = MetaAdamW(
            groups(self.model), modulator=self.config, learning=self.meta, **self.options
        )
        if self.optimizer.weighting is not None:
            # neither at 0, where half of the derivatives agree by chance
            self.optimizer.weighting.raw_log_variances.data.copy_(torch.tensor([0.4, -0.7, 1.1]))
        for _ in range(steps):
            self.train(batch())

    def train(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.loss_fn(self.model, batch).backward()
        self.optimizer.step()

    def update(self) -> MetaUpdate:
        return self.optimizer.update_attention(self.model, self.loss_fn, **self.batches)

    def weights(self) -> dict[str, Tensor]:
        """What the meta-optimizer moves, copied: the modulator's weights and the log-variances."""
        state = {n: w.detach().clone() for n, w in self.optimizer.modulator.state_dict().items()}
        weighting = self.optimizer.weighting
        if weighting is None:
            return state
        return state | {"raw": weighting.raw_log_variances.detach().clone()}

    def movement(self) -> tuple[MetaUpdate, dict[str, Tensor]]:
        """A meta-update, and the gradient that its step of SGD went along."""
        before = self.weights()
        update = self.update()
        after = self.weights()
        return update, {name: (before[name] - after[name]) / META_LR for name in before}

    def expected(self, **changed: Any) -> ReferenceMetaUpdate:
        """The same meta-update by the twin; ``changed`` arguments take precedence."""
        optimizer, config, meta = self.optimizer, self.config, self.meta
        named = list(self.model.named_parameters())
        arguments: dict[str, Any] = {
            "groups": groups_from_optimizer(optimizer, named),
            "state": state_from_optimizer(optimizer, named),
            "modulator": reference_modulator(optimizer),
            "step": optimizer.steps + 1,
            "feature_set": config.features,
            "total_steps": self.options["total_steps"],
            "second_moment_norm": config.second_moment_norm,
            "time_step": config.time_step,
            "objective": meta.objective,
            "weighting": meta.weighting,
            "priorities": meta.priorities,
            "fixed_weights": meta.fixed_weights,
            "raw_log_variances": optimizer.weighting.raw_log_variances.detach().double(),
            "log_variance_bound": meta.log_variance_bound,
            "gap_at": meta.gap_at,
            "weight_decay": meta.weight_decay,
            "gate_sparsity": config.gate_sparsity,
            "eps_inside_sqrt": self.options.get("eps_inside_sqrt", False),
        }
        return meta_update(self.model, self.loss_fn, **(self.batches | arguments | changed))


def expected_movement(reference: ReferenceMetaUpdate) -> dict[str, Tensor]:
    """The twin's gradient for everything in ``Problem.weights``."""
    return reference.gradients | {"raw": reference.log_variance_gradient}


def assert_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> None:
    """Each tensor agrees to an absolute or relative tolerance, entry by entry."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
