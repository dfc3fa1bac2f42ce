"""Processes that are started once and run one function after another, each as one rank."""

from __future__ import annotations

import io
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 240.0
"""Seconds after which a function that has not come back is taken to hang."""


class Processes:
    """``size`` ranks of one process group: NCCL with a GPU each, else gloo on the CPU."""

    def __init__(self, size: int) -> None:
        # Forked from a process that has imported torch and touched no device: a start costs little.
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["tests.distributed.cases"])
        self.size = size
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, port), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function(*args)`` returns on each rank; an exception is raised here.

        Raises:
            TimeoutError: a rank hangs; none can be used again.
            RuntimeError: with the traceback of the first rank that raised.
        """
        results = self.outcomes(function, *args)
        for rank, result in enumerate(results):
            if isinstance(result, Raised):
                raise RuntimeError(f"rank {rank} of {self.size}:\n{result.trace}")
        return results

    def check(self, function: Callable[..., None], *args: Any) -> None:
        """Run a function that makes assertions of its own on each rank."""
        self.run(function, *args)

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """As ``run``, with exceptions as ``Raised``."""
        for pipe in self.pipes:
            pipe.send_bytes(_packed((function, args)))
        results = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(PATIENCE):
                self.close()
                raise TimeoutError(f"rank {rank} of {self.size} hangs in {function.__name__}")
            results.append(_unpacked(pipe.recv_bytes()))
        return results

    def alive(self) -> bool:
        """Whether every process still waits for work."""
        return all(process.is_alive() for process in self.processes)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


class Raised:
    """An exception of a rank, as text."""

    def __init__(self, error: BaseException) -> None:
        self.kind, self.message = type(error).__name__, str(error)
        self.trace = "".join(traceback.format_exception(error))


def device() -> torch.device:
    """Where this rank computes."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", dist.get_rank())
    return torch.device("cpu")


def _serve(pipe: Any, rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nccl = torch.cuda.is_available() and torch.cuda.device_count() >= size
    if nccl:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if nccl else "gloo", rank=rank, world_size=size)
    while True:
        try:
            function, args = _unpacked(pipe.recv_bytes())
        except EOFError:
            return
        try:
            result = function(*args)
        except Exception as error:
            result = Raised(error)
        pipe.send_bytes(_packed(result))


def _packed(value: Any) -> bytes:
    # By value: tensors sent as such would share memory with a process that may be gone.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(value: bytes) -> Any:
    return torch.load(io.BytesIO(value), weights_only=False, map_location="cpu")
