"""Tensors spread over processes (DTensor): the local part of each, and sums over all parts.

Everything elementwise is done on local shards. What is summed over a tensor is summed over its
shards, then over the processes, all sums of a step in one small all-reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Shards", "is_distributed", "local", "local_gradient"]


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, found out without importing ``torch.distributed.tensor``.

    That import takes a second, and who has no DTensor does not need it.
    """
    return type(tensor) not in (nn.Parameter, Tensor) and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, sharing its memory; any other tensor as it is."""
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():  # otherwise the shard would be a node in a graph
        return cast(Tensor, cast(Any, tensor).to_local())


def local_gradient(grad: Tensor, param: Tensor) -> Tensor:
    """The shard of a gradient that belongs to this process's shard of the parameter.

    A gradient may lie otherwise than its parameter: tensor parallelism can leave partial sums.
    """
    if is_distributed(grad) and is_distributed(param):
        wanted = cast(Any, param).placements
        if cast(Any, grad).placements != wanted:
            with torch.no_grad():
                grad = cast(Any, grad).redistribute(placements=wanted)
    return local(grad)


class Shards:
    """How the parameters lie on the processes.

    Attributes:
        shares: for each parameter, what a local sum counts in the sum over all processes: 1 if they
            hold shards of it, 1 / n if n of them hold the same.
        split: whether any parameter is sharded at all.

    Args:
        params: the parameters, at least one of them a DTensor.

    Raises:
        ValueError: no process mesh holds all of them, or one holds partial sums.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        meshes = {id(m): m for p in params if is_distributed(p) for m in [cast(Any, p).device_mesh]}
        self.mesh = max(meshes.values(), key=lambda mesh: cast(int, mesh.size()))
        ranks = set(self.mesh.mesh.flatten().tolist())
        for mesh in meshes.values():
            if not set(mesh.mesh.flatten().tolist()) <= ranks:
                raise ValueError(
                    f"params must lie on one device mesh and slices of it, got {self.mesh} and "
                    f"{mesh}"
                )
        pieces = [_pieces(p) for p in params]
        self.shares = [n / self.mesh.size() for n in pieces]
        self.split = any(n > 1 for n in pieces)

    def groups(self) -> list[Any]:
        """Process groups; a sum over each in turn is one over all processes of the mesh.

        Looked up when needed: they can be neither copied nor pickled.
        """
        if self.mesh.size() == dist.get_world_size():
            return [dist.group.WORLD]
        return list(self.mesh.get_all_groups())

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        # With offloaded parameters the values are on the CPU, the collectives are not.
        result = values.to(self.mesh.device_type, copy=True).contiguous()
        for group in self.groups():
            dist.all_reduce(result, group=group)
        return result.to(values.device)


def _pieces(param: Tensor) -> int:
    """Into how many shards a tensor is split."""
    if not is_distributed(param):
        return 1
    mesh, result = cast(Any, param).device_mesh, 1
    for dim, placement in enumerate(cast(Any, param).placements):
        if placement.is_partial():
            raise ValueError(
                f"params must be sharded or replicated, got one of shape {tuple(param.shape)} with "
                f"placements {cast(Any, param).placements}"
            )
        if not placement.is_replicate():
            result *= cast(int, mesh.size(dim))
    return result
