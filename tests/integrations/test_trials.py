"""Several trainings of one Trainer, and what a loss notes in it."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from metaadamw import Hypergradient, LookAhead, MetaAdamW, Off, fine_grained_groups
from metaadamw.integrations.transformers import MetaAdamWCallback, fine_grained
from tests.training import assert_same

ONLINE = Hypergradient()
LOOKAHEAD = LookAhead(every=2)


class Net(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(depth))
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x).tanh()
        return {"loss": (self.norm(x).sum(1) - labels).square().mean()}


def data(count: int, seed: int) -> list[dict[str, Tensor]]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return [{"x": row, "labels": row.sum()} for row in x]


def trainer_of(path: Any, optimizer: Any, kind: type = Trainer, model: Any = None, **options: Any):
    settings: dict[str, Any] = {
        "max_steps": 6,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "remove_unused_columns": False,
        "weight_decay": 0.1,
        **options,
    }
    make = {"model_init": model} if callable(model) and not isinstance(model, nn.Module) else {}
    trainer = kind(
        None if make else model or seeded(),
        TrainingArguments(str(path), **settings),
        train_dataset=data(64, 1),
        eval_dataset=data(32, 2),
        optimizer_cls_and_kwargs=optimizer,
        **make,
    )
    return trainer


def seeded(depth: int = 2) -> Net:
    torch.manual_seed(0)
    return Net(depth)


def inner(trainer: Trainer) -> MetaAdamW:
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


# A new model for each trial ----------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("depths", [(2, 2), (2, 4), (4, 1, 3)])
def test_groups_for_the_model_of_each_training(tmp_path, depths, lookahead):
    """Also where it has other layers than the one that fine_grained was given."""
    remaining = list(depths)
    meta = LOOKAHEAD if lookahead else ONLINE
    trainer = trainer_of(
        tmp_path,
        fine_grained(seeded(), lr=1e-2, modulator="attention", learning=meta),
        model=lambda: seeded(remaining[0]),
    )
    if lookahead:
        trainer.add_callback(MetaAdamWCallback(trainer))
    for depth in depths:
        trainer.train()
        optimizer, model = inner(trainer), trainer.model
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in trained} == {id(p) for p in model.parameters()}
        fine = {group["name"] for group in fine_grained_groups(model)}
        assert {name.split(".", 1)[1] for name in optimizer.group_names} == fine
        assert optimizer.steps == 6
        alone = trainer_of(
            tmp_path,
            fine_grained(seeded(depth), lr=1e-2, modulator="attention", learning=meta),
            model=None,
        )
        alone.model = alone.model_wrapped = seeded(depth)
        if lookahead:
            alone.add_callback(MetaAdamWCallback(alone))
        alone.train()
        assert_same(dict(model.state_dict()), dict(alone.model.state_dict()))
        remaining.pop(0)


@pytest.mark.parametrize("rates", [(1e-5, 1e-2), (3e-4, 2e-3, 1e-5)])
def test_the_learning_rate_of_the_arguments(tmp_path, rates):
    """Without one of its own; that of each trial."""
    trainer = trainer_of(
        tmp_path,
        fine_grained(seeded(), modulator="attention", learning=ONLINE),
        model=lambda: seeded(),
        lr_scheduler_type="constant",
    )
    for rate in rates:
        trainer.args.learning_rate = rate
        trainer.train()
        assert {group["lr"] for group in inner(trainer).param_groups} == {rate}
    fixed = trainer_of(
        tmp_path,
        fine_grained(seeded(), lr=0.5, modulator="attention", learning=ONLINE),
        model=lambda: seeded(),
    )
    fixed.create_optimizer()
    assert {group["lr"] for group in inner(fixed).param_groups} == {0.5}


def test_outside_of_a_trainer():
    """The class that fine_grained returns needs none; another model is refused there."""
    model = seeded()
    kind, options = fine_grained(model, lr=0.3, modulator="attention", learning=ONLINE)
    optimizer = kind([{"params": [*model.parameters()]}], **options)
    assert optimizer.param_groups[0]["lr"] == 0.3
    with pytest.raises(ValueError, match="not a parameter of model"):
        kind([{"params": [*seeded().parameters()]}], **options)


# Losses with side effects ------------------------------------------------------------------------


class Counting(Trainer):
    """Counts in ``compute_loss`` and ``_prepare_inputs`` in all the ways that trainers do."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tokens, self.seen, self.batches = 0, torch.zeros(()), []
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        self.prepared = getattr(self, "prepared", 0) + 1
        inputs["x"] += 0.1 * torch.rand_like(inputs["x"])  # in place, and at random
        return inputs

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        self.tokens += inputs["x"].numel()
        self.seen += len(inputs["x"])
        self.state.num_input_tokens_seen += inputs["x"].numel()
        self._metrics["train"]["mean"].append(inputs["x"].mean().item())
        self.batches.append(inputs["x"].clone())
        self.control.should_log = True
        labels = inputs.pop("labels")
        return model(inputs.pop("x"), labels)["loss"]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_trainers_counters_are_those_of_the_training(tmp_path, every):
    runs = []
    for meta in (LookAhead(every=every, lr=0.0), Off()):
        trainer = trainer_of(tmp_path, (MetaAdamW, {"lr": 1e-2, "learning": meta}), Counting)
        if isinstance(meta, LookAhead):
            trainer.add_callback(MetaAdamWCallback(trainer))
        trainer.train()
        runs.append(trainer)
    applied = inner(runs[0]).metrics(as_float=True)["meta/applied"]
    assert applied == 6 // every
    for name in ("tokens", "seen", "batches", "prepared", "_metrics"):
        assert_same(*(vars(trainer)[name] for trainer in runs), name)
    states = [trainer.state.num_input_tokens_seen for trainer in runs]
    assert states[0] == states[1] == runs[0].tokens > 0
    assert_same(*(dict(trainer.model.state_dict()) for trainer in runs))


def test_a_loss_of_ones_own(tmp_path):
    """It replaces ``compute_loss`` in meta-updates, after the inputs are prepared."""
    seen: list[dict[str, Tensor]] = []

    def loss_fn(model: nn.Module, inputs: Any) -> Tensor:
        seen.append(inputs)
        return model(**inputs)["loss"]

    class Generator(Trainer):
        generator = torch.Generator().manual_seed(0)

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            torch.rand(1, generator=self.generator)  # which nobody can put back
            return model(**inputs)["loss"]

    trainer = trainer_of(tmp_path, (MetaAdamW, {"lr": 1e-2, "learning": LOOKAHEAD}), Generator)
    callback = MetaAdamWCallback(trainer, loss_fn)
    trainer.add_callback(callback)
    trainer.train()
    expected = torch.Generator().manual_seed(0)
    for _ in range(6):
        torch.rand(1, generator=expected)
    assert_same(Generator.generator.get_state(), expected.get_state())
    assert callback.last_update.applied
    assert len(seen) > 9
    default = trainer_of(tmp_path, (MetaAdamW, {"lr": 1e-2, "learning": LOOKAHEAD}))
    default.add_callback(MetaAdamWCallback(default))
    default.train()
    assert_same(inner(trainer).state_dict(), inner(default).state_dict())


def test_a_loss_of_none_skips(tmp_path):
    trainer = trainer_of(tmp_path, (MetaAdamW, {"lr": 1e-2, "learning": LOOKAHEAD}))
    callback = MetaAdamWCallback(trainer, lambda model, inputs: None)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.last_update.skipped_reason == "no loss on batch1: loss_fn returned None"
    with pytest.raises(TypeError, match=r"loss_fn must be callable.*got 3"):
        MetaAdamWCallback(trainer, 3)


# Logs --------------------------------------------------------------------------------------------


class LogFactors(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.trainer.log(inner(self.trainer).metrics(as_float=True))


@pytest.mark.parametrize("lookahead", [False, True])
def test_metrics_in_the_log_and_in_saved_state(tmp_path, lookahead):
    meta = LOOKAHEAD if lookahead else ONLINE
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(
        tmp_path,
        fine_grained(seeded(), modulator="attention", learning=meta),
        model=None,
        **options,
    )
    trainer.model = trainer.model_wrapped = seeded()
    if lookahead:
        trainer.add_callback(MetaAdamWCallback(trainer))
    callback = LogFactors()
    callback.trainer = trainer
    trainer.add_callback(callback)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "meta/applied" in entry]
    assert [entry["meta/steps"] for entry in logged] == list(range(1, 7))
    assert logged[-1]["meta/applied"] == (3 if lookahead else 5)
    assert ("meta/total" in logged[-1]) is lookahead
