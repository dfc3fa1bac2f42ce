"""Check the cost model against what is counted and timed here, and write docs/scale.md.

    python -m benchmarks.scale              # measure, write benchmarks/results/scale.json, the page
    python -m benchmarks.scale --page-only

Bytes of collectives and of live tensors are counted as they happen, in real processes (gloo).
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks.measure import environment
from benchmarks.scale_network import WIDTHS, network
from benchmarks.scale_page import page
from metaadamw import Hypergradient, LookAhead, MetaAdamW, fine_grained_groups

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "scale.json", ROOT / "docs" / "scale.md"

BATCH = 8

SIZES = {1: ("1e6", "1e7", "1e8"), 2: ("1e6", "1e7", "1e8"), 4: ("1e6", "1e7")}
REPEATS = 5

NAMES = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
}
OF_OBJECTS = ("allgather_", "broadcast_")


class Counted(TorchDispatchMode):
    """Bytes of whole tensors in collectives, and the most bytes of live tensors."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.collectives: dict[str, int] = {}
        self.live = WeakIdKeyDictionary()
        for tensor in known:
            self._see(tensor)
        self.start = self.peak = self._bytes()

    def _see(self, tensor: Tensor) -> None:
        self.live[tensor.untyped_storage()] = True

    def _bytes(self) -> int:
        return sum(storage.nbytes() for storage in list(self.live))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # its local tensors come by
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            name = str(func).split(".")[1]
            if name not in OF_OBJECTS:
                tensors = [t for t in tree_leaves(args[:2]) if isinstance(t, Tensor)]
                whole = max(t.nbytes for t in tensors)
                kind = NAMES[name]
                self.collectives[kind] = self.collectives.get(kind, 0) + whole
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                self._see(tensor)
        self.peak = max(self.peak, self._bytes())
        return result


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.sin()).square().mean()


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def resting(model: nn.Module, optimizer: MetaAdamW) -> list[Tensor]:
    """Parameters, gradients, moments of this process."""
    tensors = [t for s in optimizer.state.values() for t in s.values()]
    tensors += [t for p in model.parameters() for t in (p, p.grad) if t is not None]
    return [local(t) for t in tensors]


def timed(call: Callable[[], object]) -> float:
    dist.barrier()
    start = time.perf_counter()
    call()
    dist.barrier()
    return time.perf_counter() - start


def measure(width: int, sharded: bool, online: bool) -> dict[str, Any]:
    """One setting on this process."""
    model: nn.Module = network(width)
    if sharded:
        for block in model[1:-1]:
            fully_shard(block)
        fully_shard(model)
    else:
        model = DistributedDataParallel(model)
    meta = Hypergradient() if online else LookAhead(every=1, hvp="finite_difference")
    optimizer = MetaAdamW(
        fine_grained_groups(model), lr=1e-4, modulator="attention", learning=meta, foreach=False
    )
    batches = [torch.randn(BATCH, 16) for _ in range(3)]

    def train() -> None:
        loss_fn(model, batches[0]).backward()

    def update() -> None:
        assert optimizer.update_attention(model, loss_fn, *batches).applied

    train()
    optimizer.step()
    with Counted(*resting(model, optimizer)) as counted:
        train()
    taken = counted.peak - counted.start
    result: dict[str, Any] = {"training_collectives": counted.collectives, "pass_memory": taken}
    with Counted() as counted:
        optimizer.step()
    result["step_collectives"] = counted.collectives
    result["step_seconds"] = statistics.median(timed(optimizer.step) for _ in range(REPEATS))
    if online:
        return result
    with Counted(*resting(model, optimizer)) as counted:
        update()
    result["meta_collectives"] = counted.collectives
    result["state_bytes"], result["meta_memory"] = counted.start, counted.peak - counted.start
    result["training_seconds"] = statistics.median(timed(train) for _ in range(REPEATS))
    result["meta_seconds"] = statistics.median(timed(update) for _ in range(3))
    return result


def work(rank: int, size: int, port: int, path: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    rows = []
    for name in SIZES[size]:
        for sharded in (False, True):
            for online in (False, True):
                row = {"parameters": name, "devices": size, "sharded": sharded, "online": online}
                rows.append({**row, **measure(WIDTHS[name], sharded, online)})
    if rank == 0:
        Path(path).write_text(json.dumps(rows))
    dist.destroy_process_group()


def measure_all(scratch: Path) -> dict[str, Any]:
    """Every number of processes, one after another."""
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(work, (size, port, str(scratch)), nprocs=size)
        rows += json.loads(scratch.read_text())
        scratch.unlink()
    return {"environment": environment(), "rows": rows}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if not options.page_only:
        results = measure_all(options.results.with_suffix(".part"))
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    options.page.write_text(page(json.loads(options.results.read_text())), encoding="utf-8")
    print(options.page)


if __name__ == "__main__":
    main()
