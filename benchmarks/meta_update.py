"""What one meta-update costs, in forward and backward passes of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.authors_port import AuthorsMetaAdamW
from benchmarks.contestants import layers
from benchmarks.measure import side_by_side
from benchmarks.models import cross_entropy, mini_gpt, mini_gpt_batch, model_groups, twins
from metaadamw import LookAhead, MetaAdamW
from metaadamw.learning.lookahead.evaluation import twice_differentiable

PRODUCTS = {
    "exact": "exact product",
    "finite_difference": "central difference",
    "forward_difference": "one-sided difference",
}
FLOOR = {"exact": 16 / 3, "finite_difference": 16 / 3, "forward_difference": 13 / 3}
"""Passes: B1 1, B2 1, product 2 (1 one-sided), validation 1⅓; a forward pass counts ⅓."""
PASS = "forward and backward"
UNITS = 1


def run(quick: bool, advance: Callable[[], None]) -> dict[str, Any]:
    """Every product, with B1 evaluated or taken from training, and the authors' way, on MiniGPT."""
    model = mini_gpt(quick)
    groups = model_groups(model)
    batches = [mini_gpt_batch(quick) for _ in range(4)]
    params = list(model.parameters())
    modulator = layers(8)

    def gradient(**options: bool) -> list[torch.Tensor]:
        return list(torch.autograd.grad(cross_entropy(model, batches[0]), params, **options))

    def gradient_and_product() -> None:
        with twice_differentiable():
            grads = gradient(create_graph=True)
            torch.autograd.grad(grads, params, grad_outputs=[g.detach() for g in grads])

    contestants: dict[str, Callable[[], object]] = {
        PASS: gradient,
        "forward": torch.no_grad()(lambda: cross_entropy(model, batches[0])),
        "gradient and product": gradient_and_product,
    }
    floors = {PASS: 1.0, "forward": 1 / 3, "gradient and product": 3.0}
    for hvp, label in PRODUCTS.items():
        optimizer = MetaAdamW(groups, modulator=modulator, learning=LookAhead(hvp=hvp), fused=True)
        optimizer.step()
        contestants[label] = _meta_update(optimizer, model, batches)
        contestants[f"{label}, training gradient as B1"] = _after_backward(
            optimizer, model, batches
        )
        floors[label] = FLOOR[hvp]
        floors[f"{label}, training gradient as B1"] = FLOOR[hvp] - 1
    authors = AuthorsMetaAdamW(twins(groups), modulator, LookAhead())
    authors.step()
    contestants["authors' code"] = lambda: authors.update_attention(model, cross_entropy, *batches)

    timings = side_by_side(contestants, rounds=2 if quick else 9, warmup=int(quick), seconds=60)
    advance()
    return {
        name: {
            **asdict(timing),
            "passes": timing.median / timings[PASS].median,
            "floor": floors.get(name),
        }
        for name, timing in timings.items()
    }


def _meta_update(
    optimizer: MetaAdamW, model: torch.nn.Module, batches: list[Any]
) -> Callable[[], object]:
    return lambda: optimizer.update_attention(model, cross_entropy, *batches[:3])


def _after_backward(
    optimizer: MetaAdamW, model: torch.nn.Module, batches: list[Any]
) -> Callable[[], object]:
    """The gradients are in ``.grad``; any number does as the loss, for what it costs."""
    return lambda: optimizer.update_attention(
        model, cross_entropy, None, *batches[1:3], training_loss=1.0
    )
