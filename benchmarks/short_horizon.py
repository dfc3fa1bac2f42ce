"""The horizon of a signal, on a noisy quadratic: which learning rates does it call too high?

The loss is ½ Σ hᵢ θᵢ², its gradients carry noise of variance hᵢ. Adam runs with every constant
learning rate, twenty copies each; noted are the loss after T steps, and what the free hypergradient
says in the second half: the cosine of one step with the next gradient, and of windows of K steps
with the first moment K steps later. A good signal changes its sign at the rate that is best.

    python -m benchmarks.short_horizon

writes benchmarks/results/short-horizon.json and docs/images/short-horizon.svg.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
RATES = [10 ** (-3.5 + i / 6) for i in range(16)]
WINDOWS = (5, 25, 100)
STEPS, COPIES, DIMENSION = 1500, 20, 100
BETAS, EPS = (0.9, 0.999), 1e-8


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Over the last dimension."""
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp_min(1e-30)


def measure(seed: int = 0) -> dict[str, Any]:
    """Final losses and mean signals; every rate sees the same noise."""
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.logspace(-3, 0, DIMENSION, dtype=torch.float64)
    rates = torch.tensor(RATES, dtype=torch.float64)[:, None, None]
    theta = torch.ones(len(RATES), COPIES, DIMENSION, dtype=torch.float64)
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    step = torch.zeros_like(theta)
    starts = {k: theta.clone() for k in WINDOWS}
    displacements = {k: torch.zeros_like(theta) for k in WINDOWS}
    names = ["1", *map(str, WINDOWS)]
    sums = {name: torch.zeros(len(RATES), COPIES, dtype=torch.float64) for name in names}
    counts = dict.fromkeys(names, 0)
    for t in range(1, STEPS + 1):
        noise = torch.randn(COPIES, DIMENSION, generator=generator, dtype=torch.float64)
        grad = curvature * theta + curvature.sqrt() * noise
        if t > STEPS // 2:
            sums["1"] += cosine(grad, step)
            counts["1"] += 1
        for k in WINDOWS:
            if (t - 1) % k == 0 and t > 1:
                if t > STEPS // 2 + k:
                    sums[str(k)] += cosine(m, displacements[k])
                    counts[str(k)] += 1
                displacements[k] = theta - starts[k]
                starts[k] = theta.clone()
        m = BETAS[0] * m + (1 - BETAS[0]) * grad
        v = BETAS[1] * v + (1 - BETAS[1]) * grad.square()
        direction = (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)
        step = -rates * direction
        theta = theta + step
    losses = 0.5 * (curvature * theta.square()).sum(-1)
    best = RATES[int(losses.mean(1).argmin())]
    signals = {name: (total / counts[name]) for name, total in sums.items()}
    return {
        "rates": RATES,
        "steps": STEPS,
        "copies": COPIES,
        "loss": losses.mean(1).tolist(),
        "loss_standard_error": (losses.std(1) / math.sqrt(COPIES)).tolist(),
        "best_rate": best,
        "signal": {name: value.mean(1).tolist() for name, value in signals.items()},
        "calls_too_high_from": {name: crossing(value.mean(1)) for name, value in signals.items()},
    }


def crossing(signal: Tensor) -> float | None:
    """The lowest rate from which on a signal asks for less; None if it never does."""
    high = [rate for rate, value in zip(RATES, signal.tolist(), strict=True) if value > 0]
    return min(high) if high else None


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
        label = "consecutive steps" if name == "1" else f"window of {name}"
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
    result = measure()
    path = ROOT / "benchmarks/results/short-horizon.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, ROOT / "docs/images/short-horizon.svg")
    print(f"best rate {result['best_rate']:.2g}; called too high from:")
    for name, rate in result["calls_too_high_from"].items():
        print(f"  window {name:>3}: {'never' if rate is None else format(rate, '.2g')}")


if __name__ == "__main__":
    main()
