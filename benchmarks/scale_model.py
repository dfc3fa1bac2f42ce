"""What MetaAdamW costs on N devices, as formulas; no measurement in here.

Everything is counted in float32, 4 bytes a number: parameters, gradients, both moments. p is what a
device holds: all P parameters under DDP, P / N where they are sharded.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = 4

ADAMW_BYTES, STATISTICS_BYTES, ONLINE_BYTES = 28, 8, 16
"""Memory traffic of a step for a parameter: AdamW, and what statistics and the signal add."""

STATISTICS, ONLINE_PRODUCTS = 5, 9
"""Inner products of a step for a tensor, in mode "lookahead" and "online"."""

PASSES, FORWARDS = 5, 1
"""Of a meta-update, objective "combined", differences: with backward pass, and without."""

PRODUCTS = 14
"""Numbers for a tensor that the processes of a sharded model add up in a meta-update."""

COPIES = {"ddp": 4, "sharded": 3}
"""Of the parameters, held in a meta-update beyond the state: θ, the gradient on B1 and the one of a
pass; under DDP the latter twice, before and after it is averaged."""


@dataclass(frozen=True)
class Model:
    """What of a model matters.

    Attributes:
        parameters: P.
        root: those outside of the sharded blocks, which stay gathered between forward and backward.
        tensors: T.
    """

    parameters: int
    root: int
    tensors: int


def state_bytes(model: Model, devices: int, sharded: bool) -> float:
    """Parameters, gradients, moments."""
    return 4 * FLOAT * held(model, devices, sharded)


def held(model: Model, devices: int, sharded: bool) -> float:
    """Parameters on one device."""
    return model.parameters / devices if sharded else model.parameters


def meta_memory(model: Model, devices: int, sharded: bool) -> float:
    """What a meta-update holds beyond the state and beyond what a pass itself takes."""
    copies = COPIES["sharded" if sharded else "ddp"]
    return copies * FLOAT * held(model, devices, sharded)


def step_traffic(model: Model, devices: int, sharded: bool, *, online: bool) -> float:
    """Bytes that a step moves in memory beyond AdamW's."""
    return (ONLINE_BYTES if online else STATISTICS_BYTES) * held(model, devices, sharded)


def step_all_reduce(model: Model, sharded: bool, *, online: bool) -> int:
    """Bytes of the one all-reduce of a step."""
    return FLOAT * (ONLINE_PRODUCTS if online else STATISTICS) * model.tensors if sharded else 0


def training_collectives(model: Model, sharded: bool) -> dict[str, int]:
    """Bytes of the whole tensors in the collectives of a forward and backward pass."""
    size = FLOAT * model.parameters
    if not sharded:
        return {"all_reduce": size}
    return {"all_gather": 2 * size - FLOAT * model.root, "reduce_scatter": size}


def meta_collectives(model: Model, sharded: bool) -> dict[str, int]:
    """The same of a meta-update."""
    result = {k: PASSES * v for k, v in training_collectives(model, sharded).items()}
    if sharded:
        result["all_gather"] += FORWARDS * FLOAT * model.parameters
        result["all_reduce"] = FLOAT * PRODUCTS * model.tensors
    return result


def on_the_wire(collectives: dict[str, int], devices: int) -> float:
    """Bytes that a device sends in rings."""
    share = (devices - 1) / devices
    return share * sum(2 * v if k == "all_reduce" else v for k, v in collectives.items())


def meta_compute() -> float:
    """A meta-update in training steps; a backward pass costs two forward passes."""
    return PASSES + FORWARDS / 3
