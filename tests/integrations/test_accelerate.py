"""Accelerate needs no code of ours: its wrappers around this optimizer, exactly resumed."""

from __future__ import annotations

import json
import runpy
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch.amp import GradScaler

from metaadamw import Hypergradient, LookAhead
from tests.integrations.processes import EXAMPLES_DIRECTORY, run_program, run_two
from tests.training import assert_same, batch, full_snapshot, loss_fn, make, meta_update, results

EXAMPLE = str(EXAMPLES_DIRECTORY / "accelerate_loop.py")
ONLINE = {"learning": Hypergradient(lr=1e-2)}
LOOKAHEAD = {"learning": LookAhead(every=2, lr=1e-2, optimizer="adam")}
modes = pytest.mark.parametrize("options", [ONLINE, LOOKAHEAD], ids=["online", "lookahead"])


@pytest.fixture(autouse=True)
def no_state_of_other_tests() -> Iterator[None]:
    """Accelerate keeps what it is in the process: the device, the accumulation."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def plain_loop(options: dict[str, Any]) -> Any:
    """Six steps, each of two accumulated batches."""
    model, optimizer = make(**options)
    torch.manual_seed(0)
    for index in range(6):
        optimizer.zero_grad()
        for half in (2 * index, 2 * index + 1):
            (loss_fn(model, batch(half)) / 2).backward()
        optimizer.step()
        if optimizer.meta_update_due:
            meta_update(model, optimizer, index)
    return results(model, optimizer)


@modes
def test_the_same_as_without(options):
    """``prepare``, ``accumulate`` and ``backward`` change no bit, and the wrapper hides nothing."""
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model, optimizer = make(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # prepare() loads the state dict into the optimizer
        prepared_model, prepared = accelerator.prepare(model, optimizer)
    torch.manual_seed(0)
    assert prepared.optimizer is optimizer
    for index in range(12):
        with accelerator.accumulate(prepared_model):
            accelerator.backward(loss_fn(prepared_model, batch(index)))
            prepared.step()
            prepared.zero_grad()
        assert optimizer.steps == (index + 1) // 2
        if optimizer.meta_update_due:
            assert accelerator.sync_gradients
            meta_update(prepared_model, optimizer, index // 2)
    assert_same(results(model, optimizer), plain_loop(options))


@modes
def test_skipped_steps(options):
    """The scale is too large at first: the step is skipped, and nothing has moved."""
    Accelerator(cpu=True)
    model, optimizer = make(**options)
    scaler = GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    prepared = AcceleratedOptimizer(optimizer, scaler=scaler)
    skipped = 0
    for index in range(40):
        before = full_snapshot(model, optimizer)
        loss = loss_fn(model, batch(index))
        scaler.scale(loss).backward()
        prepared.step()
        prepared.zero_grad()
        if prepared.step_was_skipped:
            skipped += 1
            assert not optimizer.meta_update_due
            after = full_snapshot(model, optimizer)
            for key in ("params", "optimizer", "learned"):
                assert_same(after[key], before[key], key)
        elif optimizer.meta_update_due:
            assert meta_update(model, optimizer, index).applied
        if optimizer.steps == 6:
            break
    assert skipped > 0
    assert optimizer.steps == 6
    counts = optimizer.metrics()
    assert int(counts["meta/applied"]) == (5 if options is ONLINE else 3)
    assert int(counts["meta/skipped"]) == 0


def test_killed_and_started_again(tmp_path, monkeypatch):
    """Killed after 70 steps, in the second epoch; the same command goes on from step 66."""

    def arguments(name: str) -> list[str]:
        return [EXAMPLE, str(tmp_path / name), "--steps", "80"]

    report = tmp_path / "report"
    assert run_program(report, *arguments("killed"), kill_at=70) == -signal.SIGKILL
    assert (tmp_path / "killed" / "latest").read_text() == "step_66"
    assert run_program(report, *arguments("killed")) == 0
    monkeypatch.setattr(sys, "argv", arguments("whole"))
    runpy.run_path(EXAMPLE, run_name="__main__")
    losses = json.loads((tmp_path / "whole" / "losses_0.json").read_text())
    assert json.loads((tmp_path / "killed" / "losses_66.json").read_text()) == losses[66:]
    assert len(losses) == 80
    assert losses[-1] < losses[0] - 0.5
    assert_same(*(saved(tmp_path / run / "final") for run in ("killed", "whole")))


def saved(checkpoint: Path) -> Any:
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    return load_file(checkpoint / "model.safetensors"), optimizer


def test_two_processes(tmp_path):
    """``accelerate launch``: the same on both ranks, and the same again from a checkpoint."""
    launch = (sys.executable, "-m", "accelerate.commands.launch")
    launcher = (*launch, "--multi_gpu", "--num_processes", "2", "--module")
    program = (EXAMPLE, str(tmp_path / "run"), "--steps", "12")
    whole = run_two(launcher, tmp_path / "whole", *program)
    assert int(whole["learned"]["applied"]) == 2
    (tmp_path / "run" / "latest").write_text("step_6")
    assert_same(run_two(launcher, tmp_path / "resumed", *program), whole)
    assert (tmp_path / "run" / "losses_6.json").exists()
