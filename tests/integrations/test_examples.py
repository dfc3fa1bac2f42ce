"""The examples of mixed precision, compiled models and loggers: they run, and do what they say."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integrations.processes import EXAMPLES_DIRECTORY


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> dict[str, Any]:
    """The example as a program in this process; its names at the end."""
    program = str(EXAMPLES_DIRECTORY / name)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    return runpy.run_path(program, run_name="__main__")


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_mixed_precision(monkeypatch, capsys, mode):
    """The loss falls from 5.06, and alike in all three; without master weights 0.003 less."""
    names = run(monkeypatch, "mixed_precision.py", "--mode", mode, "--steps", "100")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["float32", "autocast", "bfloat16"]
    losses = [float(line[3]) for line in lines]
    assert max(losses) < 3.0
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-3)
    assert len(set(losses)) == 3  # three precisions, not one of them thrice
    optimizer = names["optimizer"]  # the last one
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert all("low_bits" in optimizer.state[p] for p in parameters)
    assert optimizer.steps == 100
    if mode == "lookahead":
        assert int(optimizer.metrics()["meta/applied"]) == 5


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_model(monkeypatch, capsys):
    """The loss falls from 5.06; every meta-update takes differences, and the factors move."""
    arguments = ("--backend", "aot_eager", "--steps", "100")
    names = run(monkeypatch, "compiled_model.py", *arguments)
    updates = [x for x in capsys.readouterr().out.splitlines() if x.startswith("step")]
    assert len(updates) == 5
    assert all(line.endswith("by finite_difference") for line in updates)  # eager: exact
    assert names["loss"] < 3.1
    optimizer = names["optimizer"]
    assert int(optimizer.metrics()["meta/applied"]) == 5
    assert optimizer.group_names[0] == "embedding.shallow.weight"
    assert (optimizer.modulation.alpha - 1).abs().min() > 1e-3


@pytest.fixture
def no_settings_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It keeps them in the environment and in the process."""
    before = mlflow.get_tracking_uri()
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    yield
    mlflow.set_tracking_uri(before)


def read_tensorboard(output: Path) -> dict[str, list[Any]]:
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


@pytest.mark.usefixtures("no_settings_of_mlflow")
def test_loggers(monkeypatch, tmp_path):
    """All three have the same curves: the loss, which falls, and the factors, which move."""
    optimizer = run(monkeypatch, "loggers.py", str(tmp_path), "--steps", "60")["optimizer"]
    curves = read_tensorboard(tmp_path)
    assert curves.keys() == {"loss", *optimizer.metrics()}
    assert all([point.step for point in curve] == [20, 40, 60] for curve in curves.values())
    loss = [point.value for point in curves["loss"]]
    assert loss[-1] < loss[0] - 0.5
    alpha = [point.value for point in curves["embedding.shallow.weight/alpha"]]
    assert alpha[-1] > alpha[0] > 1

    (run_file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = run_file.read_bytes()
    assert all(name.encode() in written for name in curves)

    (saved,) = mlflow.search_runs(output_format="list")
    client = mlflow.MlflowClient()
    for name, curve in curves.items():
        history = client.get_metric_history(saved.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [
            (p.step, pytest.approx(p.value, rel=1e-6)) for p in curve
        ]


def test_tensorboard_alone(monkeypatch, tmp_path):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # how Python marks what cannot be imported
    run(monkeypatch, "loggers.py", str(tmp_path), "--steps", "20")
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    assert "meta/applied" in read_tensorboard(tmp_path)
