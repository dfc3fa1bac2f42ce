"""Peak memory of training and of a meta-update, each measurement in a process of its own.

    python -m benchmarks.memory wikitext2 auto

The peak is the largest resident size that Linux has seen, less what Python and torch take before
the model is made. Freed memory is given back at once, so that it is not counted twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.authors_port import AuthorsMetaAdamW
from benchmarks.models import Batch, all_params, square, wide_model
from benchmarks.tasks import TASKS
from metaadamw import Attention, LookAhead, MetaAdamW, fine_grained_groups, paper_preset

WIDE = "wide"
"""50 M parameters and a batch of 4: parameters dominate."""

MODES = ("adamw", "authors", "auto", "exact", "finite_difference", "forward_difference")
REUSE = "+training_gradient"
"""Suffix of a mode: the training gradient serves as B1."""

UNITS = len(TASKS) + 1


def status(key: str) -> int:
    """A number of bytes from ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def reset_peak() -> None:
    """Let ``VmHWM`` start again from the present size."""
    Path("/proc/self/clear_refs").write_text("5")


def setting(name: str, quick: bool) -> tuple[nn.Module, list[Batch], Callable[..., Any], Any, Any]:
    """Model, four batches, loss, modulator and meta configuration."""
    torch.manual_seed(0)
    if name == WIDE:
        dim = 256 if quick else 2048
        batches: list[Batch] = [(torch.randn(4, dim),) for _ in range(4)]
        return wide_model(dim), batches, square, Attention(init="xavier"), LookAhead()
    task = TASKS[name]
    batches = [task.batch(2 if quick else task.batch_size) for _ in range(4)]
    return task.build(), batches, task.loss, *paper_preset(name)


def measure(name: str, mode: str, quick: bool) -> dict[str, int]:
    """Bytes of a copy of the parameters, and peaks of training and of a meta-update."""
    _wake_up()
    before = status("VmRSS")
    model, batches, loss_fn, modulator, meta = setting(name, quick)
    mode, reuse = mode.removesuffix(REUSE), mode.endswith(REUSE)
    groups = fine_grained_groups(model, kinds="paper")
    optimizer: Any
    if mode == "adamw":
        optimizer = torch.optim.AdamW(all_params(groups), fused=True)
    elif mode == "authors":
        optimizer = AuthorsMetaAdamW(groups, modulator, meta)
    else:
        meta = replace(meta, hvp=mode)
        optimizer = MetaAdamW(groups, modulator=modulator, learning=meta, fused=True)
    reset_peak()
    for _ in range(2):  # in the first there are no moments yet
        optimizer.zero_grad()
        loss_fn(model, batches[0]).backward()
        optimizer.step()
    result = {
        "parameters": sum(4 * p.numel() for p in model.parameters()),
        "training": status("VmHWM") - before,
    }
    if mode == "adamw":
        return result
    reset_peak()
    if reuse:
        optimizer.update_attention(model, loss_fn, None, *batches[1:3], training_loss=1.0)
    elif mode == "authors":
        optimizer.update_attention(model, loss_fn, *batches)
    else:
        assert optimizer.update_attention(model, loss_fn, *batches[:3]).applied
    return {**result, "meta_update": status("VmHWM") - before}


def _wake_up() -> None:
    """Load what torch and the library load at first use, before memory is counted."""
    layer = nn.TransformerEncoderLayer(8, 1, 8, batch_first=True)
    batch = (torch.randn(64, 2, 8),)
    optimizer = MetaAdamW(layer.parameters(), fused=True, learning="lookahead")
    square(layer, batch).backward()
    optimizer.step()
    optimizer.update_attention(layer, square, batch, batch, batch)


def in_own_process(name: str, mode: str, quick: bool) -> dict[str, Any]:
    """``measure`` in a fresh process, or why it cannot be had."""
    command = [sys.executable, "-m", "benchmarks.memory", name, mode, *["--quick"] * quick]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(1 << 17),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(done.stdout)


def run(quick: bool, advance: Callable[[], None]) -> dict[str, Any]:
    """Tasks with the paper's presets, then the model whose parameters dominate."""
    result: dict[str, Any] = {}
    modes = ("auto", "finite_difference", "authors")
    plans: dict[str, tuple[str, ...]] = dict.fromkeys(TASKS, modes)
    plans["cifar10"] = modes[:2]  # the authors' way takes a minute and says nothing new
    reused = tuple(f"{mode}{REUSE}" for mode in MODES if mode not in ("adamw", "authors", "auto"))
    plans[WIDE] = tuple(mode for mode in (*MODES, *reused) if mode != "auto")
    if quick:
        plans = {"etth1": ("auto",), WIDE: ("finite_difference",)}
    for name, modes in plans.items():
        result[name] = {mode: in_own_process(name, mode, quick) for mode in modes}
        advance()
    return result


if __name__ == "__main__":
    name, mode, *flags = sys.argv[1:]
    print(json.dumps(measure(name, mode, "--quick" in flags)))
