"""``online_preset``: a factor for each group, against the whole of it written out."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaadamw import MetaAdamW, online_preset

LR, BETAS, EPS, DECAY, STEPS = 0.05, (0.9, 0.999), 1e-8, 0.1, 41
SHAPES = [[(4, 3), (5,)], [(7,)], [(2, 2)], [()]]
RANGES = 4.0, 1.0  # of log α and of log β


def parts(seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in group]
        for group in SHAPES
    ]


def gradient(theta: list[list[Tensor]], step: int) -> list[list[Tensor]]:
    """Of a quadratic, with noise."""
    noise = parts(1000 + step)
    return [
        [p.detach() + 0.5 * n for p, n in zip(group, more, strict=True)]
        for group, more in zip(theta, noise, strict=True)
    ]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return x @ y / (x.norm() * y.norm())


class Plain:
    """AdamW of every group, θ_t and d_t kept, and Adam on the raw outputs of its factors."""

    def __init__(self, seed: int, *, mean_preserving: bool) -> None:
        self.mean_preserving = mean_preserving
        self.theta = parts(seed)
        self.m = [[torch.zeros_like(p) for p in group] for group in self.theta]
        self.v = [[torch.zeros_like(p) for p in group] for group in self.theta]
        self.raw = torch.zeros(len(SHAPES), 2, dtype=torch.float64)
        self.first, self.second = torch.zeros_like(self.raw), torch.zeros_like(self.raw)
        self.updates = 0
        self.before: list[tuple[Tensor, Tensor]] = []

    def factors(self, raw: Tensor) -> Tensor:
        """Of all groups, [G, 2]: α, β."""
        width = torch.tensor(RANGES, dtype=torch.float64)
        factors = (width * torch.tanh(raw / width)).exp()
        if not self.mean_preserving:
            return factors
        alpha = factors[:, 0] / factors[:, 0].log().mean().exp()
        return torch.stack([alpha, factors[:, 1]], dim=1)

    def learn(self, grads: list[list[Tensor]], penalty: float, rate: float) -> None:
        """What the gradient at hand says of the step before it."""
        raw = self.raw.clone().requires_grad_()
        factors = self.factors(raw)
        total = penalty * raw.norm()
        for g, (theta, d) in enumerate(self.before):
            now = flat(grads[g])
            total = total - cosine(now, d) * factors[g, 0] - cosine(now, theta) * factors[g, 1]
        (slope,) = torch.autograd.grad(total, raw)
        self.updates += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        m_hat = self.first / (1 - 0.9**self.updates)
        v_hat = self.second / (1 - 0.999**self.updates)
        self.raw = self.raw - rate * m_hat / (v_hat.sqrt() + 1e-8)

    def step(self, t: int, grads: list[list[Tensor]]) -> None:
        factors = self.factors(self.raw)
        self.before = []
        for g, group in enumerate(self.theta):
            alpha, beta = factors[g]
            directions, thetas = [], []
            for i, theta in enumerate(group):
                grad = grads[g][i]
                m = self.m[g][i] = BETAS[0] * self.m[g][i] + (1 - BETAS[0]) * grad
                v = self.v[g][i] = BETAS[1] * self.v[g][i] + (1 - BETAS[1]) * grad**2
                m_hat, v_hat = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
                d = m_hat / (v_hat.sqrt() + EPS) + beta * DECAY * theta
                directions.append(d)
                thetas.append(theta)
                group[i] = theta - LR * alpha * d
            self.before.append((flat(thetas), flat(directions)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mean_preserving", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_factors_and_parameters_are_those_of_the_plain_form(
    seed: int, mean_preserving: bool, fused: bool
) -> None:
    """Ten updates. A cosine is recovered to 1e-13, and Adam divides it by its own size: 1e-9."""
    plain = Plain(seed, mean_preserving=mean_preserving)
    params = [[nn.Parameter(p) for p in group] for group in parts(seed)]
    modulator, meta = online_preset(mean_preserving=mean_preserving)
    options: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    groups = [{"params": group} for group in params]
    optimizer = MetaAdamW(groups, modulator=modulator, meta=meta, fused=fused, **options)
    assert meta.lr is not None
    for step in range(STEPS):
        grads = gradient(plain.theta, step)
        if step and step % modulator.update_every == 0:
            plain.learn(grads, meta.weight_decay, meta.lr)
        plain.step(step + 1, grads)
        for param, grad in zip(itertools.chain(*params), itertools.chain(*grads), strict=True):
            param.grad = grad.clone()
        optimizer.step()
        alpha, beta = plain.factors(plain.raw).unbind(1)
        torch.testing.assert_close(optimizer.modulation.alpha, alpha, rtol=1e-9, atol=0)
        torch.testing.assert_close(optimizer.modulation.beta, beta, rtol=1e-9, atol=0)
        for p, q in zip(itertools.chain(*params), itertools.chain(*plain.theta), strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)
    assert plain.updates == 10
    assert alpha.log().abs().max() > 0.05


def test_it_is_adamw_until_it_has_learned() -> None:
    modulator, meta = online_preset()
    ours, theirs = ([nn.Parameter(p) for p in itertools.chain(*parts(0))] for _ in range(2))
    optimizer = MetaAdamW(ours, lr=LR, modulator=modulator, meta=replace(meta, lr=0.0))
    adamw = torch.optim.AdamW(theirs, lr=LR, weight_decay=1e-2)
    for step in range(12):
        for p, q, noise in zip(ours, theirs, itertools.chain(*parts(step)), strict=True):
            p.grad, q.grad = noise.clone(), noise.clone()
        optimizer.step()
        adamw.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_a_rate_far_too_low_rises_and_one_far_too_high_falls() -> None:
    """On a quadratic without noise, where every step agrees with the one before or overshoots."""
    found = {}
    for lr in (1e-5, 1.0):
        param = nn.Parameter(torch.ones(10, dtype=torch.float64))
        modulator, meta = online_preset()
        optimizer = MetaAdamW([param], lr=lr, weight_decay=0.0, modulator=modulator, meta=meta)
        for _ in range(200):
            param.grad = param.detach().clone()
            optimizer.step()
        found[lr] = math.log(optimizer.modulation.alpha.item())
    assert found[1e-5] > 1.0
    assert found[1.0] < -0.2
