"""Parameters in bfloat16: what each way of not losing small updates costs and leaves behind.

``python -m benchmarks.bfloat16`` trains the demo's character Transformer with AdamW in pure
bfloat16, at a learning rate whose updates are mostly smaller than the spacing of bfloat16, and
compares with float32 master weights. Every arm starts from the same weights and sees the same
batches. Prints the table of docs/integrations/precision.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaadamw.state.master_weights import join, split
from metaadamw_bench.tasks.pydoc import CharacterTransformer, cross_entropy, load

LR, WEIGHT_DECAY, BETAS, EPS = 1e-4, 0.1, (0.9, 0.999), 1e-8
START_LR, START_STEPS, BATCH = 3e-3, 200, 16


@dataclass
class Arm:
    """A way to keep one parameter tensor: what is stored beside it, and its AdamW update."""

    extra_bytes: int  # per parameter, beside the parameter itself and the float32 moments
    start: Callable[[Tensor], list[Tensor]]  # float32 weights -> parameter, extra tensors
    value: Callable[[list[Tensor]], Tensor]  # the float32 value that is updated
    store: Callable[[list[Tensor], Tensor], None]  # its new value


def _stochastic(generator: torch.Generator) -> Callable[[list[Tensor], Tensor], None]:
    def store(kept: list[Tensor], new: Tensor) -> None:
        noise = torch.randint(0, 1 << 16, new.shape, dtype=torch.int32, generator=generator)
        bits = (new.view(torch.int32) + noise) >> 16
        kept[0].copy_(bits.to(torch.int16).view(torch.bfloat16))

    return store


def _kahan(kept: list[Tensor], new: Tensor) -> None:
    rounded = new.bfloat16()
    kept[0].copy_(rounded)
    kept[1].copy_((new - rounded.float()).bfloat16())


def _split(kept: list[Tensor], new: Tensor) -> None:
    param, low = split(new)
    kept[0].copy_(param)
    kept[1].copy_(low)


def _masters(kept: list[Tensor], new: Tensor) -> None:
    kept[1].copy_(new)
    kept[0].copy_(split(new)[0])


def arms() -> dict[str, Arm]:
    def plain(kept: list[Tensor], new: Tensor) -> None:
        kept[0].copy_(new.bfloat16())

    generator = torch.Generator().manual_seed(0)
    return {
        "float32 master weights": Arm(
            4, lambda w: [split(w)[0], w.clone()], lambda kept: kept[1], _masters
        ),
        "rounding to nearest": Arm(
            0, lambda w: [w.bfloat16()], lambda kept: kept[0].float(), plain
        ),
        "stochastic rounding": Arm(
            0, lambda w: [w.bfloat16()], lambda kept: kept[0].float(), _stochastic(generator)
        ),
        "Kahan summation": Arm(
            2,
            lambda w: [w.bfloat16(), (w - w.bfloat16().float()).bfloat16()],
            lambda kept: kept[0].float() + kept[1].float(),
            _kahan,
        ),
        "`master_weights=True`": Arm(
            2, lambda w: [*split(w)], lambda kept: join(kept[0], kept[1]), _split
        ),
    }


def adamw(value: Tensor, grad: Tensor, m: Tensor, v: Tensor, t: int, lr: float) -> Tensor:
    m.lerp_(grad, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    direction = (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)
    return value - lr * (direction + WEIGHT_DECAY * value)


def train(arm: Arm, weights: list[Tensor], lr: float, steps: int) -> tuple[list[Tensor], float]:
    """The float32 values after training, and the validation loss in bits per character."""
    torch.manual_seed(0)
    model = CharacterTransformer(dropout=0.0).bfloat16()
    params = list(model.parameters())
    kept = [arm.start(w) for w in weights]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    splits = load()
    inputs, targets = splits.train.tensors
    generator = torch.Generator().manual_seed(1)
    for t in range(1, steps + 1):
        for param, tensors in zip(params, kept, strict=True):
            param.data.copy_(tensors[0])
        rows = torch.randint(len(inputs), (BATCH,), generator=generator)
        model.zero_grad()
        cross_entropy(model(inputs[rows]).float(), targets[rows]).backward()
        for param, tensors, (m, v) in zip(params, kept, moments, strict=True):
            assert param.grad is not None
            arm.store(tensors, adamw(arm.value(tensors), param.grad.float(), m, v, t, lr))
    for param, tensors in zip(params, kept, strict=True):
        param.data.copy_(tensors[0])
    with torch.no_grad():
        inputs, targets = splits.validation.tensors
        loss = cross_entropy(model(inputs).float(), targets).item()
    return [arm.value(tensors).clone() for tensors in kept], loss / 0.6931471805599453


def distance(x: list[Tensor], y: list[Tensor]) -> float:
    return sum((a - b).square().sum().item() for a, b in zip(x, y, strict=True)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    all_arms = arms()
    torch.manual_seed(0)
    start = [p.detach().clone() for p in CharacterTransformer(dropout=0.0).parameters()]
    masters = all_arms["float32 master weights"]
    start, loss = train(masters, start, START_LR, START_STEPS)
    print(f"start: {loss:.4f} bits per character; then {steps} steps of lr {LR}")
    print("| | bits per character | ‖θ − θ*‖ / ‖θ* − θ₀‖ | ‖θ‖ / ‖θ₀‖ | extra bytes |")
    print("|---|---|---|---|---|")
    reference: list[Tensor] = []
    for name, arm in all_arms.items():
        values, loss = train(arm, start, LR, steps)
        reference = reference or values
        error = distance(values, reference) / distance(reference, start)
        zero = [torch.zeros_like(w) for w in start]
        shrunk = distance(values, zero) / distance(start, zero)
        print(
            f"| {name} | {loss:.4f} | {error:.3g} | {shrunk:.4f} | {arm.extra_bytes} |", flush=True
        )


if __name__ == "__main__":
    main()
