"""What ``optimizer.step()`` costs: on a model, on 100 M parameters, and how it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.contestants import BASELINE, Contestant, for_growth, for_model
from benchmarks.measure import bandwidth, side_by_side
from benchmarks.models import (
    ParamGroups,
    all_params,
    bare_groups,
    mini_gpt,
    model_groups,
    twins,
)
from metaadamw import MetaAdamW
from metaadamw.learning.hypergradient import ONLINE_PRODUCTS
from metaadamw.statistics.features import tensor_columns
from metaadamw.update.directions import LastDirections

Section = dict[str, Any]


def measure_steps(
    groups: ParamGroups, contestants: Sequence[Contestant], *, rounds: int, seconds: float
) -> list[Section]:
    """A row for each contestant, which has parameters of its own and shares the gradients."""
    optimizers = {c.name: c.build(twins(groups)) for c in contestants}
    timings = side_by_side(
        {name: optimizer.step for name, optimizer in optimizers.items()},
        rounds=rounds,
        periods={c.name: c.period for c in contestants},
        seconds=seconds,
    )
    return [
        {
            "name": c.name,
            **asdict(timings[c.name]),
            "ratio": timings[c.name].median / timings[BASELINE].median,
            "bytes_per_parameter": c.bytes_per_parameter,
        }
        for c in contestants
    ]


def sizes(groups: ParamGroups) -> Section:
    """How many of what."""
    params = all_params(groups)
    return {
        "parameters": sum(p.numel() for p in params),
        "tensors": len(params),
        "groups": len(groups),
    }


def on_model(quick: bool) -> Section:
    """Every contestant on MiniGPT."""
    groups = model_groups(mini_gpt(quick))
    rows = measure_steps(groups, for_model(), rounds=8 if quick else 160, seconds=30)
    return {
        **sizes(groups),
        "rows": rows,
        "parts": [parts(groups, n, quick) for n in (8, 128)],
        "online": online_parts(groups, quick),
    }


def parts(groups: ParamGroups, encoder_layers: int, quick: bool) -> Section:
    """Where the time of a step goes: statistics and encoder; the rest is the update."""
    (contestant,) = (c for c in for_model() if c.name == f"MetaAdamW, {encoder_layers} layers")
    optimizer = contestant.build(twins(groups))
    assert isinstance(optimizer, MetaAdamW)
    optimizer.step()
    features = optimizer.group_features()
    timings = side_by_side(
        {
            "step": optimizer.step,
            "statistics": optimizer.group_features,
            "encoder": torch.no_grad()(lambda: optimizer.modulator(features)),
        },
        rounds=4 if quick else 60,
    )
    dim = optimizer.modulator.dim
    return {
        "layers": encoder_layers,
        "flops": encoder_flops(
            len(groups), dim, optimizer.modulator.options.hidden_dim, encoder_layers
        ),
        **{name: asdict(timing) for name, timing in timings.items()},
    }


def online_parts(groups: ParamGroups, quick: bool) -> Section:
    """The same of an online step with two layers: what it reads, and what it does with it."""
    (contestant,) = (c for c in for_model() if c.name == "MetaAdamW online, 2 layers")
    optimizer = contestant.build(twins(groups))
    assert isinstance(optimizer, MetaAdamW)
    for _ in range(2):
        optimizer.step()
    learner = optimizer._controller
    tokens, last = optimizer._tokens(), learner.learning.last
    assert last is not None
    columns = {
        **tensor_columns(tokens),
        "direction": LastDirections(tokens, last, eps_inside_sqrt=False),
    }
    pairs = list(dict.fromkeys([*learner.products, *ONLINE_PRODUCTS]))
    signals = torch.randn(2, len(groups)).unbind(0)
    timings = side_by_side(
        {
            "step": optimizer.step,
            "reading": lambda: learner.layout.products(columns, pairs),
            "learning": lambda: learner.learning.move(
                learner.learning.optimizer, last.features, *signals
            ),
        },
        rounds=4 if quick else 60,
    )
    return {name: asdict(timing) for name, timing in timings.items()}


def encoder_flops(groups: int, dim: int, hidden: int, encoder_layers: int) -> int:
    """Multiplications and additions of the encoder's matrix products."""
    per_layer = 2 * groups * (4 * dim * dim + 2 * dim * hidden) + 4 * groups * groups * dim
    return encoder_layers * per_layer


def growth(
    name: str,
    values: Iterable[int],
    make: Callable[[int], ParamGroups],
    contestants: Callable[[int], Sequence[Contestant]],
    *,
    rounds: int,
    seconds: float,
) -> Section:
    """The same rows for several values of one quantity."""
    points = []
    for value in values:
        groups = make(value)
        rows = measure_steps(groups, contestants(value), rounds=rounds, seconds=seconds)
        points.append({"value": value, **sizes(groups), "rows": rows})
    return {"varied": name, "points": points}


def all_growth(quick: bool, advance: Callable[[], None]) -> list[Section]:
    """Parameters, tensors, groups, encoder layers, one at a time."""
    rounds, seconds = (8, 1.0) if quick else (48, 12.0)
    base = 30_000 if quick else 3_000_000
    result = []

    def add(
        name: str,
        values: Sequence[int],
        make: Callable[[int], ParamGroups],
        contestants: Callable[[int], Sequence[Contestant]] = lambda _: for_growth(),
    ) -> None:
        values = values[:2] if quick else values
        result.append(growth(name, values, make, contestants, rounds=rounds, seconds=seconds))
        advance()

    add("parameters", (10**5, 10**6, 10**7, 10**8), lambda n: bare_groups(n, 150))
    add("tensors", (10, 30, 100, 300, 1000, 2000), lambda n: bare_groups(base, n, min(n, 12)))
    add("groups", (1, 4, 15, 30, 60), lambda n: bare_groups(base, 120, n))
    add("layers", (1, 2, 8, 32, 128), lambda _: bare_groups(base, 30), for_growth)
    return result


def run(quick: bool, advance: Callable[[], None]) -> Section:
    """All of it."""
    result: Section = {"bandwidth": bandwidth(numel=1 << 20 if quick else 1 << 25)}
    advance()
    result["model"] = on_model(quick)
    advance()
    result["growth"] = all_growth(quick, advance)
    return result


UNITS = 6
"""Calls of ``advance``."""
