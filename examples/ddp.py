"""A small character model under DistributedDataParallel, on Python's own documentation.

    torchrun --nproc-per-node 2 examples/ddp.py
    torchrun --nproc-per-node 2 examples/ddp.py --mode lookahead

On GPUs with NCCL, else on CPU cores with gloo.
"""

from __future__ import annotations

import argparse
import os
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaadamw import Hypergradient, LookAhead, MetaAdamW, NumberedBatches, fine_grained_groups

CONTEXT, WIDTH = 32, 32


def _learning(mode: str) -> LookAhead | Hypergradient:
    """Look-ahead calls for meta-updates; "online" learns inside ``step()``."""
    if mode == "lookahead":
        return LookAhead(every=10, lr=1e-2, optimizer="adam")
    return Hypergradient(lr=1e-2)


class Model(nn.Module):
    """A GPT of about 20,000 weights; characters are ASCII, 0 to 127."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 128)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the character after each."""
        x = self.embedding(text) + self.position.weight[: text.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1], device=text.device)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(x)


def load() -> tuple[Tensor, Tensor, Tensor]:
    """Windows to train on, for meta-updates, and to validate on."""
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    windows = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    return windows[:-800], windows[-800:-400], windows[-400:]


def loss_fn(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of the next character."""
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def start() -> torch.device:
    """Join the other processes; where this one computes."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    return torch.device("cuda", torch.cuda.current_device())


def train(model: nn.Module, optimizer: MetaAdamW, device: torch.device, steps: int) -> None:
    """A plain training loop; with look-ahead, three lines more."""
    rank, size = dist.get_rank(), dist.get_world_size()
    windows, meta_validation, validation = load()
    batches = NumberedBatches(windows, 16, rank=rank, world_size=size)
    more = NumberedBatches(windows, 16, seed=1, rank=rank, world_size=size)
    held_out = NumberedBatches(meta_validation, 16, rank=rank, world_size=size)
    for step in range(steps):
        loss = loss_fn(model, batches[step].to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.meta_update_due:  # on all processes at once, each with batches of its own
            n = optimizer.steps
            meta_batches = (more[2 * n], more[2 * n + 1], held_out[n])
            optimizer.update_attention(model, loss_fn, *(b.to(device) for b in meta_batches))
        if rank == 0 and step % 10 == 0:
            print(f"step {step:4}  loss {loss.item():.3f}")
    with torch.no_grad():
        loss = loss_fn(model, validation.to(device))
    alpha = " ".join(f"{a:.6f}" for a in optimizer.modulation.alpha.tolist())
    print(f"rank {rank}: validation loss {loss.item():.6f}, alpha {alpha}", flush=True)


def main() -> None:
    """Train on all processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("online", "lookahead"), default="online")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    device = start()
    torch.manual_seed(0)
    model = DistributedDataParallel(Model().to(device))
    optimizer = MetaAdamW(
        fine_grained_groups(model),
        lr=3e-3,
        modulator="attention",
        learning=_learning(options.mode),
    )
    train(model, optimizer, device, options.steps)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
