"""The horizon of a signal, on a noisy quadratic: which learning rates does it call too high?

The loss is ½ Σ hᵢ θᵢ², its gradients carry noise of variance hᵢ.

1. Adam runs with every constant learning rate, twenty copies each. Noted are the loss after T
   steps and what a signal says in the second half: the cosine of one step with the next gradient,
   and that of two windows of K steps (``metaadamw.learning.windows``). A good signal changes its
   sign at the best rate.
2. ``MetaAdamW``, five groups, learning in windows, from single steps and from both, runs at base
   learning rates over two orders of magnitude, beside Adam with the best constant rate and with the
   best linear decay to zero. Noted are the final loss and where the learning rates are by then.

    python -m benchmarks.short_horizon

writes benchmarks/results/short-horizon.json and docs/images/short-horizon.svg.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaadamw import (
    Factors,
    Hypergradient,
    MetaAdamW,
    TwoHorizons,
    Windows,
)

ROOT = Path(__file__).parents[1]
RATES = [10 ** (-3.5 + i / 6) for i in range(16)]
WINDOWS = (25, 75, 300)
STEPS, COPIES, DIMENSION, GROUPS = 1500, 20, 100, 5
BETAS, EPS = (0.9, 0.999), 1e-8
LENGTHS = {1_500: RATES, 15_000: [rate / 10 for rate in RATES[4:]]}
"""How long the runs of the second part are, and the rates that Adam may choose from."""
BASES, SEEDS = (3e-4, 1e-3, 1e-2, 3e-2), 5
CURVATURE = torch.logspace(-3, 0, DIMENSION, dtype=torch.float64)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Over the last dimension."""
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp_min(1e-30)


def gradient(theta: Tensor, generator: torch.Generator, copies: int) -> Tensor:
    """That of the loss, with noise; every learning rate sees the same noise."""
    noise = torch.randn(copies, DIMENSION, generator=generator, dtype=torch.float64)
    return CURVATURE * theta + CURVATURE.sqrt() * noise


def loss(theta: Tensor) -> Tensor:
    """Without noise."""
    return 0.5 * (CURVATURE * theta.square()).sum(-1)


class Adam:
    """Adam at every rate at once: theta has shape [rates, copies, dimension]."""

    def __init__(self, rates: list[float], seed: int = 0) -> None:
        self.rates = torch.tensor(rates, dtype=torch.float64)[:, None, None]
        self.theta = torch.ones(len(rates), COPIES, DIMENSION, dtype=torch.float64)
        self.m, self.v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.t, self.generator = 0, torch.Generator().manual_seed(seed)

    def root(self) -> Tensor:
        """√v̂ + ε."""
        return (self.v / (1 - BETAS[1] ** self.t)).sqrt() + EPS

    def direction(self) -> Tensor:
        """m̂ / (√v̂ + ε)."""
        return self.m / (1 - BETAS[0] ** self.t) / self.root()

    def step(self, factor: float = 1.0) -> Tensor:
        """One step; returns its gradient."""
        grad = gradient(self.theta, self.generator, COPIES)
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * grad
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * grad.square()
        self.theta = self.theta - factor * self.rates * self.direction()
        return grad


def signals() -> dict[str, Any]:
    """Part 1: final losses and mean signals."""
    adam = Adam(RATES)
    names = ["1", *map(str, WINDOWS)]
    sums = {name: torch.zeros(len(RATES), COPIES, dtype=torch.float64) for name in names}
    counts = dict.fromkeys(names, 0)
    step = torch.zeros_like(adam.theta)
    starts = dict.fromkeys(WINDOWS, adam.theta)
    before: dict[int, Tensor] = {}
    for t in range(1, STEPS + 1):
        theta = adam.theta
        grad = adam.step()
        if t > STEPS // 2:
            sums["1"] += cosine(grad, step)
            counts["1"] += 1
        step = adam.theta - theta
        carried = adam.rates * BETAS[0] / (1 - BETAS[0]) * adam.direction()
        for k in WINDOWS:
            if t % k == 0:
                displacement = adam.theta - carried - starts[k]
                if t > STEPS // 2 and k in before:
                    sums[str(k)] += cosine(-displacement * adam.root(), before[k])
                    counts[str(k)] += 1
                before[k], starts[k] = displacement, adam.theta - carried
    losses = loss(adam.theta)
    means = {name: (total / counts[name]).mean(1) for name, total in sums.items()}
    return {
        "rates": RATES,
        "steps": STEPS,
        "copies": COPIES,
        "loss": losses.mean(1).tolist(),
        "loss_standard_error": (losses.std(1) / math.sqrt(COPIES)).tolist(),
        "best_rate": RATES[int(losses.mean(1).argmin())],
        "signal": {name: mean.tolist() for name, mean in means.items()},
        "calls_too_high_from": {name: crossing(mean) for name, mean in means.items()},
    }


def crossing(signal: Tensor) -> float | None:
    """The lowest rate from which on a signal asks for less; None if it never does."""
    high = [rate for rate, value in zip(RATES, signal.tolist(), strict=True) if value > 0]
    return min(high) if high else None


def best_adam(rates: list[float], steps: int, factor: Callable[[int], float]) -> dict[str, float]:
    """The lowest final loss of any rate, with a schedule."""
    adam = Adam(rates)
    for t in range(steps):
        adam.step(factor(t))
    losses = loss(adam.theta).mean(1)
    best = int(losses.argmin())
    return {"rate": rates[best], "loss": losses[best].item()}


def presets() -> dict[str, tuple[Any, Any]]:
    """Windows, the same with every factor going its own way, single steps alone, and both."""
    modulator, meta = (Factors(), Windows())
    return {
        "windows": (modulator, meta),
        "windows, mean_speed 1": (modulator, replace(meta, mean_speed=1.0)),
        "single steps": (Factors(), Hypergradient()),
        "two horizons": (Factors(), TwoHorizons()),
    }


def of_preset(preset: tuple[Any, Any], base: float, steps: int, seed: int) -> tuple[float, float]:
    """Final loss, and the groups' mean learning rate then, of MetaAdamW with a factor for each."""
    modulator, meta = preset
    theta = torch.ones(DIMENSION, dtype=torch.float64)
    params = [nn.Parameter(part) for part in theta.chunk(GROUPS)]
    optimizer = MetaAdamW(
        [{"params": [param]} for param in params],
        lr=base,
        betas=BETAS,
        eps=EPS,
        weight_decay=0.0,
        modulator=modulator,
        learning=meta,
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        whole = torch.cat([param.detach() for param in params])
        for param, grad in zip(
            params, gradient(whole, generator, 1).squeeze(0).chunk(GROUPS), strict=True
        ):
            param.grad = grad
        optimizer.step()
    rate = base * optimizer.modulation.alpha.log().mean().exp().item()
    return loss(torch.cat([param.detach() for param in params])).item(), rate


def repeated(run: Callable[[int], tuple[float, float]]) -> dict[str, float]:
    """Mean and standard error of the loss over the seeds, geometric mean of the rates."""
    losses, rates = torch.tensor([run(seed) for seed in range(SEEDS)]).unbind(1)
    error = losses.std().item() / math.sqrt(SEEDS)
    rate = rates.log().mean().exp().item()
    return {"loss": losses.mean().item(), "standard_error": error, "final_rate": rate}


def runs() -> dict[str, Any]:
    """Part 2: final losses, by length of the run."""
    found = {}
    for steps, rates in LENGTHS.items():
        found[str(steps)] = {
            "best constant rate": best_adam(rates, steps, lambda t: 1.0),
            "best linear decay": best_adam(rates, steps, lambda t, total=steps: 1 - t / total),
        } | {
            f"{name}, by base rate": {
                f"{base:g}": repeated(partial(of_preset, preset, base, steps)) for base in BASES
            }
            for name, preset in presets().items()
        }
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Loss and signals by learning rate."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "short-horizon"
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 5), layout="tight")
    above.loglog(result["rates"], result["loss"], color="#333333")
    above.set_ylabel(f"loss after {result['steps']} steps")
    for name, values in result["signal"].items():
        label = "consecutive steps" if name == "1" else f"windows of {name}"
        below.plot(result["rates"], values, label=label)
    below.axhline(0, color="#999999", linewidth=0.8)
    for axes in (above, below):
        axes.axvline(result["best_rate"], color="#d55e00", linestyle=":", linewidth=1)
    below.set_xlabel("learning rate (dotted: the best)")
    below.set_ylabel("signal: above 0 asks for less")
    below.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, write, draw."""
    torch.set_num_threads(1)
    result = {**signals(), "runs": runs()}
    path = ROOT / "benchmarks/results/short-horizon.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, ROOT / "docs/images/short-horizon.svg")
    print(f"best rate {result['best_rate']:.2g}; called too high from:")
    for name, rate in result["calls_too_high_from"].items():
        print(f"  window {name:>3}: {'never' if rate is None else format(rate, '.2g')}")
    for steps, row in result["runs"].items():
        print(f"{steps} steps:")
        for name, found in row.items():
            print(f"  {name}: {found}")


if __name__ == "__main__":
    main()
