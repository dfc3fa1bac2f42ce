"""A compiled model with look-ahead, on Python's own documentation.

    python examples/compiled_model.py
    python examples/compiled_model.py --backend aot_eager

A compiled model has no second derivative: meta-updates take finite differences instead. "inductor"
generates code, on a CPU with a C++ compiler. On a GPU if there is one.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from metaadamw import LookAhead, MetaAdamW, NumberedBatches, fine_grained_groups

CONTEXT, WIDTH = 16, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def loss_fn(model: nn.Module, windows: Tensor) -> Tensor:
    """Cross-entropy of the last character."""
    windows = windows.to(DEVICE)
    return nn.functional.cross_entropy(model(windows[:, :-1]), windows[:, -1])


def train(backend: str, steps: int) -> tuple[float, MetaAdamW]:
    """The validation loss at the end, and the optimizer."""
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    examples, validation = tokens.unfold(0, CONTEXT + 1, CONTEXT + 1).split(20_000)[:2]
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(CONTEXT * 16, WIDTH))
    layers.extend([nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)]).to(DEVICE)
    model = torch.compile(layers, backend=backend)
    optimizer = MetaAdamW(
        fine_grained_groups(model),  # named as those of the model that was compiled
        lr=1e-3,
        learning=LookAhead(every=20, optimizer="adam", lr=1e-3),
    )
    batches, more = (NumberedBatches(examples, 64, seed=seed) for seed in (0, 1))
    held_out = NumberedBatches(validation[:2000], 64)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model, batches[step])
        loss.backward()
        optimizer.step()
        if optimizer.meta_update_due:
            n = optimizer.steps // 20
            meta_batches = (more[2 * n], more[2 * n + 1], held_out[n])
            update = optimizer.update_attention(model, loss_fn, *meta_batches)
            print(f"step {optimizer.steps:4}  loss {loss.item():.3f}  product by {update.hvp}")
    with torch.no_grad():  # not compiled once more for a batch of another size
        return loss_fn(layers, validation[2000:]).item(), optimizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    loss, optimizer = train(options.backend, options.steps)
    print(f"validation loss {loss:.4f}")
    for name, alpha in zip(optimizer.group_names, optimizer.modulation.alpha.tolist(), strict=True):
        print(f"alpha {name:30} {alpha:.4f}")
