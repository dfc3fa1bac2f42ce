"""Save, load into a fresh model and optimizer, go on: the same bits as without the stop.

A run is a sequence of 24 positions: training step 0; meta-update if due, scheduler; step 1; …
"""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from metaadamw import Attention, MetaAdamW
from tests.learning import learning_of
from tests.training import (
    Net,
    assert_same,
    backward,
    make,
    meta_update,
    results,
    train,
)

STEPS = 12
LOOKAHEAD = {"every": 2, "warmup_steps": 3, "lr": 1e-2}
ONLINE = {"mode": "online", "lr": 1e-2}
ADAM, OFF = {"optimizer": "adam"}, {"mode": "off"}
PLAIN, FOREACH, FUSED = {"foreach": False}, {"foreach": True}, {"fused": True}
LEARNED_FEATURES = {"features": "enhanced", "feature_gating": True}
bf16, f32, f64 = torch.bfloat16, torch.float32, torch.float64

# name: dtype, options of Attention and of the learning, options of MetaAdamW, scheduler
SETTINGS: dict[str, tuple[Any, ...]] = {
    "lookahead": (f32, {}, LOOKAHEAD, PLAIN, None),
    "lookahead from identity": (f32, {"init": "identity"}, LOOKAHEAD, PLAIN, None),
    "lookahead adam": (f32, {"heads": 3}, LOOKAHEAD | ADAM, FOREACH, "cosine"),
    "lookahead bfloat16": (bf16, {}, LOOKAHEAD, {}, None),
    "lookahead bfloat16 adam": (bf16, LEARNED_FEATURES, LOOKAHEAD | ADAM, FOREACH, "one cycle"),
    "lookahead float64": (f64, LEARNED_FEATURES, LOOKAHEAD, FUSED, "plateau"),
    "lookahead every 3": (f32, {"update_every": 3}, LOOKAHEAD | {"every": 1}, FUSED, "one cycle"),
    "lookahead fixed": (
        f32,
        {"features": "norm_basic"},
        LOOKAHEAD | ADAM | {"weighting": "fixed", "hvp": "finite_difference"},
        FOREACH,
        "sequential",
    ),
    "online": (f32, {}, ONLINE, PLAIN, None),
    "online from identity": (f32, {"init": "identity"}, ONLINE, PLAIN, "cosine"),
    "online sgd": (f32, LEARNED_FEATURES, ONLINE | {"optimizer": "sgd"}, FOREACH, None),
    "online enhanced": (f64, LEARNED_FEATURES, ONLINE, FUSED, "one cycle"),
    "online bfloat16": (bf16, {"features": "basic_plus"}, ONLINE, FOREACH, "sequential"),
    "online bfloat16 fused": (bf16, {"features": "scale_free"}, ONLINE, FUSED, None),
    "online every 3": (f32, {"update_every": 3}, ONLINE | {"warmup_steps": 2}, FOREACH, None),
    "online float64": (f64, {"features": "norm_basic_plus", "heads": 2}, ONLINE, PLAIN, "plateau"),
    "online tensor lr": (f32, {}, ONLINE, {"lr": torch.tensor(1e-2)}, "cosine"),
    "off": (f32, {"update_every": 3}, OFF, PLAIN, "cosine"),
    "off bfloat16": (bf16, {"features": "scale_free"}, OFF, FUSED, None),
    "off float64": (f64, LEARNED_FEATURES, OFF, FOREACH, None),
    "maximize": (f32, {}, LOOKAHEAD, {"maximize": True, "total_steps": 12}, None),
    "printed form": (f32, {}, ONLINE, {"eps_inside_sqrt": True, "eps": 1e-6}, None),
}

SCHEDULERS = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 2e-2, STEPS + 1),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.ExponentialLR(o, 0.8)],
        milestones=[4],
    ),
}


@dataclasses.dataclass
class Run:
    model: Net
    optimizer: MetaAdamW
    scheduler: Any

    @classmethod
    def start(cls, setting: str) -> Run:
        dtype, modulator, meta, options, scheduler = SETTINGS[setting]
        model, optimizer = make(
            dtype,
            modulator=Attention(**{"init": "xavier", "layers": 1, **modulator}),
            learning=learning_of(**meta),
            **copy.deepcopy(options),  # a tensor lr is changed in place
        )
        return cls(model, optimizer, SCHEDULERS[scheduler](optimizer) if scheduler else None)

    def advance(self, position: int) -> None:
        step, second_half = divmod(position, 2)
        torch.manual_seed(step)  # the random streams are the user's to save
        if not second_half:
            backward(self.model, step)
            self.optimizer.step()
            return
        if self.optimizer.meta_update_due:
            assert meta_update(self.model, self.optimizer, step).applied
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(-float(step // 4))
        elif self.scheduler is not None:
            self.scheduler.step()

    def results(self) -> dict[str, Any]:
        return results(self.model, self.optimizer)


def through_file(run: Run, setting: str) -> Run:
    saved = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    if run.scheduler is not None:
        saved["scheduler"] = run.scheduler.state_dict()
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    # weights_only refuses all but plain content; OneCycleLR keeps its annealing function's name.
    loaded = torch.load(file, weights_only=True)
    fresh = Run.start(setting)
    train(fresh.model, fresh.optimizer, [500])  # what is loaded replaces all of this
    fresh.model.load_state_dict(loaded["model"])
    fresh.optimizer.load_state_dict(loaded["optimizer"])
    if run.scheduler is not None:
        fresh.scheduler.load_state_dict(loaded["scheduler"])
    return fresh


def through_deepcopy(run: Run, setting: str) -> Run:
    return copy.deepcopy(run)


def through_pickle(run: Run, setting: str) -> Run:
    return Run(*pickle.loads(pickle.dumps((run.model, run.optimizer))), None)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_relay_of_fresh_runs(setting):
    """Cut at every position: each is run by another optimizer, loaded from the file of the last."""
    run, relay = Run.start(setting), Run.start(setting)
    for position in range(2 * STEPS):
        relay = through_file(relay, setting)
        assert_same(relay.results(), run.results(), f"loaded before position {position}")
        run.advance(position)
        relay.advance(position)
        assert_same(relay.results(), run.results(), f"after position {position}")


# A copied scheduler does not recognise the copied optimizer's step().
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden")
@pytest.mark.parametrize(
    ("setting", "route"),
    [
        ("lookahead bfloat16 adam", through_file),
        ("online every 3", through_file),
        ("lookahead every 3", through_deepcopy),
        ("online enhanced", through_deepcopy),
        ("lookahead bfloat16", through_pickle),
        ("online every 3", through_pickle),
    ],
)
def test_resume_once_at_every_cut(setting, route):
    run = Run.start(setting)
    resumed: list[Run] = []
    for position in range(2 * STEPS):
        resumed.append(route(run, setting))
        run.advance(position)
        for other in resumed:
            other.advance(position)
    expected = run.results()
    for cut, other in enumerate(resumed):
        assert_same(other.results(), expected, f"cut before position {cut}")


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_a_run_worth_resuming(setting):
    """The modulator has an effect and, unless off, learns: a lost state would show."""
    meta = SETTINGS[setting][2]
    run = Run.start(setting)
    before = run.optimizer.meta_state_dict()
    for position in range(2 * STEPS):
        run.advance(position)
    after = run.optimizer.meta_state_dict()
    assert not torch.equal(run.optimizer.modulation.alpha, torch.ones(()))
    learned = not torch.equal(
        before["modulator"]["output_weight"], after["modulator"]["output_weight"]
    )
    assert learned == (meta.get("mode") != "off")
