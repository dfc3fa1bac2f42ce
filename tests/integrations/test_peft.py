"""LoRA adapters of peft: per-network groups, added and unfrozen while training."""

from __future__ import annotations

import copy
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from metaadamw import Attention, Hypergradient, LookAhead, MetaAdamW
from metaadamw.integrations.transformers import MetaAdamWCallback, fine_grained
from tests.integrations.processes import EXAMPLES_DIRECTORY
from tests.training import assert_same

EXAMPLE = str(EXAMPLES_DIRECTORY / "lora_two_networks.py")
LORA = runpy.run_path(EXAMPLE)
loss_fn = LORA["loss_fn"]
ONLINE = Hypergradient(lr=1e-2)
LOOKAHEAD = LookAhead(every=2, lr=1e-2, optimizer="adam", weight_decay=0.0)
modes = pytest.mark.parametrize("meta", [ONLINE, LOOKAHEAD], ids=["online", "lookahead"])


def batch(index: int) -> Any:
    generator = torch.Generator().manual_seed(index)
    images = torch.rand(8, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 27, (8, 5), generator=generator)


def build(meta: Any) -> tuple[nn.ModuleDict, MetaAdamW]:
    """The U-Net has adapters, the text encoder is frozen."""
    torch.manual_seed(5)
    networks = nn.ModuleDict({"text_encoder": LORA["TextEncoder"](), "unet": LORA["UNet"]()})
    networks["text_encoder"].requires_grad_(False)
    groups = LORA["add_adapters"](networks, "unet", *LORA["UNET_LAYERS"], finer=False)
    modulator = Attention(features="scale_free", layers=1)
    return networks, MetaAdamW(groups, lr=1e-2, learning=meta, modulator=modulator)


def add_text_adapters(networks: nn.ModuleDict, optimizer: MetaAdamW) -> None:
    torch.manual_seed(6)
    layers = LORA["TEXT_LAYERS"]
    for group in LORA["add_adapters"](networks, "text_encoder", *layers, finer=False):
        optimizer.add_param_group(group)


def train(networks: nn.ModuleDict, optimizer: MetaAdamW, indices: range) -> None:
    for index in indices:
        torch.manual_seed(index)
        optimizer.zero_grad()
        loss_fn(networks, batch(index)).backward()
        optimizer.step()
        if optimizer.meta_update_due:
            batches = (batch(1000 + 3 * index + i) for i in range(3))
            assert optimizer.update_attention(networks, loss_fn, *batches).applied


def values(networks: nn.ModuleDict, *, trainable: bool) -> dict[str, Tensor]:
    named = networks.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad == trainable}


@modes
def test_adapters_added_while_training(meta):
    networks, optimizer = build(meta)
    base = {p.data_ptr(): p.detach().clone() for p in networks.parameters()}
    train(networks, optimizer, range(6))
    unet = optimizer.state_dict()["state"]
    learned = [p.detach().clone() for p in optimizer.modulator.parameters()]
    add_text_adapters(networks, optimizer)
    assert optimizer.group_names == ["unet", "text_encoder"]
    assert_same([p.detach() for p in optimizer.modulator.parameters()], learned)
    assert_same({k: optimizer.state_dict()["state"][k] for k in unet}, unet)
    assert optimizer.steps == 6
    before = values(networks, trainable=True)
    train(networks, optimizer, range(6, 12))
    alpha = optimizer.modulation.alpha
    assert alpha.shape == (2,)
    assert alpha[0] != alpha[1]
    moved = values(networks, trainable=True)
    assert all(not torch.equal(moved[name], before[name]) for name in before)
    assert any(name.startswith("text_encoder") for name in moved)
    for param in networks.parameters():  # the base weights, to the last bit
        if param.data_ptr() in base and not param.requires_grad:
            assert_same(param.detach(), base.pop(param.data_ptr()))
    assert len(base) <= len(before)


@modes
def test_resumed_after_adapters_were_added(meta):
    """Add the same groups to a fresh optimizer, load, go on: bit for bit."""
    networks, optimizer = build(meta)
    train(networks, optimizer, range(4))
    add_text_adapters(networks, optimizer)
    train(networks, optimizer, range(4, 7))
    saved = copy.deepcopy([networks.state_dict(), optimizer.state_dict()])
    train(networks, optimizer, range(7, 10))

    again, resumed = build(meta)
    add_text_adapters(again, resumed)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(again, resumed, range(7, 10))
    assert_same(dict(again.state_dict()), dict(networks.state_dict()))
    assert_same(resumed.state_dict(), optimizer.state_dict())


@modes
def test_adapters_unfrozen_while_training(meta):
    """A group may be frozen at first: it stands still, then it goes."""
    networks, optimizer = build(meta)
    add_text_adapters(networks, optimizer)
    adapters = optimizer.param_groups[1]["params"]
    for param in adapters:
        param.requires_grad_(False)
    before = [p.detach().clone() for p in adapters]
    train(networks, optimizer, range(4))
    assert_same([p.detach() for p in adapters], before)
    assert not any(p in optimizer.state for p in adapters)
    for param in adapters:
        param.requires_grad_(True)
    train(networks, optimizer, range(4, 8))
    assert all(not torch.equal(p, old) for p, old in zip(adapters, before, strict=True))
    assert optimizer.modulation.alpha.isfinite().all()


@pytest.mark.parametrize("finer", [False, True])
def test_example(monkeypatch, capsys, finer):
    arguments = ["--steps", "18", *(["--finer"] if finer else [])]
    monkeypatch.setattr(sys, "argv", [EXAMPLE, *arguments])
    runpy.run_path(EXAMPLE, run_name="__main__")
    output = capsys.readouterr().out
    name = "text_encoder.feed_forward.middle.weight" if finer else "text_encoder  "
    assert f"step    9  {name}" not in output
    assert f"step   18  {name}" in output
    assert "digits 5-9, after:" in output


@modes
@pytest.mark.parametrize("fine", [False, True], ids=["plain", "fine"])
def test_in_the_trainer(tmp_path: Path, meta: Any, fine: bool) -> None:
    """All adapters have weight decay: the Trainer's second group is empty. Resumed exactly."""
    trainers = runpy.run_path(str(EXAMPLES_DIRECTORY / "huggingface_trainer.py"))

    def run(checkpoint: str | None) -> Trainer:
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
        model = get_peft_model(trainers["build_model"]("gpt2"), config)
        options: dict[str, Any] = {"lr": 1e-2, "learning": meta}
        examples = trainers["load"]("gpt2")[2]
        trainer = Trainer(
            model,
            TrainingArguments(
                str(tmp_path),
                max_steps=6,
                save_steps=3,
                per_device_train_batch_size=4,
                weight_decay=0.1,
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=examples[:100],
            eval_dataset=examples[100:120],
            optimizer_cls_and_kwargs=(
                fine_grained(model, **options) if fine else (MetaAdamW, options)
            ),
        )
        if meta is LOOKAHEAD:
            trainer.add_callback(MetaAdamWCallback(trainer))
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole, resumed = run(None), run(str(tmp_path / "checkpoint-3"))
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    states = [trainer.optimizer.optimizer.state_dict() for trainer in (resumed, whole)]
    assert_same(*states)
    assert len(whole.optimizer.param_groups) == (4 if fine else 2)
