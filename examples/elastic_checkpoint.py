"""Sharded training that survives the loss of any of its processes.

    pip install . ./bench
    torchrun --standalone --nproc-per-node 2 examples/elastic_checkpoint.py runs/elastic

Kill one of the processes, or all, and give the same command again: it goes on from the last
checkpoint, and comes to the same bits. Another number of processes goes on as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from metaadamw import Hypergradient, MetaAdamW, fine_grained_groups
from metaadamw_bench.tasks import get_task

BATCH = 16


def last_checkpoint(run: Path) -> Path | None:
    """The newest; every directory of this name is complete."""
    return max(run.glob("step-*"), default=None)


def save(run: Path, step: int, model: nn.Module, optimizer: MetaAdamW) -> None:
    """Write a checkpoint that is there as a whole or not at all."""
    unfinished = run / "unfinished"
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)  # of processes that were killed
    dist.barrier()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "step": step}
    dcp.save(state, checkpoint_id=unfinished)
    if dist.get_rank() == 0:
        unfinished.rename(run / f"step-{step:06d}")


def load(checkpoint: Path, model: nn.Module, optimizer: MetaAdamW) -> int:
    """Take over a checkpoint, written by any number of processes; returns its step."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "step": 0}
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    return int(state["step"])


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of the checkpoints")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda" if cuda else "cpu")
    print(f"rank {rank} is process {os.getpid()}", flush=True)

    task = get_task("pydoc").prepare()  # Python's own documentation, character by character
    torch.manual_seed(0)
    model = task.build_model().to(device)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    groups = fine_grained_groups(model)
    optimizer = MetaAdamW(groups, lr=task.lr, modulator="attention", learning=Hypergradient())

    start = 0
    if checkpoint := last_checkpoint(options.run):
        start = load(checkpoint, model, optimizer)
        print(f"rank {rank} goes on from step {start}", flush=True)

    for step in range(start, options.steps):
        # Batches and dropout follow from the step, so there is nothing about them to save.
        torch.manual_seed(step)
        rows = torch.randint(len(task.splits.train), (BATCH,))[rank::size]
        torch.manual_seed(step * size + rank)
        inputs, targets = (part.to(device) for part in task.splits.train[rows])
        loss = task.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            save(options.run, step + 1, model, optimizer)
            if rank == 0:
                print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    if rank == 0:
        for name, value in optimizer.metrics().items():
            print(f"{name:40} {float(value):8.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
