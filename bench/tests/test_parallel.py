"""Processes that share every batch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from bench.tests.running import environment, plain
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from metaadamw_bench.arms import get_arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.parallel import Workplace, check_device
from metaadamw_bench.resolving import resolve
from metaadamw_bench.tasks import Metric, PreparedTask, Splits, get_task
from metaadamw_bench.trainer import Trainer

ARMS = ("adamw", "metaadamw-online", "metaadamw-paper")
PROCESSES = 2


def regression() -> PreparedTask:
    """A task without dropout and batch norm; its batches do not divide by two."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(23, 4, generator=generator)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
    return PreparedTask(
        name="digits",  # some registered task that the paper does not know
        protocol="clean",
        size="small",
        splits=Splits(data, data, data),
        build_model=lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
        loss=functional.mse_loss,
        metric=Metric(name="MSE", direction="minimize"),
        batch_size=11,  # 11, 11 and a last batch of one example: nothing for the second process
        max_epochs={"adamw": 9, "metaadamw": 9},
        patience=None,
        lr=1e-2,
        weight_decay=1e-2,
    )


def train(task, arm_name, workplace):
    """Losses, an evaluation and everything that the next steps depend on."""
    arm = get_arm(arm_name)
    config = resolve(RunRequest(task=task.name, arm=arm_name), task, arm)
    trainer = Trainer(task, arm, config, workplace)
    losses = []
    for _ in range(20):
        losses.append(trainer.train_step())
        if trainer.meta_update_due:
            trainer.meta_update()
    means, _ = trainer.evaluate(task.splits.validation)
    state = trainer.state_dict()
    del state["seconds"]
    return {
        "losses": losses,
        "means": tuple(means),
        "meta": trainer.meta_updates,
        "state": state,
    }


def work(rank, directory):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=PROCESSES
    )
    workplace = Workplace(torch.device("cpu"), rank=rank, processes=PROCESSES)
    digits = get_task("digits").prepare()
    small = replace(digits, splits=replace_validation(digits.splits))
    found = {arm: [train(task, arm, workplace) for task in (regression(), small)] for arm in ARMS}
    torch.save(found, f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()


def replace_validation(splits):
    return splits._replace(validation=TensorDataset(*splits.validation[:20]))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(directory),), nprocs=PROCESSES)
    return [torch.load(directory / f"{rank}.pt") for rank in range(PROCESSES)]


def without_buffers(result):
    model = {k: v for k, v in result["state"]["model"].items() if "running" not in k}
    return {**result, "state": {**result["state"], "model": model}}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("task", [0, 1], ids=["regression", "digits"])
def test_processes_stay_equal_to_the_last_bit(arm, task, results):
    # Batch norms see each process's part alone; rank 0's statistics are the ones that count.
    first, second = (without_buffers(result[arm][task]) for result in results)
    assert plain(second) == plain(first)
    assert (first["meta"] > 0) == (arm == "metaadamw-paper")


@pytest.mark.parametrize("arm", ARMS)
def test_two_processes_do_what_one_does(arm, results):
    alone = train(regression(), arm, Workplace(torch.device("cpu")))
    found = results[0][arm][0]
    assert found["meta"] == alone["meta"]
    torch.testing.assert_close(found["losses"], alone["losses"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["means"], alone["means"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found["state"]["model"], alone["state"]["model"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("examples", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("processes", [2, 3])
def test_parts_of_a_batch_weigh_what_they_hold(examples, processes):
    batch = (torch.arange(examples), torch.randn(examples))
    total, seen = 0.0, []
    for rank in range(processes):
        workplace = Workplace(torch.device("cpu"), rank=rank, processes=processes)
        (indices, values), weight = workplace.share(batch)
        total += weight * values.mean().item() / processes
        seen += indices.tolist() if weight else []
    assert total == pytest.approx(batch[1].mean().item(), rel=1e-5)
    assert sorted(seen) == list(range(examples))


def test_torchrun_writes_one_run(tmp_path):
    words = ["run", "digits", "--arm", "adamw", "--max-steps", 10, "--quiet", "--out", tmp_path]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", PROCESSES]
    done = subprocess.run(
        list(map(str, [*launcher, "-m", "metaadamw_bench", *words])),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("digits, adamw, seed 0") == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 11))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["processes"] == PROCESSES


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "xpu"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"device: '{name}'"):
        check_device(name)
