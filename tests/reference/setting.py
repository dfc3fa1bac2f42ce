"""A small problem that the checks of the reference share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .adamw import reference_step
from .meta import ReferenceMetaUpdate, meta_update
from .modulator import ReferenceModulator
from .state import ReferenceGroup, fresh_state

FEATURE_COUNTS = {
    "basic": 6,
    "basic_plus": 11,
    "enhanced": 10,
    "norm_basic": 6,
    "norm_basic_plus": 11,
    "scale_free": 7,
}


def mean_squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return ((model(inputs) - targets) ** 2).mean()


class Setting:
    """A small smooth network, three groups, moments of a few steps and three batches."""

    def __init__(self, feature_set: str = "basic", *, gating: bool = True, heads: int = 2) -> None:
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.groups = [
            ReferenceGroup(names=("0.weight",), lr=0.05, weight_decay=0.3, depth=0.0),
            ReferenceGroup(names=("2.weight",), lr=0.02, weight_decay=0.2, depth=1.0),
            ReferenceGroup(names=("0.bias", "2.bias"), lr=0.03, betas=(0.8, 0.9), depth=0.5),
        ]
        self.feature_set = feature_set
        self.batch1, self.batch2, self.val_batch = (
            (torch.randn(7, 3).double(), torch.randn(7, 2).double()) for _ in range(3)
        )
        self.state = fresh_state(dict(self.model.named_parameters()))
        for _ in range(3):
            gradients = {n: torch.randn_like(p) for n, p in self.state.parameters.items()}
            self.state = reference_step(self.state, self.groups, gradients, [1.0] * 3, [1.0] * 3)
        self.modulator = random_modulator(
            FEATURE_COUNTS[feature_set],
            heads=heads,
            feature_gating=gating,
            embedded_groups=3 if feature_set == "enhanced" else None,
        )
        self.raw_log_variances = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)

    def update(self, **options: object) -> ReferenceMetaUpdate:
        defaults: dict[str, object] = {
            "batch1": self.batch1,
            "batch2": self.batch2,
            "val_batch": self.val_batch,
            "feature_set": self.feature_set,
            "total_steps": 10,
            "raw_log_variances": self.raw_log_variances,
            "weight_decay": 1e-2,
        }
        return meta_update(
            self.model,
            mean_squared_error,
            self.groups,
            self.state,
            self.modulator,
            **(defaults | options),  # type: ignore[arg-type]
        )


def random_modulator(feature_count: int, **options: object) -> ReferenceModulator:
    modulator = ReferenceModulator(feature_count, hidden_dim=8, alpha_range=1.3, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in modulator.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return modulator


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
