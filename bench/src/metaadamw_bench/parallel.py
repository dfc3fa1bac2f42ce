"""Where a run computes: its device and precision, alone or as one of torchrun's processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaadamw_bench.tasks import Batch

__all__ = ["Workplace", "check_device", "is_main_process", "processes"]


def processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def check_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r} is none of cpu, cuda, cuda:0, …, mps") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ValueError(f"device: {name!r} is not available here (see metaadamw doctor)")
    return device


@dataclass(frozen=True)
class Workplace:
    """A device, a precision, and a rank among processes that share every batch.

    Attributes:
        device: where the model is.
        bf16: whether forward passes run under bfloat16 autocast.
        rank: number of this process; rank 0 evaluates and writes.
        processes: how many there are.
    """

    device: torch.device
    bf16: bool = False
    rank: int = 0
    processes: int = 1

    @classmethod
    def enter(cls, device_name: str, *, bf16: bool, threads: int) -> Workplace:
        """Set this process up; with torchrun, join the others."""
        torch.set_num_threads(threads)
        device = check_device(device_name)
        if device.type == "cuda":
            # Without these some kernels add in another order every time.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        if processes() == 1:
            return cls(device, bf16)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(device, bf16, torch.distributed.get_rank(), processes())

    @property
    def clock(self) -> Callable[[], float]:
        """Processor time of a lone process on a CPU, which others beside it do not lengthen."""
        lone = self.processes == 1 and self.device.type == "cpu"
        return time.process_time if lone else time.perf_counter

    @property
    def writes(self) -> bool:
        """Whether this process evaluates and writes."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model to train: gradients are averaged over the processes."""
        return model if self.processes == 1 else DistributedDataParallel(model)

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """This process's part of a batch, and its weight in the mean over processes.

        Parts that differ in size keep the weight that they have in the whole batch. A process for
        which nothing is left takes the first example with weight zero, to stay in step.
        """
        if self.processes == 1:
            return batch, 1.0
        examples = len(batch[0])
        rows = torch.arange(examples)[self.rank :: self.processes]
        weight = len(rows) * self.processes / examples
        rows = rows if len(rows) else torch.zeros(1, dtype=torch.long)
        return tuple(tensor[rows] for tensor in batch), weight

    def mean(self, value: Tensor) -> float:
        """The mean of a number over processes."""
        if self.processes > 1:
            value = value.detach().clone()
            torch.distributed.all_reduce(value)
            value /= self.processes
        return value.item()

    def from_rank_zero(self, compute: Callable[[], list[float]], length: int) -> list[float]:
        """What rank 0 computes, known to every process."""
        if self.processes == 1:
            return compute()
        numbers = torch.zeros(length, dtype=torch.float64, device=self.device)
        if self.writes:
            numbers = torch.tensor(compute(), dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(numbers, 0)
        return numbers.tolist()

    def barrier(self) -> None:
        """Wait for every process."""
        if self.processes > 1:
            torch.distributed.barrier()

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def wait(self) -> None:
        """Wait for the device to finish, so that a clock reads what work took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
