"""What was recorded is what ran, on the device until it is written, and replays to the last bit."""

from __future__ import annotations

import copy
import csv
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from torch import Tensor, nn

from metaadamw import Attention, Hypergradient, LookAhead, MetaAdamW, Off, Recorder, Schedule
from tests.training import Net, assert_same, backward, make, meta_update, train

STEPS = 9
XAVIER = Attention(init="xavier", layers=1)
SETTINGS = {
    "lookahead": {"modulator": XAVIER, "learning": LookAhead(every=2, lr=2e-2)},
    "online": {"modulator": XAVIER, "learning": Hypergradient(lr=2e-2)},
    "online every 3": {
        "modulator": Attention(init="xavier", update_every=3),
        "learning": Hypergradient(lr=2e-2),
    },
    "online float64": {
        "dtype": torch.float64,
        "modulator": XAVIER,
        "learning": Hypergradient(lr=2e-2),
    },
    "online bfloat16, fused": {
        "dtype": torch.bfloat16,
        "modulator": XAVIER,
        "learning": Hypergradient(lr=2e-2),
        "fused": True,
    },
    "look-ahead, as run": {
        "modulator": XAVIER,
        "learning": LookAhead(every=1, optimizer="adam", lr=2e-2, as_run=("bias_corrected_decay",)),
    },
    "off, foreach": {"modulator": XAVIER, "learning": Off(), "foreach": True},
}
settings = pytest.mark.parametrize("setting", SETTINGS)


def key(column: str, group: str) -> str:
    """How a number is called everywhere: ``metrics()``, CSV, TensorBoard."""
    return f"{group}/{column}"


def run(model: nn.Module, optimizer: MetaAdamW, after_step: Callable[..., None]) -> None:
    for index in range(STEPS):
        torch.manual_seed(index)
        loss = backward(model, index)
        optimizer.step()
        update = meta_update(model, optimizer, index) if optimizer.meta_update_due else None
        after_step(loss, update)


def recorded(setting: str) -> tuple[Net, MetaAdamW, Recorder, list[dict[str, Any]]]:
    """A recorded run, and what the optimizer said at every step."""
    model, optimizer = make(**SETTINGS[setting])
    recorder = Recorder(optimizer)
    seen: list[dict[str, Any]] = []

    def after_step(loss, update):
        recorder.record(loss, update)
        features, modulation = optimizer.features, optimizer.modulation
        seen.append({
            "loss": loss.item(),
            "alpha": modulation.alpha.tolist(),
            "beta": modulation.beta.tolist(),
            "features": features.tolist(),
            "update": update,
        })  # fmt: skip

    run(model, optimizer, after_step)
    return model, optimizer, recorder, seen


def test_nothing_is_read_back_while_recording(monkeypatch):
    """Only copies on the device are kept: reading one here would raise."""
    model, optimizer = make(**SETTINGS["lookahead"])
    recorder = Recorder(optimizer)
    train(model, optimizer, range(2))
    loss, update = backward(model, 2), meta_update(model, optimizer)

    def stall(*_: Any, **__: Any) -> Any:
        raise AssertionError("record() waited for the device")

    reads = ("item", "tolist", "cpu", "numpy", "to", "__bool__", "__float__", "__int__")
    with monkeypatch.context() as patch:
        for name in reads:
            patch.setattr(Tensor, name, stall)
        recorder.record(loss, update)
        recorder.record()
    assert len(recorder) == 2
    assert recorder.rows()[0]["loss"] == loss.item()


def test_recording_keeps_no_graph_and_changes_no_number():
    watched, _, recorder, _ = recorded("lookahead")
    model, optimizer = make(**SETTINGS["lookahead"])
    run(model, optimizer, lambda *_: None)
    assert_same(dict(model.state_dict()), dict(watched.state_dict()))
    kept = [t for value in vars(recorder).values() if isinstance(value, list) for t in value]
    assert sum(isinstance(t, Tensor) for t in kept) >= 4 * STEPS
    assert not any(t.requires_grad for t in kept if isinstance(t, Tensor))


@settings
def test_csv(setting, tmp_path):
    _, optimizer, recorder, seen = recorded(setting)
    path = tmp_path / "run.csv"
    recorder.to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    for row, expected in zip(rows, seen, strict=True):
        assert float(row["loss"]) == expected["loss"]
        for i, group in enumerate(optimizer.group_names):
            assert float(row[key("alpha", group)]) == expected["alpha"][i]
            assert float(row[key("beta", group)]) == expected["beta"][i]
            for j, column in enumerate(optimizer.feature_names):
                assert float(row[key(column, group)]) == expected["features"][i][j]
        update = expected["update"]
        if update is not None:
            assert float(row["meta/total"]) == update.total
            assert float(row["meta/loss_decrease"]) == update.loss_decrease
            assert row["meta/applied"] == "True"
        elif setting == "lookahead":
            assert row["meta/total"] == row["meta/applied"] == ""
        else:
            assert "meta/total" not in row
    assert len({row[key("alpha", optimizer.group_names[0])] for row in rows}) > 1


def test_alpha_and_beta_of_every_step():
    _, _, recorder, seen = recorded("online")
    assert recorder.alpha.tolist() == [row["alpha"] for row in seen]
    assert recorder.beta.tolist() == [row["beta"] for row in seen]
    assert recorder.alpha.shape == (STEPS, len(recorder.groups))


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, optimizer, recorder, seen = recorded("lookahead")
    recorder.to_tensorboard(tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()

    def scalars(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(name)]

    single = np.float32  # what an event file holds
    assert scalars("loss") == [(i + 1, single(row["loss"])) for i, row in enumerate(seen)]
    for i, group in enumerate(optimizer.group_names):
        expected = [(step + 1, single(row["alpha"][i])) for step, row in enumerate(seen)]
        assert scalars(key("alpha", group)) == expected
    updates = [(i + 1, row["update"]) for i, row in enumerate(seen) if row["update"]]
    assert scalars("meta/total") == [(step, single(update.total)) for step, update in updates]


@pytest.mark.parametrize("steps", [1, STEPS])
def test_heatmap(steps, tmp_path):
    model, optimizer = make(**SETTINGS["online"])
    recorder = Recorder(optimizer)
    for index in range(steps):
        train(model, optimizer, [index])
        recorder.record()
    path = tmp_path / "run.png"
    recorder.heatmap(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = image.imread(path)
    height, width, _ = pixels.shape
    assert 1000 <= width <= 3000
    assert 500 <= height <= 3000
    assert path.stat().st_size < 2_000_000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50  # not one colour


def test_heatmap_of_a_run_in_which_nothing_happened(tmp_path):
    """α = β = 1 throughout: there is no spread to draw, and still a picture."""
    model, optimizer = make(learning=Off())
    recorder = Recorder(optimizer)
    train(model, optimizer, [0])
    recorder.record()
    recorder.heatmap(tmp_path / "run.png")
    assert image.imread(tmp_path / "run.png").size


@pytest.mark.parametrize(
    ("method", "module"), [("heatmap", "matplotlib"), ("to_tensorboard", "torch.utils.tensorboard")]
)
def test_a_missing_package_is_named(method, module, monkeypatch, tmp_path):
    _, _, recorder, _ = recorded("online")
    for name in [n for n in sys.modules if n == module or n.startswith(module + ".")] + [module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install (matplotlib|tensorboard)"):
        getattr(recorder, method)(tmp_path / "out")


@settings
def test_replay_is_the_recorded_run(setting, tmp_path):
    """Through the file, without features, encoder or learning, to the last bit."""
    model, optimizer, recorder, seen = recorded(setting)
    path = tmp_path / "schedule.json"
    recorder.schedule().save(path)
    schedule = Schedule.load(path)
    assert_same(schedule.alpha, recorder.alpha)
    assert_same(schedule.beta, recorder.beta)
    assert schedule.groups == tuple(optimizer.group_names)

    # Of ``meta`` what changes the step itself still counts.
    options = {k: v for k, v in SETTINGS[setting].items() if k != "modulator"}
    as_run = getattr(options.pop("learning", None), "as_run", ())
    corrected = tuple(name for name in as_run if name == "bias_corrected_decay")
    options |= {"modulator": schedule, "learning": Off(as_run=corrected)}
    fresh, replay = make(**options)
    position = iter(seen)

    def after_step(loss, update):
        row = next(position)
        assert loss.item() == row["loss"]
        assert replay.modulation.alpha.tolist() == row["alpha"]
        assert update is None

    run(fresh, replay, after_step)
    assert_same(dict(fresh.state_dict()), dict(model.state_dict()))
    before = replay.meta_state_dict()["modulator"]
    train(fresh, replay, [STEPS])  # beyond the end the last factors stay
    assert replay.modulation.alpha.tolist() == seen[-1]["alpha"]
    assert_same(replay.meta_state_dict()["modulator"], before)


def test_a_replay_is_resumed_where_it_was():
    *_, recorder, seen = recorded("online")
    schedule = recorder.schedule()
    model, replay = make(modulator=schedule)
    train(model, replay, range(4))
    fresh, other = make(modulator=schedule)
    other.load_state_dict(replay.state_dict())
    train(fresh, other, [4])
    assert other.modulation.alpha.tolist() == seen[4]["alpha"]


def test_a_schedule_of_other_groups_is_refused():
    *_, recorder, _ = recorded("online")
    schedule = recorder.schedule()
    with pytest.raises(ValueError, match=r"embedding\.middle\.weight.*'group0'"):
        MetaAdamW(Net().parameters(), modulator=schedule)
    _, optimizer = make()
    with pytest.raises(ValueError, match="groups"):
        MetaAdamW(optimizer.param_groups[::-1], modulator=schedule)
    _, replay = make(modulator=schedule)
    with pytest.raises(ValueError, match=r"recorded for the groups.*'late'"):
        replay.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "name": "late"})
    assert "late" not in replay.group_names


def test_schedules_and_reports_are_compared_by_identity():
    """Tensors have no truth value that could say whether two are equal."""
    schedule = Schedule(("a", "b"), torch.ones(1, 2), torch.ones(1, 2))
    model, optimizer = make()
    update = meta_update(model, optimizer)
    assert schedule != copy.deepcopy(schedule)
    assert update != copy.deepcopy(update)


def test_a_schedule_needs_every_step():
    model, optimizer = make()
    recorder = Recorder(optimizer)
    with pytest.raises(ValueError, match="nothing was recorded"):
        recorder.schedule()
    with pytest.raises(ValueError, match="nothing was recorded"):
        recorder.heatmap("never written")
    train(model, optimizer, range(2))
    recorder.record()
    with pytest.raises(ValueError, match="every step from 1"):
        recorder.schedule()


def test_groups_added_after_the_recorder_was_made():
    model, optimizer = make()
    recorder = Recorder(optimizer)
    train(model, optimizer, [0])
    optimizer.add_param_group({"params": [("extra", nn.Parameter(torch.ones(2)))]})
    with pytest.raises(ValueError, match="group"):
        recorder.record()
    assert len(recorder) == 0


def test_metrics_name_every_group():
    model, optimizer = make(**SETTINGS["online"])
    train(model, optimizer, range(3))
    metrics, modulation = optimizer.metrics(), optimizer.modulation
    for index, name in enumerate(optimizer.group_names):
        assert metrics[key("alpha", name)] == modulation.alpha[index]
        assert metrics[key("beta", name)] == modulation.beta[index]
    assert int(metrics["meta/applied"]) == 2
    assert int(metrics["meta/skipped"]) == 0


def test_metrics_have_the_terms_of_the_last_meta_update() -> None:
    model, optimizer = make(learning=LookAhead(every=1))
    train(model, optimizer, range(2))
    assert not {"meta/total", "meta/loss_decrease"} & optimizer.metrics().keys()
    update = meta_update(model, optimizer)
    metrics = optimizer.metrics()
    for term in ("total", "gradient_alignment", "loss_decrease", "generalization_gap"):
        assert metrics[f"meta/{term}"] == getattr(update, term)
    kept = metrics[f"{optimizer.group_names[0]}/alpha"]
    before = float(kept)
    train(model, optimizer, range(2, 4))
    assert float(kept) == before  # a logger may read it later

    model, optimizer = make(learning=LookAhead(every=1, objective="loss_decrease"))
    train(model, optimizer, range(2))
    meta_update(model, optimizer)
    assert "meta/gradient_alignment" not in optimizer.metrics()
