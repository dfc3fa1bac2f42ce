"""What ``MetaAdamW`` does by default, and its single steps alone, written out in full.

At every fourth step Adam moves the factors by what the gradient says of the last step. With
windows, their mean stays where it is at such a step, and where a window ends, they also move by the
cosine of what its gradients add up to and where the window before has gone, on average by half.
"""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaadamw import Factors, Hypergradient, MetaAdamW, TwoHorizons, Windows
from metaadamw.learning.gauss_newton import DAMPING
from tests.reference.window import boundaries

LR, BETAS, EPS, DECAY, STEPS = 0.05, (0.9, 0.999), 1e-8, 0.1, 41
WINDOW, GAIN = 6, 2.0
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


def learning(window: int) -> Hypergradient | TwoHorizons:
    """Single steps alone, or with windows."""
    return Hypergradient() if window == 1 else TwoHorizons(window=window)


class Plain:
    """AdamW of every group, θ_t and d_t kept, and Adam on the raw outputs of its factors."""

    def __init__(self, seed: int, *, mean_preserving: bool, windows: bool) -> None:
        self.mean_preserving = mean_preserving
        self.theta = parts(seed)
        self.m = [[torch.zeros_like(p) for p in group] for group in self.theta]
        self.v = [[torch.zeros_like(p) for p in group] for group in self.theta]
        self.raw = torch.zeros(len(SHAPES), 2, dtype=torch.float64)
        self.first, self.second = torch.zeros_like(self.raw), torch.zeros_like(self.raw)
        self.updates = 0
        self.before: list[tuple[Tensor, Tensor]] = []
        self.starts: list[Tensor] = []
        self.displacements: list[Tensor] = []
        self.windows = 0 if windows else None
        self.lr = self.highest_lr = LR

    def landings(self, t: int) -> list[Tensor]:
        """Where momentum alone would carry the groups after t steps."""
        if not t:
            return [flat(theta) for theta in self.theta]
        found = []
        for g, alpha in enumerate(self.factors(self.raw)[:, 0]):
            m_hat, v_hat = flat(self.m[g]) / (1 - BETAS[0] ** t), self.second_moment(g, t)
            ahead = BETAS[0] / (1 - BETAS[0]) * m_hat / (v_hat.sqrt() + EPS)
            found.append(flat(self.theta[g]) - self.lr * alpha * ahead)
        return found

    def second_moment(self, g: int, t: int) -> Tensor:
        return flat(self.v[g]) / (1 - BETAS[1] ** t)

    def judge(self, t: int, length: int, rates: Tensor, decays: Tensor) -> Tensor:
        """What a window of this length, ended after t steps, says of the one before, [G]."""
        moved = [a - b for a, b in zip(self.landings(t), self.starts, strict=True)]
        cosines = torch.zeros(len(moved), dtype=torch.float64)
        for g, before in enumerate(self.displacements):
            decay = rates[g] * length * decays[g] * flat(self.theta[g])
            root = self.second_moment(g, t).sqrt() + EPS
            cosines[g] = cosine(-(moved[g] + decay) * root, before)
        self.displacements = moved
        return cosines

    def end_window(self, cosines: Tensor) -> None:
        """One group's raw output moves with its own cosine, damped."""
        if not self.mean_preserving:
            speed = 0.5 * (self.lr / self.highest_lr) ** 2
            cosines = cosines - (1 - speed) * cosines.mean()
        raw = self.raw.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cosines @ self.factors(raw)[:, 0].log(), raw)
        assert self.windows is not None
        self.windows += bool(slope.any())
        self.raw = self.raw - GAIN * slope / (1 + DAMPING)

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
        change = rate * m_hat / (v_hat.sqrt() + 1e-8)
        if self.windows is not None:
            change[:, 0] -= change[:, 0].mean()
        self.raw = self.raw - change

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
                group[i] = theta - self.lr * alpha * d
            self.before.append((flat(thetas), flat(directions)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mean_preserving", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("window", [1, WINDOW])
@pytest.mark.parametrize("decays", [False, True])
def test_factors_and_parameters_are_those_of_the_plain_form(
    seed: int, mean_preserving: bool, fused: bool, window: int, decays: bool
) -> None:
    """A cosine is recovered to 1e-13, and Adam divides it by its own size: 1e-9."""
    plain = Plain(seed, mean_preserving=mean_preserving, windows=window > 1)
    params = [[nn.Parameter(p) for p in group] for group in parts(seed)]
    modulator, meta = Factors(mean_preserving=mean_preserving), learning(window)
    options: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    groups = [{"params": group} for group in params]
    optimizer = MetaAdamW(groups, modulator=modulator, learning=meta, fused=fused, **options)
    begins = boundaries(STEPS, window) if window > 1 else []
    for step in range(STEPS):
        grads = gradient(plain.theta, step)
        plain.lr = LR * (1 - step / STEPS if decays else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plain.lr
        cosines = None
        if step in begins[1:]:
            alpha, beta = plain.factors(plain.raw).unbind(1)
            cosines = plain.judge(
                step, step - max(b for b in begins if b < step), plain.lr * alpha, DECAY * beta
            )
        if step and step % modulator.update_every == 0:
            plain.learn(grads, meta.weight_decay, 0.04)
        if cosines is not None:
            plain.end_window(cosines)
        if step in begins:
            plain.starts = plain.landings(step)
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
    assert plain.windows == (len(begins) - 2 if begins else None)
    assert alpha.log().abs().max() > 0.05


@pytest.mark.parametrize("window", [1, WINDOW])
def test_it_is_adamw_until_it_has_learned(window: int) -> None:
    modulator, meta = Factors(), learning(window)
    # Too small for α to differ from 1; the rate of single steps must not be 0 beside windows.
    meta = replace(meta, lr=0.0, **({} if window == 1 else {"consecutive_lr": 1e-30}))
    ours, theirs = ([nn.Parameter(p) for p in itertools.chain(*parts(0))] for _ in range(2))
    optimizer = MetaAdamW(ours, lr=LR, modulator=modulator, learning=meta)
    adamw = torch.optim.AdamW(theirs, lr=LR, weight_decay=1e-2)
    for step in range(25):
        for p, q, noise in zip(ours, theirs, itertools.chain(*parts(step)), strict=True):
            p.grad, q.grad = noise.clone(), noise.clone()
        optimizer.step()
        adamw.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert optimizer.metrics()["meta/applied"] == 6 + (
        len(boundaries(25, window)) if window > 1 else 0
    )


def train(optimizer: MetaAdamW, steps: range) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        for param, noise in zip(params, itertools.chain(*parts(step)), strict=True):
            param.grad = param.detach() + noise
        optimizer.step()


def optimizer_of(params: list[list[nn.Parameter]], window: int) -> MetaAdamW:
    modulator, meta = Factors(), learning(window)
    groups = [{"params": group, "name": f"group {g}"} for g, group in enumerate(params)]
    return MetaAdamW(groups, lr=LR, modulator=modulator, learning=meta)


@pytest.mark.parametrize("window", [1, WINDOW])
@pytest.mark.parametrize("stop", [0, 5, 6, 8, 12, 17])
def test_a_resumed_run_is_the_run_that_never_stopped(window: int, stop: int) -> None:
    """Within a window and between two, where both learn and where none does."""
    params = [[nn.Parameter(p) for p in group] for group in parts(0)]
    whole = optimizer_of(params, window)
    train(whole, range(stop))
    copies = [[nn.Parameter(p.detach().clone()) for p in group] for group in params]
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    buffer.seek(0)
    resumed = optimizer_of(copies, window)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for optimizer in (whole, resumed):
        train(optimizer, range(stop, 40))
    for p, q in zip(itertools.chain(*params), itertools.chain(*copies), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(whole.modulation.alpha, resumed.modulation.alpha)


def test_windows_do_not_load_into_an_optimizer_that_learns_from_single_steps_too() -> None:
    params = [[nn.Parameter(p) for p in group] for group in parts(0)]
    groups = [{"params": group, "name": f"group {g}"} for g, group in enumerate(params)]
    windows = MetaAdamW(groups, learning=Windows(window=WINDOW))
    with pytest.raises(
        ValueError, match="learned by Windows, this optimizer learns by TwoHorizons"
    ):
        optimizer_of(params, WINDOW).load_state_dict(windows.state_dict())
    with pytest.raises(
        ValueError, match="learned by TwoHorizons, this optimizer learns by Windows"
    ):
        windows.load_state_dict(optimizer_of(params, WINDOW).state_dict())


@pytest.mark.parametrize("stop", [0, 9])
def test_single_steps_leave_the_mean_of_the_groups_that_move(stop: int) -> None:
    """A group that gets no gradient stays where it is, and the mean is that of the others."""
    params = [[nn.Parameter(p) for p in group] for group in parts(0)]
    optimizer = optimizer_of(params, 75)
    frozen_at = torch.zeros(())
    for step in range(40):
        for g, (group, noises) in enumerate(zip(params, parts(step), strict=True)):
            for param, noise in zip(group, noises, strict=True):
                frozen = g == 1 and step >= stop
                param.grad = None if frozen else param.detach() + noise
        optimizer.step()
        raw = optimizer.modulator.raw[:, 0].detach().clone()
        frozen_at = raw[1] if step == stop else frozen_at
        assert raw.mean().abs() < 1e-15
    assert raw[1] == frozen_at
    assert (frozen_at == 0) == (stop == 0)
    assert raw[[0, 2, 3]].abs().min() > 1e-3


def test_what_single_steps_have_taught_goes_with_a_groups_name() -> None:
    """Adam's moments of a factor too: the groups change places, and nothing else changes."""
    found = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        params = [[nn.Parameter(p) for p in group] for group in parts(0)]
        optimizer = optimizer_of(params, WINDOW)
        train(optimizer, range(9))
        optimizer.param_groups[:] = [optimizer.param_groups[i] for i in order]
        for step in range(9, 40):
            for group, noises in zip(params, parts(step), strict=True):
                for param, noise in zip(group, noises, strict=True):
                    param.grad = param.detach() + noise
            optimizer.step()
        found.append([optimizer.modulation.alpha[order.index(g)] for g in range(4)])
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("window", "least"), [(1, 1.0), (75, 0.5)])
def test_a_rate_far_too_low_rises_and_one_far_too_high_falls(window: int, least: float) -> None:
    """On a quadratic without noise, where every step agrees with the one before or overshoots."""
    found = {}
    for lr in (1e-5, 1.0):
        param = nn.Parameter(torch.ones(10, dtype=torch.float64))
        modulator, meta = Factors(), learning(window)
        optimizer = MetaAdamW([param], lr=lr, weight_decay=0.0, modulator=modulator, learning=meta)
        for _ in range(200):
            param.grad = param.detach().clone()
            optimizer.step()
        found[lr] = math.log(optimizer.modulation.alpha.item())
    assert found[1e-5] > least
    assert found[1.0] < -0.2
