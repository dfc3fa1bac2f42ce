"""The model of ``ddp.py`` with every weight sharded (``fully_shard``), on Python's documentation.

    torchrun --nproc-per-node 2 examples/fsdp.py
    torchrun --nproc-per-node 2 examples/fsdp.py --mode lookahead

On GPUs with NCCL, else on CPU cores with gloo.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from ddp import Model, start, train
from torch.distributed.fsdp import fully_shard

from metaadamw import Hypergradient, LookAhead, MetaAdamW, fine_grained_groups


def _learning(mode: str) -> LookAhead | Hypergradient:
    """Look-ahead calls for meta-updates; "online" learns inside ``step()``."""
    if mode == "lookahead":
        return LookAhead(every=10, lr=1e-2, optimizer="adam")
    return Hypergradient(lr=1e-2)


def main() -> None:
    """Train on all processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("online", "lookahead"), default="online")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    device = start()
    torch.manual_seed(0)
    model = Model().to(device)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = MetaAdamW(  # after fully_shard: its parameters are new ones
        fine_grained_groups(model),
        lr=3e-3,
        modulator="attention",
        learning=_learning(options.mode),
    )
    train(model, optimizer, device, options.steps)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
