"""docs/scale.md from what benchmarks.scale has measured."""

from __future__ import annotations

from typing import Any

from benchmarks import scale_model as cost
from benchmarks.scale_network import WIDTHS, described
from benchmarks.tables import number, table

EVERY = 100
DEVICES = (1, 8, 64, 256, 1024)
# Decoder-only Transformers: 9 tensors a block, embedding, norm and head beside the blocks.
LARGE = {
    "1 B": cost.Model(1_000_000_000, 2 * 32_000 * 2048, 9 * 20 + 3),
    "7 B": cost.Model(7_000_000_000, 2 * 32_000 * 4096, 9 * 32 + 3),
    "70 B": cost.Model(70_000_000_000, 2 * 128_000 * 8192, 9 * 80 + 3),
}

Row = dict[str, Any]


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{number(count) if count % 1 or unit != 'B' else int(count)} {unit}"
        count /= 1000
    raise AssertionError


def where(row: Row) -> str:
    """A setting in words."""
    parameters = described(WIDTHS[row["parameters"]]).parameters
    return f"{parameters:,}, {row['devices']} × {'FSDP2' if row['sharded'] else 'DDP'}"


def select(results: Row, *, online: bool) -> list[Row]:
    """Rows of one mode."""
    return [row for row in results["rows"] if row["online"] == online]


def collectives(results: Row) -> str:
    """Counted bytes and the model's, of everything that is sent."""
    rows = []
    for row in select(results, online=False):
        if row["devices"] == 1:
            continue
        model = described(WIDTHS[row["parameters"]])
        expected = cost.meta_collectives(model, row["sharded"])
        training = cost.training_collectives(model, row["sharded"])
        counted, seen = row["meta_collectives"], row["training_collectives"]
        for kind, count in expected.items():
            ours, theirs = training.get(kind), seen.get(kind)
            rows.append(
                (
                    where(row),
                    kind,
                    *("–" if n is None else f"{n:,}" for n in (theirs, ours)),
                    f"{counted[kind]:,}",
                    f"{count:,}",
                )
            )
    header = ("parameters", "collective", "pass, counted", "model", "meta-update, counted", "model")
    return table(header, rows)


def step_reduces(results: Row) -> str:
    """The one all-reduce of a step."""
    rows = []
    for row in results["rows"]:
        if row["devices"] == 2 and row["parameters"] == "1e7":
            model = described(WIDTHS[row["parameters"]])
            expected = cost.step_all_reduce(model, row["sharded"], online=row["online"])
            counted = row["step_collectives"].get("all_reduce", 0)
            mode = "online" if row["online"] else "look-ahead"
            rows.append((f"{where(row)}, {mode}", f"{counted:,}", f"{expected:,}"))
    return table(("", "counted", "model"), rows)


def memory(results: Row) -> str:
    """Live tensors."""
    rows = []
    for row in select(results, online=False):
        model = described(WIDTHS[row["parameters"]])
        arguments = (model, row["devices"], row["sharded"])
        expected = cost.meta_memory(*arguments) + (row["pass_memory"] if row["sharded"] else 0)
        rows.append(
            (
                where(row),
                size(row["state_bytes"]),
                size(cost.state_bytes(*arguments)),
                size(row["pass_memory"]),
                size(row["meta_memory"]),
                size(expected),
                f"{row['meta_memory'] / expected:.2f}",
            )
        )
    header = (
        "parameters",
        "state",
        "model",
        "a pass takes",
        "a meta-update takes",
        "model",
        "ratio",
    )
    return table(header, rows)


def seconds(results: Row) -> str:
    """Times, predicted from one setting."""
    rows = []
    for row in select(results, online=False):
        reused = update_constant(results) * cost.held(
            described(WIDTHS[row["parameters"]]), row["devices"], row["sharded"]
        )
        expected = cost.meta_compute() * row["training_seconds"] + reused
        milliseconds = [1000 * row[k] for k in ("training_seconds", "meta_seconds")]
        rows.append(
            (
                where(row),
                *map(number, milliseconds),
                number(1000 * expected),
                f"{row['meta_seconds'] / expected:.2f}",
            )
        )
    return table(("parameters", "a pass, ms", "meta-update, ms", "model", "ratio"), rows)


def update_constant(results: Row) -> float:
    """Seconds that a meta-update spends on a parameter outside of its passes, from one setting."""
    (row,) = (
        row
        for row in select(results, online=False)
        if (row["parameters"], row["devices"], row["sharded"]) == ("1e7", 1, False)
    )
    rest = row["meta_seconds"] - cost.meta_compute() * row["training_seconds"]
    return float(rest / described(WIDTHS["1e7"]).parameters)


def extrapolated(sharded: bool) -> str:
    """One row for a model and a number of devices."""
    rows = []
    for name, model in LARGE.items():
        for devices in DEVICES:
            update = cost.on_the_wire(cost.meta_collectives(model, sharded), devices)
            training = cost.on_the_wire(cost.training_collectives(model, sharded), devices)
            rows.append(
                (
                    f"{name}, {devices:,}",
                    size(cost.state_bytes(model, devices, sharded)),
                    size(cost.meta_memory(model, devices, sharded)),
                    size(cost.step_traffic(model, devices, sharded, online=False)),
                    size(cost.step_traffic(model, devices, sharded, online=True)),
                    size(cost.step_all_reduce(model, sharded, online=True)),
                    size(training),
                    size(update),
                    f"{100 * update / EVERY / training:.1f} %" if training else "–",
                )
            )
            if not sharded and devices == DEVICES[1]:
                break  # under DDP no device is relieved by others
    header = (
        "parameters, devices",
        "state",
        "meta-update, beyond",
        "step moves, beyond AdamW",
        "online",
        "all-reduce of an online step",
        "sent by a training pass",
        "by a meta-update",
        f"more to send, every {EVERY}",
    )
    return table(header, rows)


def page(results: Row) -> str:
    """The whole page."""
    machine = results["environment"]
    share = f"{100 * cost.meta_compute() / EVERY:.1f} %"
    per_parameter = f"{1e9 * update_constant(results):.1f} ns"
    fitted = where({"parameters": "1e7", "devices": 1, "sharded": False})
    large, devices = LARGE["70 B"], 64
    return f"""# Scale

What MetaAdamW costs on 1 to 1,024 devices: a model of bytes, FLOPs, collectives and memory, checked
against what was counted and timed here, then carried to sizes that do not fit here. Generated by
`python -m benchmarks.scale`; the formulas are in `benchmarks/scale_model.py`.

Everything is in float32, 4 bytes a number. A device holds p parameters: all P under DDP, P / N
under FSDP2. T is the number of tensors, K the steps between two meta-updates.

## The model

{the_model(share)}

That is for the objective "combined" with products by central differences; with batches as large as
in training. Smaller ones cost less. In online mode there are no meta-updates.

## Checked here

{machine["processor"]}, {machine["cores"]} cores, torch {machine["torch"]}, gloo;
one thread a process; a stack of four linear blocks, 8 rows a process. Bytes are those of the whole
tensors in each collective, counted as they are called; memory is the sum of live tensors.

### Collectives, bytes

{collectives(results)}

### The all-reduce of a step, bytes

{step_reduces(results)}

### Memory

{memory(results)}

A gathered block is a quarter of this network, and its buffers are most of what a sharded pass
takes; among 32 blocks it is a 32nd part. The model counts them in full beside the copies, which
do not all exist at the moment when they do.

### Time

The batches are tiny, so that what a meta-update does to every parameter outside of its passes
shows: {per_parameter} for each that a process holds, taken from the setting {fitted}; the others
are predicted with it. Four processes share two cores.

{seconds(results)}

This part of the model is rough: a factor of two either way. It knows nothing of fixed costs, which
rule the smallest network, nor of caches and of memory fetched from the system for every fresh
gradient, which rule the largest. Do not plan with it; plan with bytes and passes.

## Extrapolated

Nothing below was run. The bytes follow from the formulas that were met above; that rings send
(N − 1) / N of a gathered and twice that of a reduced tensor is assumed. How long it takes depends
on the network; the all-reduce of a step is a few kilobytes and costs latency, not bandwidth.

### FSDP2

{extrapolated(True)}

### DDP

More devices change what is sent by less than an eighth, and nothing else.

{extrapolated(False)}

Sharded over {devices} devices, the step of a 70 B model moves
{size(cost.step_traffic(large, devices, True, online=False))} more on each device than AdamW's,
and a meta-update holds {size(cost.meta_memory(large, devices, True))} beside
{size(cost.state_bytes(large, devices, True))} of state. What does not shrink with N are the passes
of a meta-update, {share} of the compute at K = {EVERY}; they shrink with K.
"""


def the_model(share: str) -> str:
    """The formulas in words."""
    reads, online = cost.STATISTICS_BYTES, cost.ONLINE_BYTES
    numbers, more = cost.STATISTICS, cost.ONLINE_PRODUCTS
    compute = f"{cost.meta_compute():.2f} training steps, {share} at K = {EVERY}"
    rows = [
        ("state", "16 p bytes, as AdamW; the Transformer is a few kilobytes a layer"),
        ("a step moves in memory", f"{cost.ADAMW_BYTES} p bytes, as AdamW"),
        ("… statistics", f"{reads} p more, online {online} p; every k-th step: `update_every=k`"),
        ("a step computes beyond AdamW", f"{2 * numbers} p FLOPs, online {2 * more} p"),
        ("… beside training", "6 P for each token"),
        ("a step sends, DDP", "nothing"),
        ("… FSDP2", f"one all-reduce of {numbers} T numbers, online {more} T, whatever N"),
        (
            "a meta-update computes",
            f"{cost.PASSES} forward and backward passes, {cost.FORWARDS} forward pass: {compute}",
        ),
        ("… sends, DDP", f"{cost.PASSES} all-reduces of P numbers"),
        ("… sends, FSDP2", f"what the passes gather and scatter, and {cost.PRODUCTS} T numbers"),
        ("… holds, DDP", f"{4 * cost.COPIES['ddp']} p bytes beyond the state"),
        ("… holds, FSDP2", f"{4 * cost.COPIES['sharded']} p bytes and what a pass takes"),
    ]
    lines = ["|  |  |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)
