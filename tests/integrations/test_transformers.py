"""The real Trainer on a small GPT-2 and BERT; what is compared is compared to the last bit."""

from __future__ import annotations

import json
import pickle
import runpy
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from metaadamw import Attention, Hypergradient, LookAhead, MetaAdamW, Off
from metaadamw.integrations.transformers import MetaAdamWCallback, fine_grained
from tests.integrations.processes import EXAMPLES_DIRECTORY, run_program, run_two
from tests.training import assert_same

EXAMPLE = str(EXAMPLES_DIRECTORY / "huggingface_trainer.py")
EXAMPLES = runpy.run_path(EXAMPLE)
ONLINE = Hypergradient(lr=1e-2)
LOOKAHEAD = LookAhead(every=2, lr=1e-2, optimizer="adam")
OFF = Off()


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    train_set, _, validation = EXAMPLES["load"]("gpt2")
    return train_set[:100], validation[:20]


def make(
    output: Path, data: Any, *, optimizer: Any = None, kind: type[Trainer] = Trainer, **arguments
) -> Trainer:
    """A stock Trainer: clipping, accumulation, weight decay and a linear schedule are on."""
    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    model = EXAMPLES["build_model"]("gpt2")
    return kind(
        model,
        TrainingArguments(str(output), **{**settings, **arguments}),
        train_dataset=data[0],
        eval_dataset=data[1],
        optimizer_cls_and_kwargs=optimizer(model) if callable(optimizer) else optimizer,
    )


def plain(meta: Any, **options: Any) -> tuple[type[MetaAdamW], dict[str, Any]]:
    return MetaAdamW, {"lr": 1e-2, "modulator": "attention", "learning": meta, **options}


def inner(trainer: Trainer) -> MetaAdamW:
    return trainer.optimizer.optimizer


def losses(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def outcome(trainer: Trainer) -> Any:
    return losses(trainer), dict(trainer.model.state_dict())


def test_without_learning_it_is_the_trainers_own_adamw(tmp_path, data):
    adamw = make(tmp_path, data, optim="adamw_torch", learning_rate=1e-2)
    adamw.train()
    ours = make(tmp_path, data, optimizer=plain(OFF))  # seeds again
    ours.train()
    assert_same(outcome(ours), outcome(adamw))
    assert [group["weight_decay"] for group in inner(ours).param_groups] == [0.1, 0.0]


def test_online_mode_is_one_changed_line(tmp_path, data):
    trainer = make(tmp_path, data, optimizer=plain(ONLINE), max_steps=20)
    trainer.train()
    optimizer = inner(trainer)
    assert (optimizer.steps, int(optimizer.metrics()["meta/applied"])) == (20, 19)
    assert not torch.equal(optimizer.modulation.alpha, torch.ones(2))
    assert losses(trainer)[-1]["loss"] < losses(trainer)[0]["loss"] - 0.5


def test_fine_groups_keep_the_trainers_decay(tmp_path, data):
    coarse = make(tmp_path, data)
    fine = make(
        tmp_path,
        data,
        optimizer=lambda model: fine_grained(
            model, lr=1e-2, modulator="attention", learning=ONLINE
        ),
    )
    coarse.create_optimizer(), fine.create_optimizer()

    def decay(trainer: Trainer) -> dict[str, float]:
        names = {id(p): name for name, p in trainer.model.named_parameters()}
        groups = trainer.optimizer.param_groups
        return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}

    assert decay(fine) == decay(coarse)
    assert len(fine.optimizer.param_groups) == 12
    layer_types = {group["layer_type"] for group in fine.optimizer.param_groups}
    assert layer_types == {"embedding", "attention", "feed_forward", "layer_norm"}
    assert fine.train().global_step == 6
    again = pickle.loads(pickle.dumps(inner(fine)))
    assert_same(again.state_dict(), inner(fine).state_dict())


class Evaluate(TrainerCallback):
    """Leaves the model in evaluation mode between two steps, as an evaluation does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        control.should_evaluate = state.global_step == 3


def test_meta_updates_do_not_disturb_the_training(tmp_path, data):
    """With a modulator that cannot move, look-ahead changes no number; dropout is on."""
    still = LookAhead(every=2, lr=0.0)
    runs = []
    for meta in (still, OFF):
        trainer = make(tmp_path, data, optimizer=plain(meta))
        trainer.add_callback(Evaluate())
        if meta is still:
            trainer.add_callback(MetaAdamWCallback(trainer))
        trainer.train()
        runs.append(trainer)
        assert int(inner(trainer).metrics()["meta/applied"]) == (3 if meta is still else 0)
    assert_same(*map(outcome, runs))


SEEN: list[Tensor] = []  # what the trainer itself notes in a meta-update is put back


class Weighted(Trainer):
    """A loss of the user's own, which takes the labels out of the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        SEEN.append(labels)
        outputs = model(**inputs, labels=labels)
        return (2 * outputs.loss, outputs) if return_outputs else 2 * outputs.loss


def test_the_trainers_own_loss_and_data_sets_are_used(tmp_path, data):
    """A meta-update sees two training batches of its own and one of the validation set."""
    trainer = make(tmp_path, data, optimizer=plain(LookAhead(every=1)), kind=Weighted, max_steps=1)
    SEEN.clear()
    held_out = data[1][:4]
    callback = MetaAdamWCallback(trainer, eval_dataset=held_out)
    trainer.add_callback(callback)
    trainer.train()

    def rows(batches: list[Tensor]) -> set[tuple[int, ...]]:
        return {tuple(row.tolist()) for batch in batches for row in batch}

    trained, looked_at = rows(SEEN[:2]), rows(SEEN[2:])
    validated = rows([example["labels"][None] for example in held_out])
    train_set = rows([example["labels"][None] for example in data[0]])
    assert len(trained) == 8
    assert validated < looked_at
    assert len(looked_at - validated) == 8
    assert looked_at - validated <= train_set
    assert looked_at - validated != trained


def test_label_smoothing(tmp_path, data):
    """Its compute_loss takes the labels out of the batch; the next look still finds them."""
    trainer = make(
        tmp_path, data, optimizer=plain(LOOKAHEAD), label_smoothing_factor=0.1, max_steps=2
    )
    callback = MetaAdamWCallback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.last_update.applied


def test_autocast(tmp_path, data):
    """bf16=True: the meta-update runs in the precision of the training."""
    arguments = {"bf16": True, "use_cpu": not torch.cuda.is_available(), "max_steps": 4}
    trainer = make(tmp_path, data, optimizer=plain(LOOKAHEAD), **arguments)
    seen = []
    head = trainer.model.lm_head
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.add_callback(MetaAdamWCallback(trainer))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert int(inner(trainer).metrics()["meta/applied"]) == 2
    assert inner(trainer).modulation.alpha.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16=True needs a GPU")
def test_loss_scaling(tmp_path, data):
    """A step that the scaler skips advances nothing."""
    trainer = make(tmp_path, data, optimizer=plain(LOOKAHEAD), fp16=True, max_steps=8)
    trainer.add_callback(MetaAdamWCallback(trainer))
    trainer.train()
    optimizer = inner(trainer)
    assert 0 < optimizer.steps < 8  # the first scale, 65536, is too large
    assert int(optimizer.metrics()["meta/applied"]) == optimizer.steps // 2


@pytest.mark.parametrize(("architecture", "mode"), [("gpt2", "online"), ("bert", "lookahead")])
def test_killed_and_started_again(tmp_path, monkeypatch, architecture, mode):
    """Killed in step 8, between checkpoints 6 and 9; the same command goes on exactly."""

    def arguments(run: str) -> list[str]:
        options = ["--architecture", architecture, "--mode", mode, "--steps", "12"]
        return [EXAMPLE, str(tmp_path / run), *options]

    report = tmp_path / "report"
    assert run_program(report, *arguments("killed"), kill_at=7) == -signal.SIGKILL
    assert max(int(path.name[11:]) for path in (tmp_path / "killed").iterdir()) == 6
    assert run_program(report, *arguments("killed")) == 0
    monkeypatch.setattr(sys, "argv", arguments("whole"))
    runpy.run_path(EXAMPLE, run_name="__main__")

    whole, killed = (tmp_path / run / "checkpoint-12" for run in ("whole", "killed"))
    assert losses_of(killed) == losses_of(whole)
    assert [entry["step"] for entry in losses_of(whole)] == list(range(1, 13))
    assert_same(load_file(killed / "model.safetensors"), load_file(whole / "model.safetensors"))
    states = [torch.load(path / "optimizer.pt", weights_only=True) for path in (killed, whole)]
    assert_same(*states)
    assert int(states[0]["param_groups"][0]["metaadamw"]["applied"]) == (
        11 if mode == "online" else 2
    )


def losses_of(checkpoint: Path) -> list[dict[str, float]]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def test_two_processes(tmp_path):
    """DistributedDataParallel: the same on both ranks, and the same again from a checkpoint."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m")
    program = (EXAMPLE, str(tmp_path / "run"), "--mode", "lookahead", "--steps", "12")
    whole = run_two(launcher, tmp_path / "whole", *program)
    assert int(whole["learned"]["applied"]) == 2
    for step in (9, 12):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    assert_same(run_two(launcher, tmp_path / "resumed", *program), whole)


def test_what_does_not_fit_is_refused_at_the_start(tmp_path, data):
    def error_of(optimizer: Any, **arguments: Any) -> Exception:
        trainer = make(tmp_path, data, optimizer=optimizer)
        for name in ("eval_dataset", "train_dataset"):
            if name in arguments:
                setattr(trainer, name, arguments[name])
        trainer.add_callback(MetaAdamWCallback(trainer))
        with pytest.raises((TypeError, ValueError)) as caught:
            trainer.train()
        assert trainer.state.global_step == 0
        return caught.value

    assert "needs MetaAdamW, got AdamW" in str(error_of(None))
    assert "learning='lookahead', got Hypergradient" in str(error_of(plain(ONLINE)))
    lookahead = plain(LOOKAHEAD)
    assert "needs validation batches" in str(error_of(lookahead, eval_dataset=None))
    several = {"wiki": data[1], "code": data[1]}
    message = str(error_of(lookahead, eval_dataset=several))
    assert "must be one data set, the Trainer has ['wiki', 'code']" in message
    with pytest.raises(TypeError, match=r"trainer must be a transformers.Trainer, got dict"):
        MetaAdamWCallback({})


def test_an_objective_without_validation_needs_no_eval_set(tmp_path, data):
    meta = LookAhead(every=2, objective="gradient_alignment")
    modulator = Attention(layers=1)
    trainer = make(tmp_path, (data[0], None), optimizer=plain(meta, modulator=modulator))
    trainer.add_callback(MetaAdamWCallback(trainer))
    trainer.train()
    assert int(inner(trainer).metrics()["meta/applied"]) == 3
