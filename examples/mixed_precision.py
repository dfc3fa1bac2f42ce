"""The same training in three precisions, on Python's own documentation.

    python examples/mixed_precision.py
    python examples/mixed_precision.py --mode lookahead

All in float32; float16 autocast with a loss scaler; all in bfloat16, with float32 master weights in
the optimizer. All three end at the same loss. On a GPU if there is one.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from metaadamw import Hypergradient, LookAhead, MetaAdamW, NumberedBatches, fine_grained_groups

CONTEXT, WIDTH = 16, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _learning(mode: str) -> LookAhead | Hypergradient:
    """Look-ahead calls for meta-updates; "online" learns inside ``step()``."""
    if mode == "lookahead":
        return LookAhead(every=20, optimizer="adam", lr=1e-3)
    return Hypergradient(lr=1e-3)


def train(precision: str, mode: str, steps: int) -> tuple[float, MetaAdamW]:
    """A loop that serves all three; the validation loss at the end, and the optimizer."""
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    examples, validation = tokens.unfold(0, CONTEXT + 1, CONTEXT + 1).split(20_000)[:2]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(CONTEXT * 16, WIDTH))
    model.extend([nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)])
    model.to(DEVICE, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    optimizer = MetaAdamW(
        fine_grained_groups(model),
        lr=1e-3,
        master_weights=precision == "bfloat16",
        modulator="attention",
        learning=_learning(mode),
    )
    scaler = torch.amp.GradScaler(DEVICE, enabled=precision == "autocast")

    def loss_fn(model: nn.Module, windows: Tensor) -> Tensor:
        """Cross-entropy of the last character; brings its autocast along to meta-updates."""
        windows = windows.to(DEVICE)
        with torch.autocast(DEVICE, dtype=torch.float16, enabled=precision == "autocast"):
            logits = model(windows[:, :-1])
        return nn.functional.cross_entropy(logits.float(), windows[:, -1])

    batches, more = (NumberedBatches(examples, 64, seed=seed) for seed in (0, 1))
    held_out = NumberedBatches(validation[:2000], 64)
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_fn(model, batches[step])).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if optimizer.meta_update_due:
            n = optimizer.steps // 20
            optimizer.update_attention(model, loss_fn, more[2 * n], more[2 * n + 1], held_out[n])
    with torch.no_grad():
        return loss_fn(model, validation[2000:]).item(), optimizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("online", "lookahead"), default="online")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    for precision in ("float32", "autocast", "bfloat16"):
        loss, optimizer = train(precision, options.mode, options.steps)
        alpha = " ".join(f"{a:.3f}" for a in optimizer.modulation.alpha.tolist())
        print(f"{precision:8}  validation loss {loss:.6f}  alpha {alpha}")
