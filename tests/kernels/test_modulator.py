"""The kernel that learns against autograd and torch's Adam, which are checked against the twin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metaadamw import Attention, Factors, Hypergradient, MetaAdamW, fine_grained_groups
from metaadamw.kernels import cpu
from metaadamw.learning.base import modulator_gradient
from metaadamw.learning.learn_kernel import learn
from metaadamw.learning.meta_optimizer import MetaOptimizer
from metaadamw.modulators.attention import AttentionModulator
from metaadamw.modulators.factors import FactorsModulator
from metaadamw.update.one_pass import rounding

# Rounding of the same sums in another order; Adam divides by the size of a gradient, which for an
# entry near zero is mostly rounding: hence the weights are compared after few steps.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}
LOG: dict[str, Any] = {"scale": "log", "alpha_range": 2.0, "beta_range": 0.5}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "gates": {"feature_gating": True},
    "group embedding": {"features": "enhanced"},
    "both, padded": {"features": "enhanced", "feature_gating": True, "heads": 4, "layers": 3},
    "log": LOG,
    "log, beta fixed": LOG | {"beta_range": 0.0},
    "mean-preserving": LOG | {"mean_preserving": True, "hidden_dim": 5},
    "widest": {"alpha_range": 2.0, "beta_range": 2.0},
}


class Problem:
    """A modulator, what moves it, and twins of both that take the long way."""

    def __init__(
        self,
        options: dict[str, Any],
        dtype: torch.dtype,
        seed: int,
        *,
        frozen_gates: bool = False,
        gate_sparsity: float = 0.2,
    ) -> None:
        torch.manual_seed(seed)
        config = Attention(
            init="xavier", frozen_gates=frozen_gates, gate_sparsity=gate_sparsity, **options
        )
        enhanced = config.features == "enhanced"
        self.features, self.groups, self.dtype = 10 if enhanced else 6, 9, dtype
        self.modulator = AttentionModulator(
            self.features,
            self.groups,
            config,
            embedding_dim=4 if enhanced else 0,
            dtype=dtype,
        )
        with torch.no_grad():
            for p in self.modulator.parameters():
                p += 0.2 * torch.randn_like(p)
        self.twin = copy.deepcopy(self.modulator)
        log_variances = torch.randn(3, dtype=dtype)
        self.learned = [*self.modulator.parameters(), log_variances]
        self.learned_twin = [*self.twin.parameters(), log_variances.clone().requires_grad_()]
        self.optimizer, self.optimizer_twin = (MetaOptimizer("adam", 1e-2) for _ in range(2))

    def numbers(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        features = torch.randn(self.groups, self.features, dtype=self.dtype)
        return features, tuple(torch.randn(2, self.groups, dtype=self.dtype).unbind(0))

    def learn(self, *numbers: Any, weight_decay: float = 0.03) -> bool | None:
        with torch.no_grad():
            return learn(self.modulator, self.optimizer, self.learned, *numbers, weight_decay)

    def learn_twin(self, *numbers: Any, weight_decay: float = 0.03) -> None:
        gradient = modulator_gradient(self.twin, *numbers, self.learned_twin, weight_decay)
        self.optimizer_twin.step(self.learned_twin, gradient, torch.tensor(True))

    def assert_close(self) -> None:
        tolerance = TOLERANCE[self.dtype]
        for ours, theirs in (
            (self.optimizer.exp_avgs, self.optimizer_twin.exp_avgs),
            (self.optimizer.exp_avg_sqs, self.optimizer_twin.exp_avg_sqs),
            (self.learned, self.learned_twin),
        ):
            for a, b in zip(ours, theirs, strict=True):
                scale = b.detach().abs().max().clamp_min(1e-3)
                torch.testing.assert_close(a / scale, b / scale, rtol=0.0, atol=tolerance)
        assert torch.equal(self.optimizer.step_count, self.optimizer_twin.step_count)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_learns_what_autograd_and_adam_learn(
    options: dict[str, Any], dtype: torch.dtype, seed: int
) -> None:
    problem = Problem(options, dtype, seed)
    for _ in range(3):
        numbers = problem.numbers()
        assert problem.learn(*numbers) is True
        problem.learn_twin(*numbers)
    problem.assert_close()


@pytest.mark.parametrize("penalties", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_penalties_and_frozen_gates(penalties: tuple[float, float], frozen: bool) -> None:
    problem = Problem(
        OPTIONS["gates"], torch.float64, 0, frozen_gates=frozen, gate_sparsity=penalties[1]
    )
    for p in (problem.modulator, problem.twin):
        with torch.no_grad():
            p.gate_logits[2] = 0.0  # where |x| has no derivative
            p.linear1_bias.zero_()  # where a norm has none
    numbers = problem.numbers()
    problem.learn(*numbers, weight_decay=penalties[0])
    problem.learn_twin(*numbers, weight_decay=penalties[0])
    problem.assert_close()


def test_momentum_of_others_goes_on() -> None:
    problem = Problem({}, torch.float64, 0)
    for optimizer, learned in (
        (problem.optimizer, problem.learned),
        (problem.optimizer_twin, problem.learned_twin),
    ):
        optimizer.prepared(learned)[0][-1].fill_(0.3)
        optimizer.prepared(learned)[1][-1].fill_(0.1)
    numbers = problem.numbers()
    problem.learn(*numbers)
    problem.learn_twin(*numbers)
    problem.assert_close()


@pytest.mark.parametrize("where", ["features", "alpha", "beta", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_changes_nothing(where: str, value: float) -> None:
    problem = Problem({}, torch.float64, 0)
    problem.learn(*problem.numbers())
    features, (alpha, beta) = problem.numbers()
    target = {"features": features, "alpha": alpha, "beta": beta}.get(where, problem.learned[0])
    with torch.no_grad():
        target.view(-1)[3] = value
    optimizer = problem.optimizer
    tensors = [*problem.learned, *optimizer.exp_avgs, *optimizer.exp_avg_sqs, optimizer.step_count]
    before = [t.detach().clone() for t in tensors]
    assert problem.learn(features, (alpha, beta)) is False
    for now, then in zip(tensors, before, strict=True):
        torch.testing.assert_close(now.detach(), then, rtol=0, atol=0, equal_nan=True)


def test_autograd_hears_of_the_change() -> None:
    problem = Problem({}, torch.float32, 0)
    value = problem.modulator(problem.numbers()[0]).alpha.square().sum()
    problem.learn(*problem.numbers())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_what_is_left_to_torch() -> None:
    problem = Problem({}, torch.float32, 0)
    features, signals = problem.numbers()
    assert problem.learn(features.T.contiguous().T, signals) is None
    assert problem.learn(features, [s.double() for s in signals]) is None
    problem.optimizer = MetaOptimizer("sgd", 1e-2)
    assert problem.learn(features, signals) is None
    scalars = FactorsModulator([""] * 9, Factors(alpha_range=1.0, scale="linear", update_every=1))
    adam = MetaOptimizer("adam", 1e-2)
    assert learn(scalars, adam, list(scalars.parameters()), features, signals, 0.0) is None


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    def forget() -> None:
        cpu.library.cache_clear()
        rounding.cache_clear()

    def switch_off() -> None:
        monkeypatch.setenv("METAADAMW_KERNELS", "0")
        forget()

    yield switch_off
    forget()


@pytest.mark.parametrize("features", ["basic", "enhanced", "scale_free"])
def test_online_training_with_and_without_kernels(
    features: str, without_kernels: Callable[[], None]
) -> None:
    def train() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
        model.double()
        optimizer = MetaAdamW(
            fine_grained_groups(model),
            lr=1e-2,
            modulator=Attention(features=features),
            learning=Hypergradient(lr=1e-2),
            fused=True,
        )
        for _ in range(6):
            x = torch.randn(8, 5, dtype=torch.float64)
            optimizer.zero_grad()
            (model(x) - x[:, :2].sin()).square().mean().backward()
            optimizer.step()
        assert optimizer.metrics()["meta/applied"] == 5
        return optimizer.modulation.alpha, torch.cat([p.flatten() for p in model.parameters()])

    ours = train()
    without_kernels()
    theirs = train()
    assert not torch.equal(ours[0], torch.ones_like(ours[0]))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
