import csv
import json
from typing import get_args

import pytest
import torch

from metaadamw import Schedule
from metaadamw.learning.windows import window_at
from metaadamw_bench.arms import get_arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.references import References, fill_in
from metaadamw_bench.replay import Part, recorded_factors, schedule
from metaadamw_bench.resolving import resolve
from metaadamw_bench.runs import RunOptions, execute
from metaadamw_bench.tasks import get_task

QUIET = RunOptions(shown=False)
FIRST, STEPS = 3, 60


RECORDED = RunRequest(
    task="digits",
    arm="metaadamw-scalars",
    seed=4,
    max_steps=STEPS,
    changes={"learning.window": FIRST},
)


TWO_HORIZONS = RunRequest(task="digits", arm="metaadamw-two-horizons", seed=4, max_steps=STEPS)


@pytest.fixture(scope="module")
def two_horizons(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two-horizons")
    execute(TWO_HORIZONS, directory, QUIET)
    return directory


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recorded")
    execute(RECORDED, directory, QUIET)
    return directory


def replayed(arm, directory, seed=4, first=FIRST):
    changes = {} if first is None else {"window": first}
    request = RunRequest(task="digits", arm=arm, seed=seed, max_steps=STEPS, changes=changes)
    references = References(tuning=directory, matched_to=directory)
    task = get_task("digits").prepare()
    # A change of the window must reach the reading of the factors as well.
    filled = fill_in(request, references, QUIET, task)
    return resolve(filled, task, get_arm(arm))


def test_every_window_is_read_with_its_factors(recorded):
    factors = recorded_factors(recorded / "modulation.csv", first=FIRST)
    begins = [0]
    while (end := window_at(begins[-1], FIRST)[1]) < STEPS:
        begins.append(end)
    assert factors["begins"] == begins
    with (recorded / "modulation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(factors["groups"]) == (len(rows[0]) - 1) / 2
    whole = {
        step: values
        for begin, values in zip(begins, factors["alpha"], strict=True)
        for step in range(*window_at(begin, FIRST))
    }
    for row in rows:
        expected = [float(row[f"{group}/alpha"]) for group in factors["groups"]]
        assert whole[int(row["step"]) - 1] == expected


def test_every_window_is_recorded_in_a_long_run(tmp_path, monkeypatch):
    monkeypatch.setattr("metaadamw_bench.runs._ROWS", 5)  # a row every twelve steps
    execute(RECORDED, tmp_path, QUIET)
    factors = recorded_factors(tmp_path / "modulation.csv", first=FIRST)
    assert factors["begins"][-1] == window_at(STEPS - 1, FIRST)[0]


def test_without_windows_a_record_holds_until_the_next(two_horizons, tmp_path):
    lines = (two_horizons / "modulation.csv").read_text().splitlines()
    kept = [line for i, line in enumerate(lines) if i < 2 or i % 7 == 0]
    (tmp_path / "modulation.csv").write_text("\n".join(kept))
    factors = recorded_factors(tmp_path / "modulation.csv", first=None)
    every = {part: schedule(factors, part, STEPS) for part in get_args(Part)}
    whole = every["schedule"].alpha * every["redistribution"].alpha
    rows = list(csv.DictReader(kept))
    for row, after in zip(rows, [*rows[1:], {"step": STEPS + 1}], strict=True):
        alpha, beta = (
            torch.tensor([float(row[f"{g}/{factor}"]) for g in factors["groups"]]).double()
            for factor in ("alpha", "beta")
        )
        for step in range(int(row["step"]), int(after["step"])):
            torch.testing.assert_close(whole[step - 1], alpha)
            torch.testing.assert_close(every["decay"].beta[step - 1], beta)
    ones = torch.ones_like(whole)
    assert torch.equal(every["decay"].alpha, ones)
    assert torch.equal(every["schedule"].beta, ones)
    assert torch.equal(every["redistribution"].beta, ones)
    assert every["decay"].beta.std() > 0.01
    (tmp_path / "modulation.csv").write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match="no record of the first step"):
        recorded_factors(tmp_path / "modulation.csv", first=None)


def test_a_window_without_a_record_is_an_error(recorded, tmp_path):
    lines = (recorded / "modulation.csv").read_text().splitlines()
    begin, end = window_at(FIRST, FIRST)
    kept = [lines[0]] + [line for line in lines[1:] if not begin < int(line.split(",")[0]) <= end]
    assert len(kept) < len(lines)
    (tmp_path / "modulation.csv").write_text("\n".join(kept))
    with pytest.raises(ValueError, match=f"the window that begins at step {FIRST}"):
        recorded_factors(tmp_path / "modulation.csv", first=FIRST)


@pytest.mark.parametrize(
    "content", [None, "", "step,a/alpha\n", "step\n1\n", "a/alpha\n1\n", "step,a/alpha\n1,x\n"]
)
def test_a_damaged_record_is_an_error_that_names_it(content, tmp_path):
    path = tmp_path / "modulation.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"modulation\.csv does not hold all factors of a run: "):
        recorded_factors(path, first=FIRST)


def test_the_two_parts_make_the_whole(recorded):
    factors = recorded_factors(recorded / "modulation.csv", first=FIRST)
    shared, apart = (schedule(factors, part, STEPS) for part in ("schedule", "redistribution"))
    assert len(shared) == len(apart) == STEPS
    whole = shared.alpha * apart.alpha
    last = torch.tensor(factors["alpha"][-1], dtype=torch.float64)
    torch.testing.assert_close(whole[-1], last)
    assert (shared.alpha == shared.alpha[:, :1]).all()
    torch.testing.assert_close(apart.alpha.log().mean(1), torch.zeros(STEPS, dtype=torch.float64))
    assert shared.alpha.std(0).max() > 0.01
    assert apart.alpha.std(1).max() > 0.01


def test_the_run_of_another_seed_is_refused(recorded):
    with pytest.raises(ValueError, match="its seed is 4, not 5"):
        replayed("replay-schedule", recorded, seed=5)


@pytest.mark.parametrize("arm", ["replay-schedule", "replay-two-horizons-schedule"])
def test_the_whole_replayed_is_the_run(arm, recorded, two_horizons, tmp_path, monkeypatch):
    """With every step or every window on record the replay is no approximation of the run."""
    first = FIRST
    if arm == "replay-two-horizons-schedule":
        recorded, first = two_horizons, None
    config = replayed(arm, recorded, first=first)
    assert config.arm_settings["factors"] == recorded_factors(
        recorded / "modulation.csv", first=first
    )

    def whole(factors, part, steps):
        shared, apart = (schedule(factors, p, steps) for p in ("schedule", "redistribution"))
        beta = shared.beta if first else schedule(factors, "decay", steps).beta
        return Schedule(shared.groups, shared.alpha * apart.alpha, beta)

    monkeypatch.setattr("metaadamw_bench.optimizers.schedule", whole)
    request = RunRequest(
        task="digits",
        arm=arm,
        seed=4,
        max_steps=STEPS,
        changes=config.arm_settings,
    )
    execute(request, tmp_path, QUIET)

    def losses(directory):
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [entry["loss"] for entry in map(json.loads, lines) if entry["kind"] == "train"]

    # The factors are recorded with eight digits.
    assert losses(tmp_path) == pytest.approx(losses(recorded), rel=1e-3)


@pytest.mark.parametrize("arm", ["replay-schedule", "replay-redistribution"])
def test_a_replay_needs_a_run(arm, recorded):
    task = get_task("digits").prepare()
    with pytest.raises(ValueError, match=r"needs a finished run of metaadamw-scalars \(--matched"):
        resolve(RunRequest(task="digits", arm=arm), task, get_arm(arm))
    decay = replayed(arm, recorded).weight_decay
    assert decay == json.loads((recorded / "config.json").read_text())["weight_decay"]
